"""The evidence of a comparison: finished runs with their predictions, read back from their folders.

Everything that report and advice say is computed from here, so a comparison can be reported anew
at any time, without any model. Methods that see no labels (zero-shot) count as size 0.

Legend: N examples, L labels.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taskfit.data.examples import SEVERAL
from taskfit.errors import CheckpointError
from taskfit.files import read_jsonl
from taskfit.methods.table import METHODS
from taskfit.runs.predictions import renamed_columns
from taskfit.runs.records import RESULT_FILE, RunResult
from taskfit.settings import RunSettings
from taskfit.settings_file import load_settings

FAILURE_FILE = "failure.json"
HISTORY_FILE = "metrics.jsonl"
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What a run answered on an evaluation set of a task with one label a text.

    Attributes:
        ids: Ids of the examples, N.
        texts: Their texts, columns joined by ` / `, N.
        gold: Right labels by index, (N,).
        predicted: Answers by index, -1 where there was none, (N,).
        probabilities: Of every label, a row of NaN where there was no answer, (N, L).
        columns: Every further column of the file, by name.
    """

    ids: list[str]
    texts: list[str]
    gold: IntArray
    predicted: IntArray
    probabilities: FloatArray
    columns: pd.DataFrame

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Return whether each answer is right, (N,)."""
        return np.equal(self.predicted, self.gold)


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A finished run of a comparison.

    Attributes:
        folder: Its folder.
        result: Its record.
    """

    folder: Path
    result: RunResult

    @cached_property
    def settings(self) -> RunSettings:
        """Return its settings."""
        return load_settings(self.folder / "settings.yaml")

    @property
    def name(self) -> str:
        """Return the method's name in tables."""
        return self.result.name

    @property
    def seed(self) -> int:
        """Return the draw."""
        return self.result.seed

    @cached_property
    def size(self) -> int:
        """Return how many labelled examples the run was allowed to use; 0 if it sees none."""
        wanted, method = self.settings.data.num_train, self.settings.method
        # Nearest demonstrations are looked up for every text, so none stands in the record.
        shown = (
            method.demonstrations == "nearest"
            if method.num_demonstrations is None
            else method.num_demonstrations > 0
        )
        sees_labels = (
            METHODS[method.name].learns
            or shown
            or self.result.num_demonstrations > 0
            or method.calibration == "batch"
        )
        if not sees_labels:
            return 0
        # Without a wish it is the whole set: what was trained on, and what stands in the prompt.
        return wanted if wanted is not None else self._num_used

    @property
    def _num_used(self) -> int:
        return self.result.num_train + self.result.num_demonstrations

    def history(self) -> list[dict[str, Any]]:
        """Return the records of its training; empty without training."""
        path = self.folder / HISTORY_FILE
        return read_jsonl(path) if path.is_file() else []

    def predictions(self, evaluation: str) -> Predictions:
        """Read what it answered on an evaluation set.

        Raises:
            CheckpointError: If its file is missing or does not fit the result.
        """
        path = self.folder / "predictions" / f"{evaluation}.parquet"
        labels = self.result.evaluations[evaluation].labels
        try:
            table = pd.read_parquet(path)
            index = {label: place for place, label in enumerate(labels)}
            gold = np.asarray(table["gold"].map(index), np.int64)
            predicted = np.asarray(table["predicted"].map(index).fillna(-1), np.int64)
            names = [f"p_{label}" for label in labels]
            probabilities = table[names].to_numpy(np.float64)
        except (OSError, KeyError, ValueError) as error:
            raise _unreadable(path, error) from error
        rest = table.drop(columns=[*names, "gold", "predicted", "id"])
        ids = table["id"].astype(str).tolist()
        return Predictions(ids, self._texts(table), gold, predicted, probabilities, rest)

    def answers(self, evaluation: str) -> pd.DataFrame:
        """Read what it answered as words, also where a text may have several labels.

        Returns:
            A row an example: id, text, gold, predicted (None without an answer), correct.

        Raises:
            CheckpointError: If its file is missing or cannot be read.
        """
        path = self.folder / "predictions" / f"{evaluation}.parquet"
        try:
            table = pd.read_parquet(path)
            gold = table["gold"].astype(str).tolist()
            predicted = [None if pd.isna(answer) else str(answer) for answer in table["predicted"]]
            ids = table["id"].astype(str).tolist()
        except (OSError, KeyError, ValueError) as error:
            raise _unreadable(path, error) from error
        several = self.result.evaluations[evaluation].multi_label
        correct = [
            answer is not None
            and (
                set(answer.split(SEVERAL)) == set(right.split(SEVERAL))
                if several
                else answer == right
            )
            for answer, right in zip(predicted, gold, strict=True)
        ]
        columns = {
            "id": ids,
            "text": self._texts(table),
            "gold": gold,
            # As objects, or pandas makes None a NaN.
            "predicted": pd.Series(predicted, dtype=object),
            "correct": correct,
        }
        return pd.DataFrame(columns)

    def _texts(self, table: pd.DataFrame) -> list[str]:
        columns = table[list(self._text_columns(table))].astype(str)
        return [" / ".join(row) for row in columns.itertuples(index=False, name=None)]

    def _text_columns(self, table: pd.DataFrame) -> Sequence[str]:
        saved = json.loads((self.folder / "classifier.json").read_text(encoding="utf-8"))["task"]
        labels = [label for e in self.result.evaluations.values() for label in e.labels]
        renamed = renamed_columns(saved["text"], labels)
        wanted = [renamed.get(column, column) for column in saved["text"]]
        return [column for column in wanted if column in table]


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be read: {error!r}. Delete the run's folder and run the comparison again; "
        "finished runs are kept."
    )


@dataclass(frozen=True, eq=False)
class Evidence:
    """All finished runs of a comparison on one task.

    Attributes:
        folder: The comparison's folder.
        runs: Finished runs, in the order of the grid.
        failures: Folder of a failed run -> its error.
        metric: The task's metric: accuracy, mcc or macro_f1.
        multi_label: Whether a text may have several labels.
    """

    folder: Path
    runs: list[FinishedRun]
    failures: dict[str, str]
    metric: str
    multi_label: bool

    @cached_property
    def methods(self) -> list[str]:
        """Return the names of methods, in the order of the grid."""
        return list(dict.fromkeys(run.name for run in self.runs))

    @cached_property
    def models(self) -> list[str]:
        """Return the names of models, in the order of the grid."""
        return list(dict.fromkeys(run.result.model for run in self.runs))

    @cached_property
    def sizes(self) -> list[int]:
        """Return the numbers of labels above 0, in rising order."""
        return sorted({run.size for run in self.runs} - {0})

    @cached_property
    def evaluations(self) -> list[str]:
        """Return the names of the evaluation sets, the one in domain first."""
        return list(dict.fromkeys(name for run in self.runs for name in run.result.evaluations))

    @property
    def in_domain(self) -> str:
        """Return the evaluation set of the same kind as the training data."""
        return self.evaluations[0]

    def select(
        self, *, method: str | None = None, size: int | None = None, model: str | None = None
    ) -> list[FinishedRun]:
        """Return the runs of a method, a size and a model, by draw; None: any."""
        found = [
            run
            for run in self.runs
            if method in (None, run.name)
            and size in (None, run.size)
            and model in (None, run.result.model)
        ]
        return sorted(found, key=lambda run: (run.size, run.seed))


def read_evidence(folder: Path) -> Evidence:
    """Read all finished runs under a comparison's folder.

    Raises:
        CheckpointError: If there is none, or runs are of different tasks.
    """
    home, grid = folder / "runs", _read_grid(folder)
    listed = {*grid.get("runs", ()), *grid.get("failures", ())}
    # Runs of an earlier grid in the same folder, with other settings, take no part.
    paths = [
        path.parent
        for path in sorted(home.glob(f"*/{RESULT_FILE}"))
        if not listed or path.parent.name in listed
    ]
    if not paths:
        raise CheckpointError(
            f"{folder} holds no finished run of a comparison. Give the folder that `taskfit "
            "compare --out` filled."
        )
    runs = [FinishedRun(path, RunResult.load(path)) for path in paths]
    tasks = sorted({run.result.task for run in runs})
    if len(tasks) > 1:
        raise CheckpointError(
            f"{folder} holds runs of different tasks ({', '.join(tasks)}), which cannot be "
            "compared. Give each task its own --out."
        )
    failures = {}
    for path in sorted(home.glob(f"*/{FAILURE_FILE}")):
        counts = not listed or path.parent.name in listed
        if counts and not (path.parent / RESULT_FILE).is_file():
            failures[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))["error"]
    saved = json.loads((paths[0] / "classifier.json").read_text(encoding="utf-8"))["task"]
    return Evidence(
        folder=folder,
        runs=_in_grid_order(grid.get("runs", ()), runs),
        failures=failures,
        metric=saved["metric"],
        multi_label=saved["multi_label"],
    )


def _read_grid(folder: Path) -> dict[str, Any]:
    path = folder / "grid.json"
    grid: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return grid


def _in_grid_order(listed: Sequence[str], runs: list[FinishedRun]) -> list[FinishedRun]:
    """Sort runs as the grid lists them; what it does not list comes last, by name."""
    order = {name: place for place, name in enumerate(listed)}
    last = len(order)
    return sorted(runs, key=lambda run: (order.get(run.folder.name, last), run.folder.name))
