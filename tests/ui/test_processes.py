"""`taskfit ui` and a comparison as processes of their own: killed, found again, stopped."""

import http.cookiejar
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
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


def test_a_comparison_outlives_the_page_and_its_own_process_and_is_stopped_with_what_is_there(
    tmp_path: Path, model_folder: Path
) -> None:
    home = tmp_path / "ui"
    door = Door(home, model_folder)
    file = tiny.write_csv(tmp_path / "toy.csv", tiny.toy_examples(120))
    assert door.ask("?name=toy.csv", file.read_bytes()) == {"id": "toy"}
    door.ask("/toy/columns")
    door.ask("/toy/start", {"budget": "thorough"})
    state = door.until(lambda state: state["num_finished"] >= 1)
    door.process.kill()  # the server is gone, the comparison goes on
    door.process.wait()
    assert process_at_work(home / "toy") is not None
    door = Door(home, model_folder)
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


def test_ctrl_c_leaves_a_comparison_going_and_says_so(tmp_path: Path, model_folder: Path) -> None:
    door = Door(tmp_path / "ui", model_folder)
    file = tiny.write_csv(tmp_path / "toy.csv", tiny.toy_examples(120))
    door.ask("?name=toy.csv", file.read_bytes())
    door.ask("/toy/columns")
    door.ask("/toy/start", {"budget": "quick"})
    process = process_at_work(tmp_path / "ui" / "toy")
    door.until(lambda state: state["process"] is not None)
    door.process.send_signal(signal.SIGINT)
    told, _ = door.process.communicate(timeout=30)
    process = process_at_work(tmp_path / "ui" / "toy")
    assert f"toy.csv: its comparison goes on (process {process})" in told
    door = Door(tmp_path / "ui", model_folder)
    state = door.until(lambda state: state["phase"] == "done")
    assert state["num_finished"] == 4
    door.process.send_signal(signal.SIGINT)
    door.process.wait(30)
