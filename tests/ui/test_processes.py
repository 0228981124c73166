"""`taskfit ui` and a comparison as processes of their own: killed, found again, stopped."""

import http.cookiejar
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from taskfit.lock import process_at_work

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif("TASKFIT_LONG" not in os.environ, reason="set TASKFIT_LONG to run it"),
]


class Door:
    """A `taskfit ui` process, and a browser in front of it."""

    def __init__(self, folder: Path, model: Path) -> None:
        command = [sys.executable, "-m", "taskfit", "ui", "--folder", str(folder), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--model", str(model), "--set", "model.dtype=float32"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().removeprefix("Open ").strip()
        cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self.opener = urllib.request.build_opener(cookies)
        self.opener.open(self.address).read()

    def ask(self, path: str, body: Any = None) -> Any:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.address.partition("?")[0] + "api/projects" + path)
        request.add_header("Content-Type", "application/json")
        with self.opener.open(request, data) as answer:
            return json.loads(answer.read() or b"null")

    def until(self, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            state: dict[str, Any] = self.ask("/toy/state")
            if reached(state):
                return state
            time.sleep(0.2)
        raise AssertionError(f"it never came to it: {state}")


@pytest.fixture
def open_door(tmp_path: Path, model_folder: Path) -> Iterator[Callable[[], Door]]:
    """Starts `taskfit ui` in the folder of the test; what it left running ends with the test."""
    doors: list[Door] = []

    def start() -> Door:
        doors.append(Door(tmp_path / "ui", model_folder))
        return doors[-1]

    yield start
    for door in doors:
        door.process.kill()
        door.process.communicate()
    for place in (tmp_path / "ui" / "toy", tmp_path / "ui" / "toy" / "comparison"):
        if (process := process_at_work(place)) is not None:
            os.kill(process, signal.SIGKILL)


def test_a_comparison_outlives_the_page_and_its_own_process_and_is_stopped_with_what_is_there(
    tmp_path: Path, open_door: Callable[[], Door]
) -> None:
    home = tmp_path / "ui"
    door = open_door()
    file = tiny.write_csv(tmp_path / "toy.csv", tiny.toy_examples(120))
    assert door.ask("?name=toy.csv", file.read_bytes()) == {"id": "toy"}
    door.ask("/toy/columns")
    door.ask("/toy/start", {"budget": "thorough"})
    state = door.until(lambda state: state["num_finished"] >= 1)
    door.process.kill()  # the server is gone, the comparison goes on
    door.process.wait()
    assert process_at_work(home / "toy") is not None
    door = open_door()
    again = door.until(lambda state: state["num_finished"] >= 2)
    assert again["phase"] == "comparing"
    assert again["process"] == process_at_work(home / "toy")
    for place in (home / "toy", home / "toy" / "comparison"):
        process = process_at_work(place)
        assert process is not None
        os.kill(process, signal.SIGKILL)
    state = door.until(lambda state: state["phase"] == "interrupted")
    before = {row["run"] for row in state["methods"]}
    door.ask("/toy/start", {"budget": "thorough"})
    door.until(lambda state: state["num_finished"] > len(before) and state["running"] is not None)
    door.ask("/toy/stop", b"")
    state = door.until(lambda state: state["phase"] not in ("comparing", "judging"))
    assert state["phase"] == "done"
    assert state["stopped"] is True
    assert before <= {row["run"] for row in state["methods"]}
    assert state["verdict"]["best"]["method"] in {row["method"] for row in state["methods"]}
    door.process.send_signal(signal.SIGINT)
    assert door.process.wait(30) == 0


def test_ctrl_c_leaves_a_comparison_going_and_says_so(
    tmp_path: Path, open_door: Callable[[], Door]
) -> None:
    door = open_door()
    file = tiny.write_csv(tmp_path / "toy.csv", tiny.toy_examples(120))
    door.ask("?name=toy.csv", file.read_bytes())
    door.ask("/toy/columns")
    door.ask("/toy/start", {"budget": "quick"})
    door.until(lambda state: state["process"] is not None)
    door.process.send_signal(signal.SIGINT)
    told, _ = door.process.communicate(timeout=30)
    process = process_at_work(tmp_path / "ui" / "toy")
    assert f"toy.csv: its comparison goes on (process {process})" in told
    door = open_door()
    state = door.until(lambda state: state["phase"] == "done")
    assert state["num_finished"] == 4
