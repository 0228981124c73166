"""What workers tell while they run.

Messages are JSON objects with a `kind`: "note", "record", "progress" or "ended".
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Message = Mapping[str, Any]
# Seconds between two messages that only move a bar.
PROGRESS_SECONDS = 0.3


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
        if now - self._last < PROGRESS_SECONDS:
            return False
        self._last = now
        return True


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
