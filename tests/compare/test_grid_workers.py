"""Grids in several processes: the same results, and a process that dies loses nothing."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from taskfit.compare.grid import expand_grid
from taskfit.compare.messages import describe
from taskfit.compare.pool import Execution
from taskfit.compare.processes import threads_per_worker
from taskfit.compare.run import MAX_TRIES, run_grid
from taskfit.screen import SilentScreen
from tiny_grid import ActingView, tiny_grid
from tiny_processes import ForkedWorker, fork_workers


@pytest.fixture
def grid(tmp_path: Path, model_folder: Path) -> dict[str, Any]:
    return tiny_grid(tmp_path, model_folder)


def worker_ids() -> list[int]:
    return [
        child.pid
        for child in psutil.Process().children()
        if "taskfit.compare.worker" in child.cmdline()
    ]


def kill_trainer(view: ActingView) -> None:
    """Kill the worker that was last seen to train."""
    numbers = [re.match(r"worker (\d+): words-", line) for line in view.lines]
    number = [int(found.group(1)) for found in numbers if found][-1]
    os.kill(ForkedWorker.alive[number - 1].pid, signal.SIGKILL)


def test_two_workers_and_a_killed_one_give_the_results_of_one_process(
    grid: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How a worker is started is seen when Ctrl-C stops some; here that would take most of the time.
    fork_workers(monkeypatch)
    runs = expand_grid(grid)
    alone = run_grid(runs, tmp_path / "alone", screen=SilentScreen())
    view = ActingView(tmp_path / "both", lambda: kill_trainer(view))
    both = run_grid(
        runs, tmp_path / "both", screen=view, show=view.update, execution=Execution(workers=2)
    )
    assert 0 < view.acted_at < 80
    assert any("was killed by SIGKILL" in note and "tried again" in note for note in view.notes)
    assert both.failures == alone.failures
    assert [r.name for r in both.results] == ["tfidf", "words"]
    for one, other in zip(alone.results, both.results, strict=True):
        assert one.evaluations == other.evaluations
    tables = [pd.read_csv(tmp_path / part / "results.csv") for part in ("alone", "both")]
    measured = [column for column in tables[0] if re.search("second|memory", column)]
    pd.testing.assert_frame_equal(*(t.drop(columns=measured) for t in tables), check_exact=True)
    assert any("worker 2: " in line for line in view.lines)
    assert not ForkedWorker.alive


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT interrupt: a shell that starts the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_stops_the_workers_and_what_they_were_doing_goes_on_later(
    grid: dict[str, Any], tmp_path: Path
) -> None:
    grid["methods"] = {"words": grid["methods"]["words"]}
    runs = expand_grid(grid)
    view = ActingView(tmp_path / "out", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run_grid(
            runs, tmp_path / "out", screen=view, show=view.update, execution=Execution(workers=2)
        )
    assert not worker_ids()
    left = json.loads((tmp_path / "out" / "grid.json").read_text())["left"]
    assert left == [run.folder for run in runs.runs]
    assert (tmp_path / "out" / "runs" / left[0] / "metrics.jsonl").is_file()
    again = run_grid(runs, tmp_path / "out", screen=SilentScreen())
    assert [result.name for result in again.results] == ["words"]


def test_a_run_whose_worker_dies_every_time_is_recorded_and_the_rest_goes_on(
    grid: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An interpreter that ends at once stands for one that the system kills.
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nread job\ncase $job in *tfidf*) kill -9 $$;; esac\n"
                    f"exec {sys.executable} \"$@\"\n")  # fmt: skip
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    grid["methods"] = {"tfidf": grid["methods"]["tfidf"]}
    started = time.monotonic()
    view = ActingView(tmp_path / "out")
    outcome = run_grid(
        expand_grid(grid),
        tmp_path / "out",
        screen=view,
        show=view.update,
        execution=Execution(workers=2),
    )
    (message,) = outcome.failures.values()
    assert f"SIGKILL, as the system does when memory runs out; its output is in {tmp_path}" in (
        message
    )
    assert f"It was tried {MAX_TRIES} times." in message
    assert sum("tried again" in note for note in view.notes) == MAX_TRIES - 1
    assert time.monotonic() - started < 20


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [threads_per_worker(count) for count in (1, 3, 8, 20)] == [8, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [threads_per_worker(count) for count in (1, 4)] == [3, 2]


def test_a_message_is_told_in_a_few_words() -> None:
    step = {"kind": "step", "step": 2, "total_steps": 8, "loss": 0.5, "seconds": 4.0}
    told = describe({"kind": "record", "record": step})
    assert told == "step 2/8, loss 0.500, 12 s of training left"
    bar = {"kind": "progress", "label": "evaluating new", "done": 10, "total": 2000}
    assert describe(bar) == "evaluating new 10/2,000"
