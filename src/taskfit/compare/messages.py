"""What workers tell while they run, and how several of them are shown in one place.

Messages are JSON objects with a `kind`: "note", "record", "progress" or "ended".
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from taskfit.compare.pool import View

Message = Mapping[str, Any]
# Seconds between two messages that only move a bar.
PACE = 0.3


class SendingScreen:
    """A screen of a worker, which sends what it should show."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        """Send messages with a function."""
        self._send = send
        self._last = 0.0

    def note(self, text: str) -> None:
        """Send a note."""
        self._send({"kind": "note", "text": text})

    def record(self, record: Mapping[str, Any]) -> None:
        """Send a record of the training log, steps not more often than can be read."""
        if record["kind"] == "step" and not self._is_due():
            return
        self._send({"kind": "record", "record": dict(record)})

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Send how many of `total` things are done."""
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if self._is_due():
                self._send({"kind": "progress", "label": label, "done": done, "total": total})

        self._send({"kind": "progress", "label": label, "done": 0, "total": total})
        yield advance

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self._last < PACE:
            return False
        self._last = now
        return True


class Board:
    """Keeps one line a worker up to date and hands all of them to the view."""

    def __init__(self, view: View, num_workers: int) -> None:
        """Show so many workers."""
        self.view = view
        self._runs = [""] * num_workers
        self._states = [""] * num_workers

    def start(self, worker: int, folder: str) -> None:
        """Show that a worker begins with a run."""
        self._runs[worker], self._states[worker] = folder, "starting"
        self._update()

    def end(self, worker: int) -> None:
        """Show that a worker has nothing to do."""
        self._runs[worker] = ""
        self._update()

    def tell(self, worker: int, message: Message) -> None:
        """Show what a worker said."""
        state = describe(message)
        if state:
            self._states[worker] = state
            self._update()

    def _update(self) -> None:
        self.view.update(
            [
                f"worker {worker + 1}: {run}: {state}" if run else f"worker {worker + 1}: free"
                for worker, (run, state) in enumerate(zip(self._runs, self._states, strict=True))
            ]
        )


def describe(message: Message) -> str:
    """Return a message as a few words; empty if it is not worth showing."""
    if message["kind"] == "progress":
        return f"{message['label']} {message['done']:,}/{message['total']:,}"
    if message["kind"] == "note":
        return " ".join(str(message["text"]).split())[:80]
    if message["kind"] != "record":
        return ""
    record = message["record"]
    if record["kind"] == "step":
        left = record["seconds"] / record["step"] * (record["total_steps"] - record["step"])
        return (
            f"step {record['step']}/{record['total_steps']}, loss {record['loss']:.3f}, "
            f"{left:,.0f} s of training left"
        )
    if record["kind"] == "validation":
        return f"step {record['step']}: validation loss {record['loss']:.3f}"
    return "training" if record["kind"] == "start" else ""
