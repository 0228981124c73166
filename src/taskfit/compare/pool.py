"""Who does the runs of a grid: an interface, and the pool of one that works in this process."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from taskfit.compare.grid import GridRun
from taskfit.compare.runner import Ended, Runner
from taskfit.screen import Screen


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A Ray cluster and what each run asks of it.

    Attributes:
        address: Of the cluster, or None for a new one on this machine.
        cpus_per_run: Processor cores of a run.
        gpus_per_run: GPUs of a run; a fraction shares one.
        memory_per_run: Main memory to reserve for a run (bytes), or None.
    """

    address: str | None = None
    cpus_per_run: float = 1.0
    gpus_per_run: float = 0.0
    memory_per_run: int | None = None


@dataclass(frozen=True, slots=True)
class Execution:
    """Where the runs of a grid are done.

    Attributes:
        workers: Processes at the same time; None: this process, or as many as the cluster holds.
        ray: A cluster; None: this machine.
    """

    workers: int | None = None
    ray: RayCluster | None = None


class View(Protocol):
    """Shows several runs at the same time in one place."""

    def note(self, text: str) -> None:
        """Show a line that stays."""
        ...

    def update(self, lines: Sequence[str]) -> None:
        """Show what each worker does, in place of what was shown before."""
        ...


class NotesView:
    """Shows on a plain screen which runs start and end, and nothing in between."""

    def __init__(self, screen: Screen) -> None:
        """Write to a screen."""
        self.screen = screen

    def note(self, text: str) -> None:
        """Show a line."""
        self.screen.note(text)

    def update(self, lines: Sequence[str]) -> None:
        """Show nothing."""


class Pool(Protocol):
    """Does runs."""

    @property
    def num_free(self) -> int:
        """Return how many runs may be started now."""
        ...

    def start(self, run: GridRun, target: Path) -> None:
        """Start a run, or go on with it, in its folder."""
        ...

    def wait(self) -> list[Ended]:
        """Wait until at least one of the started runs has ended."""
        ...

    def close(self) -> None:
        """Stop everything that still runs; interrupted runs can be resumed."""
        ...


class ThisProcess:
    """Does one run after the other, here."""

    num_free = 1

    def __init__(self, screen: Screen) -> None:
        """Show progress on a screen."""
        self._runner = Runner(screen)
        self._ended: list[Ended] = []

    def start(self, run: GridRun, target: Path) -> None:
        """Do a run to its end."""
        self._ended.append(self._runner.run(run.name, run.settings, target))

    def wait(self) -> list[Ended]:
        """Return the runs that have ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Do nothing: no run is under way."""
