"""A tiny grid with one run that trains for seconds, and what acts or dies in the middle of it."""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tiny
from taskfit.screen import SilentScreen


def tiny_grid(folder: Path, model: Path) -> dict[str, Any]:
    """A grid of three methods, one of which cannot run, and one that trains for 80 steps."""
    train = tiny.write_csv(folder / "train.csv", tiny.toy_examples(60))
    test = tiny.write_csv(folder / "test.csv", tiny.toy_examples(10, offset=100))
    return {
        "base": {
            "data": {
                "train": str(train),
                "tests": {"new": str(test)},
                "max_validation": 6,
                "num_train": 16,
            },
            "model": {"name": str(model), "dtype": "float32"},
            "training": {
                "tensorboard": False,
                "learning_rate": 0.01,
                "batch_size": 4,
                "epochs": 20,
                "eval_every_steps": 20,
            },
        },
        "methods": {
            "tfidf": {"method": {"name": "tfidf"}},
            "broken": {"method": {"name": "remote"}},
            "words": {"method": {"name": "label_words", "num_demonstrations": 0}},
        },
    }


class ActingView(SilentScreen):
    """Keeps what it is shown, as a screen and of workers; calls a function once in a training."""

    def __init__(self, folder: Path, action: Callable[[], None] | None = None) -> None:
        self.notes: list[str] = []
        self.lines: list[str] = []
        self.acted_at = 0
        if action is not None:
            threading.Thread(target=self._watch, args=(folder, action), daemon=True).start()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, lines: Sequence[str]) -> None:
        self.lines += lines

    def _watch(self, folder: Path, action: Callable[[], None]) -> None:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            for path in folder.glob("runs/words-*/metrics.jsonl"):
                self.acted_at = path.read_text().count('"kind": "step"')
                if self.acted_at:
                    action()
                    return
            time.sleep(0.01)


class KillingScreen(SilentScreen):
    """Kills the process at a step, before it is written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def record(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "step" and record["step"] == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run_until_killed(grid: dict[str, Any], folder: Path, step: int) -> None:
    """What a process does that is killed at a step of a grid's first run that trains."""
    from taskfit.compare.grid import expand_grid
    from taskfit.compare.run import run_grid

    run_grid(expand_grid(grid), folder, screen=KillingScreen(step))
