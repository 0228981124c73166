"""The folder of a comparison: `runs/`, `grid.json`, `results.csv`, `history.csv`.

All of them are written in the order of the grid from what stands in the runs' folders, so it makes
no difference in which order, by whom and in how many sittings the runs were done.
"""

import shutil
import time
from pathlib import Path

import pandas as pd

from taskfit.compare.grid import Grid, GridRun
from taskfit.compare.runner import Ended
from taskfit.files import file_atomic, read_jsonl, write_json_atomic
from taskfit.runs.records import RunResult, write_results_csv

FAILURE_FILE = "failure.json"
HISTORY_FILE = "metrics.jsonl"
# Seconds between two times that history.csv is written while runs go on; it may be long.
HISTORY_SECONDS = 60.0


class GridFolder:
    """What became of the runs of a comparison; writes its records while they end.

    Attributes:
        finished: Folder name -> result.
        failures: Folder name -> the error's message.
    """

    def __init__(self, folder: Path, grid: Grid) -> None:
        """Open the folder; failures of runs that are refused now are written at once."""
        self.folder = folder
        self.grid = grid
        self.finished: dict[str, RunResult] = {}
        self.failures: dict[str, str] = {}
        self._history_written = time.monotonic()
        for path in (folder / "runs").glob("refused-*"):
            shutil.rmtree(path)
        for name, error in grid.refused.items():
            self.fail(Ended(name, error))

    def target(self, run: GridRun) -> Path:
        """Return the folder of a run."""
        return self.folder / "runs" / run.folder

    def finish(self, run: GridRun) -> None:
        """Read the result of a finished run."""
        target = self.target(run)
        self.finished[run.folder] = RunResult.load(target)
        self.failures.pop(run.folder, None)
        (target / FAILURE_FILE).unlink(missing_ok=True)

    def fail(self, ended: Ended) -> None:
        """Record a run that failed."""
        error = ended.error or "unknown"
        self.failures[ended.folder] = error
        target = self.folder / "runs" / ended.folder
        target.mkdir(parents=True, exist_ok=True)
        write_json_atomic(target / FAILURE_FILE, {"error": error, "traceback": ended.trace})

    @property
    def results(self) -> list[RunResult]:
        """Return the results of finished runs, in the order of the grid."""
        return [self.finished[r.folder] for r in self.grid.runs if r.folder in self.finished]

    @property
    def left(self) -> list[GridRun]:
        """Return the runs that have neither been finished nor failed."""
        done = self.finished.keys() | self.failures.keys()
        return [run for run in self.grid.runs if run.folder not in done]

    def write(self, *, last: bool = False) -> None:
        """Write all records; the history not every time, unless it is the last time."""
        write_results_csv(self.folder / "results.csv", self.results)
        write_json_atomic(
            self.folder / "grid.json",
            {
                "runs": [run.folder for run in self.grid.runs],
                "names": {run.folder: run.name for run in self.grid.runs},
                "num_finished": len(self.results),
                "failures": self.failures,
                "left": [run.folder for run in self.left],
            },
        )
        if last or time.monotonic() - self._history_written > HISTORY_SECONDS:
            write_history_csv(self.folder, self.grid)
            self._history_written = time.monotonic()


def write_history_csv(folder: Path, grid: Grid) -> None:
    """Write a row for every step and validation of every run, interrupted ones too."""
    rows = []
    for run in grid.runs:
        about = {
            "folder": run.folder,
            "name": run.name,
            "model": run.settings.model.name,
            "size": run.size,
            "seed": run.settings.seed,
        }
        for record in read_jsonl(folder / "runs" / run.folder / HISTORY_FILE):
            if record["kind"] in ("step", "validation"):
                rows.append({**about, **record})
    columns = None if rows else ["folder", "name", "model", "size", "seed", "kind", "step"]
    table = pd.DataFrame(rows, columns=columns)
    table["size"] = table["size"].astype("Int64")  # whole numbers, and nothing where all are used
    with file_atomic(folder / "history.csv") as scratch:
        table.to_csv(scratch, index=False)
