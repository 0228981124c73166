"""Run a grid: skip what is finished, resume what was interrupted, go on after failures."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from taskfit.compare.folder import GridFolder, only_one_at_a_time
from taskfit.compare.grid import Grid, GridRun
from taskfit.compare.pool import Execution, NotesView, Pool, ThisProcess, View
from taskfit.compare.runner import Ended, check_run, is_finished
from taskfit.errors import SettingsError, TaskfitError
from taskfit.runs.records import RunResult
from taskfit.runs.sources import share_sources
from taskfit.screen import Screen

# How often a run is started whose worker died: once, and twice again.
MAX_TRIES = 3


@dataclass(frozen=True, slots=True)
class GridOutcome:
    """What became of a grid.

    Attributes:
        results: Finished runs, in the order of the grid.
        failures: Folder name -> the error's message.
        num_left: Runs not started, because the time was up.
    """

    results: list[RunResult]
    failures: dict[str, str]
    num_left: int


def run_grid(
    grid: Grid,
    folder: Path,
    *,
    screen: Screen,
    view: View | None = None,
    execution: Execution | None = None,
    budget_seconds: float | None = None,
) -> GridOutcome:
    """Run a grid; what is finished stays, what was interrupted or failed is tried again.

    Args:
        grid: As `expand_grid` returns it.
        folder: Gets a folder for each run, `results.csv`, `history.csv` and `grid.json`.
        screen: Where progress is shown while runs are done in this process.
        view: Where progress is shown while several are done at the same time.
        execution: Who does the runs; by default this process, one after the other.
        budget_seconds: No run is started after this time, nor one that is known to take longer
            than what is left of it.

    Raises:
        TaskfitError: If nothing can run, or another command is at work in the folder.
    """
    started = time.monotonic()
    with only_one_at_a_time(folder), share_sources():
        records = GridFolder(folder, grid)
        work = _Work(records, _Budget(budget_seconds, started))
        pending = _skip_finished(records)
        try:
            if pending:
                _check_some_can_run(pending, records)
                pool = _open_pool(
                    execution or Execution(), folder, screen, view or NotesView(screen), pending
                )
                records.write()
                try:
                    work.through(pending, pool, view or NotesView(screen))
                finally:
                    pool.close()
        finally:
            records.write(last=True)
    results = [records.results[r.folder] for r in grid.runs if r.folder in records.results]
    return GridOutcome(results, records.failures, len(records.left))


def _skip_finished(records: GridFolder) -> list[GridRun]:
    """Read the results that are there; return the runs that are not finished."""
    pending = []
    for run in records.grid.runs:
        try:
            if is_finished(records.target(run), run.settings):
                records.finish(run)
            else:
                pending.append(run)
        except TaskfitError as error:
            records.fail(Ended(run.folder, str(error)))
    return pending


def _check_some_can_run(pending: list[GridRun], records: GridFolder) -> None:
    """Raise before anything runs if the first run of every method is sure to fail."""
    if records.results:
        return
    problems: dict[str, str] = {}
    for run in pending:
        if run.name in problems:
            continue
        try:
            check_run(run.settings)
            return
        except TaskfitError as error:
            problems[run.name] = str(error)
    if len(set(problems.values())) == 1:
        raise SettingsError(next(iter(problems.values())))
    raise SettingsError("\n".join(f"method {name}: {text}" for name, text in problems.items()))


def _open_pool(
    execution: Execution, folder: Path, screen: Screen, view: View, pending: list[GridRun]
) -> Pool:
    if execution.ray is not None:
        from taskfit.compare.cluster import RayPool

        return RayPool(
            execution.ray, num_workers=execution.workers, num_runs=len(pending), view=view
        )
    if execution.workers is not None and execution.workers > 1:
        from taskfit.compare.processes import ProcessPool

        return ProcessPool(min(execution.workers, len(pending)), logs=folder / "logs", view=view)
    return ThisProcess(screen)


@dataclass(slots=True)
class _Budget:
    """The time that may be spent.

    Attributes:
        seconds: In all; None: any.
        started: When it began (time.monotonic).
    """

    seconds: float | None
    started: float

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        if self.seconds is None:
            return float("inf")
        return self.seconds - (time.monotonic() - self.started)


@dataclass(slots=True)
class _Work:
    """The runs of a grid on their way through a pool."""

    records: GridFolder
    budget: _Budget
    tries: dict[str, int] = field(default_factory=dict)
    under_way: dict[str, GridRun] = field(default_factory=dict)
    num_ended: int = 0

    def through(self, pending: list[GridRun], pool: Pool, view: View) -> None:
        """Give all runs to the pool, in order, and record how they end."""
        began = time.monotonic()
        while pending or self.under_way:
            while pool.num_free and (run := self._next(pending)) is not None:
                place = self.records.grid.runs.index(run) + 1
                view.note(f"[{place}/{len(self.records.grid.runs)}] {run.folder}")
                self.tries[run.folder] = self.tries.get(run.folder, 0) + 1
                self.under_way[run.folder] = run
                pool.start(run, self.records.target(run))
            if not self.under_way:
                view.note(
                    f"the time is up: {len(pending)} runs are left, which start after it or are "
                    "known to take longer"
                )
                return
            for ended in pool.wait():
                self._take(ended, pending, view)
            self.records.write()
            left = len(pending) + len(self.under_way)
            if left and self.num_ended:
                seconds = (time.monotonic() - began) / self.num_ended * left
                view.note(f"{left} runs left, about {seconds / 60:.0f} min")

    def _next(self, pending: list[GridRun]) -> GridRun | None:
        """Take the first run that is not known to take longer than the time that is left."""
        left = self.budget.left
        if left <= 0:
            return None
        for run in pending:
            if self._least_seconds(run) <= left:
                pending.remove(run)
                return run
        return None

    def _least_seconds(self, run: GridRun) -> float:
        """Return what such a run took with as many examples or fewer; 0 if it is not known."""
        found = [
            max(result.duration_seconds, result.training_seconds)
            for other in self.records.grid.runs
            if other.kind == run.kind
            and (other.size or 0) <= (run.size or float("inf"))
            and (result := self.records.results.get(other.folder)) is not None
        ]
        return max(found, default=0.0)

    def _take(self, ended: Ended, pending: list[GridRun], view: View) -> None:
        run = self.under_way.pop(ended.folder)
        if ended.error is None:
            self.records.finish(run)
            self.num_ended += 1
            view.note(f"finished: {run.folder}{_in_short(self.records.results[run.folder])}")
        elif ended.died and self.tries[run.folder] < MAX_TRIES:
            view.note(f"{run.folder}: {ended.error}; it is tried again")
            pending.insert(0, run)
        else:
            if ended.died:
                error = f"{ended.error}. It was tried {MAX_TRIES} times."
                ended = Ended(ended.folder, error, ended.trace)
            self.records.fail(ended)
            self.num_ended += 1
            view.note(f"failed: {run.folder}: {ended.error}")


def _in_short(result: RunResult) -> str:
    """Return the accuracy on the first evaluation set and the time, for a line of progress."""
    seconds = f" in {result.duration_seconds:,.0f} s"
    for name, evaluation in result.evaluations.items():
        return f": accuracy on {name} {evaluation.accuracy:.3f}{seconds}"
    return seconds
