"""A finished run, read back from its folder: settings, record, predictions.

Legend: N examples, L labels.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taskfit.data.label_cells import SEVERAL
from taskfit.errors import CheckpointError
from taskfit.files import read_jsonl
from taskfit.methods.table import METHODS
from taskfit.runs.classifier import FILE
from taskfit.runs.predictions import renamed_columns
from taskfit.runs.records import QUESTIONS_FILE, RunResult
from taskfit.settings import RunSettings
from taskfit.settings_file import load_run_settings
from taskfit.stats.arrays import FloatArray, IntArray
from taskfit.stats.metrics import Reliability, reliability

HISTORY_FILE = "metrics.jsonl"


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What a run answered on an evaluation set.

    Attributes:
        ids: Ids of the examples, N.
        texts: Their texts, columns joined by ` / `, N.
        classes: What an answer may be: a label, or a set of labels joined by `|` where a text may
            have several; of these sets only those that occur.
        gold: Right answers by index, (N,).
        predicted: Answers by index, -1 where there was none, (N,).
        probabilities: Of every label, a row of NaN where there was no answer, (N, L).
    """

    ids: list[str]
    texts: list[str]
    classes: Sequence[str]
    gold: IntArray
    predicted: IntArray
    probabilities: FloatArray

    @property
    def reliability(self) -> Reliability:
        """Return how often answers of each confidence are right; no answer is left out."""
        answered = ~np.isnan(self.probabilities).any(axis=1)
        return reliability(self.probabilities[answered], self.gold[answered])

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Return whether each answer is right, (N,)."""
        return np.equal(self.predicted, self.gold)


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: Its folder.
        result: Its record.
        whole: Labels that its table brings, where it uses all of them; None: what it says it used.
    """

    folder: Path
    result: RunResult
    whole: int | None = None

    @cached_property
    def settings(self) -> RunSettings:
        """Return its settings."""
        return load_run_settings(self.folder / "settings.yaml")

    @cached_property
    def flat_settings(self) -> dict[str, Any]:
        """Return its settings as `section.key` -> value."""
        flat: dict[str, Any] = {}
        for section, values in self.settings.model_dump().items():
            if isinstance(values, Mapping):
                flat |= {f"{section}.{key}": value for key, value in values.items()}
            else:
                flat[section] = values
        return flat

    @cached_property
    def task(self) -> dict[str, Any]:
        """Return its task, or its questions, as the classifier's file holds it.

        Raises:
            CheckpointError: If the file is not there.
        """
        file, key = (QUESTIONS_FILE, "questions") if self.asks_several else (FILE, "task")
        path = self.folder / file
        if not path.is_file():
            raise CheckpointError(
                f"{self.folder} has a result but no {file}: part of the run is missing. Bring the "
                "file back, or delete the folder and run it again."
            )
        saved = json.loads(path.read_text(encoding="utf-8"))
        found: dict[str, Any] = saved[key]
        return found

    @property
    def asks_several(self) -> bool:
        """Return whether its task has several questions; evaluations are called SET/QUESTION."""
        return "questions" in self.result.details

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
        allowed, method = self.settings.data.num_train, self.settings.method
        # Nearest demonstrations are looked up for every text, so none stands in the record.
        shown = method.retrieves if method.shown is None else method.shown > 0
        used = self.result.num_demonstrations
        learns = METHODS[method.name].learns or method.takes_prior
        if not (learns or shown or used):
            return 0
        if allowed is not None:
            return allowed
        # Without a limit it is the whole set: what was trained on, and what stands in the prompt.
        return self.result.num_train + used if self.whole is None else self.whole

    @cached_property
    def table(self) -> tuple[str, ...] | None:
        """Return what tells the table that all labels are used of; None: not all, or none are."""
        data = self.settings.data
        if data.num_train is not None or not self.result.num_train:
            return None
        own = (data.train, data.label, data.shots_per_class, data.test_fraction)
        return tuple(map(str, (self.settings.task.name, *own)))

    def history(self) -> list[dict[str, Any]]:
        """Return the records of its training; empty without training."""
        return read_jsonl(self.folder / HISTORY_FILE)

    def predictions(self, evaluation: str) -> Predictions:
        """Read what it answered on an evaluation set.

        Raises:
            CheckpointError: If its file is missing or does not fit the result.
        """
        # Of several questions a set has one file, with columns of each question.
        name, _, question = evaluation.partition("/") if self.asks_several else (evaluation, "", "")
        ending = f"_{question}" if question else ""
        path = self.folder / "predictions" / f"{name}.parquet"
        record = self.result.evaluations[evaluation]
        try:
            table = pd.read_parquet(path)
            # A text may lack the label of one of several questions, and a row its text.
            table = table[table[f"gold{ending}"].notna()]
            gold = table[f"gold{ending}"].astype(str).tolist()
            predicted = table[f"predicted{ending}"]
            answers = [None if pd.isna(answer) else str(answer) for answer in predicted]
            classes: Sequence[str] = record.labels
            if record.multi_label:
                gold = [_in_order(answer, classes) for answer in gold]
                answers = [a if a is None else _in_order(a, classes) for a in answers]
                classes = list(dict.fromkeys([*gold, *(a for a in answers if a is not None)]))
            index: dict[str | None, int] = {name: place for place, name in enumerate(classes)}
            return Predictions(
                ids=table["id"].astype(str).tolist(),
                texts=self._texts(table),
                classes=classes,
                gold=np.array([index[answer] for answer in gold], np.int64),
                predicted=np.array([index.get(answer, -1) for answer in answers], np.int64),
                probabilities=table[[f"p{ending}_{label}" for label in record.labels]].to_numpy(
                    np.float64
                ),
            )
        except (OSError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read: {error!r}. Delete the run's folder and run the comparison "
                "again; finished runs are kept."
            ) from error

    def _texts(self, table: pd.DataFrame) -> list[str]:
        labels: dict[str, list[str]] = {}
        for name, evaluation in self.result.evaluations.items():
            question = name.partition("/")[2] if self.asks_several else ""
            labels.setdefault(question, []).extend(evaluation.labels)
        columns = self.task["text"]
        renamed = renamed_columns(columns, labels)
        # Earlier versions renamed fewer columns.
        names = [new if (new := renamed.get(c, c)) in table else c for c in columns]
        present = [name for name in names if name in table]
        rows = table[present].astype(str).itertuples(index=False, name=None)
        return [" / ".join(row) for row in rows]


def _in_order(answer: str, labels: Sequence[str]) -> str:
    """Return a set of labels as predictions are written, in the order of the labels."""
    chosen = set(answer.split(SEVERAL))
    return SEVERAL.join(label for label in labels if label in chosen)
