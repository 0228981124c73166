"""How long a run took, over all its sittings: an interruption loses no time from the record."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskfit.files import write_json_atomic
from taskfit.screen import Screen

FILE = "clock.json"
PACE = 5.0  # seconds between two times that the clock is kept on disk


class Clock:
    """Wall and processor time of a run since it was first started."""

    def __init__(self, folder: Path, *, resume: bool) -> None:
        """Start, or go on from what an interrupted sitting left.

        Args:
            folder: The run's folder; it need not exist yet.
            resume: Whether the run goes on.
        """
        self._path = folder / FILE
        self._started = self._kept = time.perf_counter()
        self._cpu_started = time.process_time()
        self._is_open = False
        self._before = {"seconds": 0.0, "cpu_seconds": 0.0}
        if resume and self._path.is_file():
            self._before |= json.loads(self._path.read_text(encoding="utf-8"))

    @property
    def seconds(self) -> float:
        """Return the seconds on the clock, of all sittings."""
        return self._before["seconds"] + time.perf_counter() - self._started

    @property
    def cpu_seconds(self) -> float:
        """Return the seconds of the processor, all threads, of all sittings."""
        return self._before["cpu_seconds"] + time.process_time() - self._cpu_started

    def open(self) -> None:
        """Keep time in the folder from here on: it is this run's, and the run is not finished."""
        self._is_open = True

    def tick(self) -> None:
        """Keep the time on disk, if it was not just kept."""
        if time.perf_counter() - self._kept >= PACE:
            self.keep()

    def keep(self) -> None:
        """Keep the time on disk, while the folder is this run's."""
        if not self._is_open:
            return
        self._kept = time.perf_counter()
        write_json_atomic(self._path, {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds})

    def remove(self) -> None:
        """Forget what is on disk: the run is finished and its record holds the time."""
        self._is_open = False
        self._path.unlink(missing_ok=True)


class TickingScreen:
    """A screen that keeps a run's clock whenever something is shown."""

    def __init__(self, screen: Screen, clock: Clock) -> None:
        """Wrap a screen."""
        self._screen = screen
        self._clock = clock

    def note(self, text: str) -> None:
        """Show a line."""
        self._clock.tick()
        self._screen.note(text)

    def record(self, record: Mapping[str, Any]) -> None:
        """Show a record of the training log."""
        self._clock.tick()
        self._screen.record(record)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show progress over `total` things; the value entered counts them."""
        with self._screen.progress(label, total) as advance:

            def count(number: int) -> None:
                self._clock.tick()
                advance(number)

            yield count
