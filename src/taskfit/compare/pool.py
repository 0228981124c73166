"""Who does the runs of a grid: this process, or workers beside it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from taskfit.compare.grid import GridRun
from taskfit.compare.messages import Message, describe
from taskfit.compare.runner import Ended, Runner
from taskfit.runs.cluster import RayCluster
from taskfit.screen import Screen


@dataclass(frozen=True, slots=True)
class Execution:
    """Where the runs of a grid are done.

    Attributes:
        workers: Processes at the same time; None: this process, or as many as the cluster holds.
        ray: A cluster; None: this machine.
    """

    workers: int | None = None
    ray: RayCluster | None = None


# Shows what each worker does, a line each, in place of the lines before.
Show = Callable[[Sequence[str]], None]


@dataclass(slots=True, eq=False)
class Worker:
    """What does runs beside this process.

    Attributes:
        run: The run under way.
        state: What it last said of it.
    """

    run: GridRun | None = field(default=None, init=False)
    state: str = field(default="", init=False)


WorkerT = TypeVar("WorkerT", bound=Worker)


class WorkerPool(ABC, Generic[WorkerT]):
    """Places for workers, each of which is started with its first run and used again."""

    def __init__(self, num_workers: int, show: Show) -> None:
        """Plan so many workers, and show what they do."""
        self._workers: list[WorkerT | None] = [None] * num_workers
        self._show = show

    @property
    def num_free(self) -> int:
        """Return how many runs may be started now."""
        return sum(worker is None or worker.run is None for worker in self._workers)

    def start(self, run: GridRun, target: Path) -> None:
        """Give a run, to be started or gone on with in its folder, to a free worker.

        One that exists already, if there is one.
        """
        free = [p for p, w in enumerate(self._workers) if w is None or w.run is None]
        place = min(free, key=lambda p: self._workers[p] is None)
        worker = self._workers[place] or self._launch(place)
        self._workers[place] = worker
        worker.run, worker.state = run, "starting"
        self._update()
        self._give(worker, run, target)

    @abstractmethod
    def wait(self) -> list[Ended]:
        """Wait until at least one of the started runs has ended."""

    @abstractmethod
    def close(self) -> None:
        """Stop everything that still runs; interrupted runs can be resumed."""

    @abstractmethod
    def _launch(self, place: int) -> WorkerT:
        """Start a worker."""

    @abstractmethod
    def _give(self, worker: WorkerT, run: GridRun, target: Path) -> None:
        """Let a worker do a run."""

    def _tell(self, worker: WorkerT, message: Message) -> None:
        """Show what a worker said."""
        if state := describe(message):
            worker.state = state
            self._update()

    def _end(self, place: int, *, keep: bool) -> None:
        """Take the run from a worker, which is replaced if it is not kept."""
        worker = self._workers[place]
        if worker is not None:
            worker.run = None
        if not keep:
            self._workers[place] = None
        self._update()

    def _update(self) -> None:
        lines = []
        for place, worker in enumerate(self._workers, start=1):
            run = None if worker is None else worker.run
            what = "free" if worker is None or run is None else f"{run.folder}: {worker.state}"
            lines.append(f"worker {place}: {what}")
        self._show(lines)


class ThisProcess:
    """Does one run after the other, here."""

    def __init__(self, screen: Screen) -> None:
        """Show progress on a screen."""
        self._runner = Runner(screen)
        self._ended: list[Ended] = []

    @property
    def num_free(self) -> int:
        """Return how many runs may be started now: none before the last one was recorded."""
        return int(not self._ended)

    def start(self, run: GridRun, target: Path) -> None:
        """Do a run to its end."""
        self._ended.append(self._runner.run(run.name, run.settings, target))

    def wait(self) -> list[Ended]:
        """Return the runs that have ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Do nothing: no run is under way."""


Pool = ThisProcess | WorkerPool[Any]
