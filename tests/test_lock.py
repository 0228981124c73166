"""One command at a time: refused while the other lives, let in when it is gone."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from taskfit.errors import CheckpointError, WriteError
from taskfit.lock import FILE, only_one_at_a_time, process_at_work
from tiny_locks import held_elsewhere

HOLDS = """
import sys, time
from pathlib import Path
from taskfit.lock import only_one_at_a_time
with only_one_at_a_time(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_command_is_told_who_holds_a_folder_until_that_one_is_killed(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert process_at_work(tmp_path) == other.pid
        with (
            pytest.raises(CheckpointError, match=rf"at work in .*: process {other.pid} on "),
            only_one_at_a_time(tmp_path),
        ):
            pass
        other.send_signal(signal.SIGKILL)
    assert (tmp_path / FILE).is_file()  # it could remove nothing
    assert process_at_work(tmp_path) is None
    with only_one_at_a_time(tmp_path):
        holder = json.loads((tmp_path / FILE).read_text())
        assert holder["process"] == os.getpid()
    assert not (tmp_path / FILE).exists()


def test_one_command_may_enter_twice_another_thread_may_not(tmp_path: Path) -> None:
    with only_one_at_a_time(tmp_path), only_one_at_a_time(tmp_path):
        pass
    assert not any(tmp_path.iterdir())
    target = tmp_path / "labelled.csv"
    with (
        held_elsewhere(target, beside=True),
        pytest.raises(CheckpointError, match="at work"),
        only_one_at_a_time(target, beside=True),
    ):
        pass
    assert not any(tmp_path.iterdir())


def test_a_folder_made_for_nothing_is_gone_again(tmp_path: Path) -> None:
    with only_one_at_a_time(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize(
    ("changed", "is_free"),
    [
        ({}, False),
        ({"started": 5.0}, True),  # the number of the process was given anew
        ({"process": 2**22 + 1}, True),
        ({"host": "elsewhere"}, False),
    ],
)
def test_where_a_file_system_has_no_locks_the_holder_in_the_file_decides(
    changed: dict[str, object], is_free: bool, tmp_path: Path
) -> None:
    import socket

    parent = psutil.Process(os.getppid())
    holder = {
        "process": parent.pid,
        "host": socket.gethostname(),
        "started": parent.create_time(),
    }
    (tmp_path / FILE).write_text(json.dumps({**holder, **changed}))
    if is_free:
        with only_one_at_a_time(tmp_path):
            pass
        return
    remedy = re.escape(f"remove {tmp_path / FILE}") if "host" in changed else "is lost.$"
    with pytest.raises(CheckpointError, match=remedy), only_one_at_a_time(tmp_path):
        pass


def test_a_file_in_the_way_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with (
        pytest.raises(WriteError, match="where a folder is needed"),
        only_one_at_a_time(tmp_path / "run"),
    ):
        pass
