"""Run a grid: skip what is finished, resume what was interrupted, go on after failures."""

import math
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from taskfit.compare.folder import GridFolder
from taskfit.compare.grid import Grid, GridRun
from taskfit.compare.pool import Execution, Pool, Show, ThisProcess
from taskfit.compare.runner import Ended, check_run, is_finished
from taskfit.compare.stale import set_aside
from taskfit.errors import SettingsError, TaskfitError
from taskfit.lock import only_one_at_a_time
from taskfit.runs.bases import Base
from taskfit.runs.records import RunResult
from taskfit.runs.sources import share_sources
from taskfit.screen import Screen

# How often a run is started whose worker died: once, and twice again.
MAX_TRIES = 3


def run_grid(
    grid: Grid,
    folder: Path,
    *,
    screen: Screen,
    show: Show = lambda _: None,
    execution: Execution | None = None,
    budget_seconds: float | None = None,
    allow_other_base: bool = False,
) -> GridFolder:
    """Run a grid; what is finished stays, what was interrupted or failed is tried again.

    Args:
        grid: As `expand_grid` returns it.
        folder: Gets a folder for each run, `results.csv`, `history.csv` and `grid.json`.
        screen: Where notes go, and progress while runs are done in this process.
        show: Shows what workers do where several are done at the same time.
        execution: Who does the runs; by default this process, one after the other.
        budget_seconds: No run is started after this time, nor one that is known to take longer
            than what is left of it.
        allow_other_base: Whether finished runs stay whose base model is another now; otherwise
            they are set aside and done anew.

    Returns:
        What became of the runs.

    Raises:
        TaskfitError: If nothing can run, or another command is at work in the folder.
    """
    deadline = math.inf if budget_seconds is None else time.monotonic() + budget_seconds
    with only_one_at_a_time(folder), share_sources():
        records = GridFolder(folder, grid)
        known: dict[str, Base | None] = {}
        for run in grid.runs:
            set_aside(
                records.target(run),
                run.settings,
                screen,
                known=known,
                keep_finished=allow_other_base,
            )
        pending = _skip_finished(records)
        try:
            if pending:
                execution = execution or Execution()
                _check_some_can_run(pending, records, is_here=execution.ray is None)
                pool = _open_pool(execution, folder, screen, show, len(pending))
                records.write()
                try:
                    _Work(records, screen, deadline).through(pending, pool)
                finally:
                    pool.close()
        finally:
            records.write(last=True)
    return records


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


def _check_some_can_run(pending: list[GridRun], records: GridFolder, *, is_here: bool) -> None:
    """Raise before anything runs if the first run of every method is sure to fail.

    Args:
        pending: What is to run.
        records: What became of the others.
        is_here: Whether they run on this machine, with its devices.
    """
    if records.finished:
        return
    from taskfit.models.load import resolve_device
    from taskfit.models.packaged import check_place

    problems: dict[str, str] = {}
    for run in pending:
        if run.name in problems:
            continue
        try:
            check_run(run.settings)
            if is_here:
                resolve_device(run.settings.model.device)
                if run.settings.method.reads_model:
                    check_place(run.settings.model.name)
            return
        except TaskfitError as error:
            problems[run.name] = str(error)
    if len(set(problems.values())) == 1:
        raise SettingsError(next(iter(problems.values())))
    raise SettingsError("\n".join(f"method {name}: {text}" for name, text in problems.items()))


def _open_pool(
    execution: Execution, folder: Path, screen: Screen, show: Show, num_runs: int
) -> Pool:
    workers = execution.workers
    if execution.ray is not None:
        from taskfit.compare.cluster import RayPool

        return RayPool(
            execution.ray, num_workers=workers, num_runs=num_runs, show=show, screen=screen
        )
    if workers is not None and workers > 1:
        from taskfit.compare.processes import ProcessPool

        return ProcessPool(min(workers, num_runs), logs=folder / "logs", show=show)
    return ThisProcess(screen)


@dataclass(slots=True)
class _Work:
    """The runs of a grid on their way through a pool, none started after a time.monotonic()."""

    records: GridFolder
    screen: Screen
    deadline: float
    tries: Counter[str] = field(default_factory=Counter)
    under_way: dict[str, GridRun] = field(default_factory=dict)
    num_ended: int = 0

    def through(self, pending: list[GridRun], pool: Pool) -> None:
        """Give all runs to the pool, in order, and record how they end."""
        began, runs = time.monotonic(), self.records.grid.runs
        while pending or self.under_way:
            while pool.num_free and (run := self._next(pending)) is not None:
                self.screen.note(f"[{runs.index(run) + 1}/{len(runs)}] {run.folder}")
                self.tries[run.folder] += 1
                self.under_way[run.folder] = run
                pool.start(run, self.records.target(run))
            if not self.under_way:
                self.screen.note(
                    f"the time is up: {len(pending)} runs are left, which start after it or are "
                    "known to take longer"
                )
                return
            for ended in pool.wait():
                self._take(ended, pending)
            self.records.write()
            left = len(pending) + len(self.under_way)
            if left and self.num_ended:
                seconds = (time.monotonic() - began) / self.num_ended * left
                self.screen.note(f"{left} runs left, about {seconds / 60:.0f} min")

    def _next(self, pending: list[GridRun]) -> GridRun | None:
        """Take the first run that is not known to take longer than the time that is left."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            return None
        found = next((run for run in pending if self._least_seconds(run) <= left), None)
        if found is not None:
            pending.remove(found)
        return found

    def _least_seconds(self, run: GridRun) -> float:
        """Return what such a run took with as many examples or fewer; 0 if it is not known."""
        found = [
            max(result.duration_seconds, result.training_seconds)
            for other in self.records.grid.runs
            if other.kind == run.kind
            and (other.size or 0) <= (run.size or float("inf"))
            and (result := self.records.finished.get(other.folder)) is not None
        ]
        return max(found, default=0.0)

    def _take(self, ended: Ended, pending: list[GridRun]) -> None:
        run, note = self.under_way.pop(ended.folder), self.screen.note
        if ended.died and self.tries[run.folder] < MAX_TRIES:
            note(f"{run.folder}: {ended.error}; it is tried again")
            pending.insert(0, run)
            return
        self.num_ended += 1
        if ended.error is None:
            self.records.finish(run)
            note(f"finished: {run.folder}{_in_short(self.records.finished[run.folder])}")
            return
        if ended.died:
            ended = replace(ended, error=f"{ended.error}. It was tried {MAX_TRIES} times.")
        self.records.fail(ended)
        note(f"failed: {run.folder}: {ended.error}")


def _in_short(result: RunResult) -> str:
    """Return the accuracy on the first evaluation set and the time, for a line of progress."""
    seconds = f" in {result.duration_seconds:,.0f} s"
    for name, evaluation in result.evaluations.items():
        return f": accuracy on {name} {evaluation.accuracy:.3f}{seconds}"
    return seconds
