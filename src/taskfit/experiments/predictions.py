"""Predictions as tables: what `predict` writes and what a run keeps of each evaluation set."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.data.examples import SEVERAL
from taskfit.evaluation.multi_label import THRESHOLD
from taskfit.tasks import Task

FloatArray = NDArray[np.float64]


def write_predictions(
    folder: Path,
    name: str,
    examples: Sequence[Example],
    probabilities: FloatArray,
    task: Task,
) -> None:
    """Write `predictions/NAME.parquet`: id, texts, gold, predicted, a column p_LABEL each."""
    table = prediction_table(examples, probabilities, task)
    (folder / "predictions").mkdir(exist_ok=True)
    table.to_parquet(folder / "predictions" / f"{name}.parquet", index=False)


def prediction_table(
    examples: Sequence[Example], probabilities: FloatArray, task: Task
) -> pd.DataFrame:
    """Return one row an example: id, texts, gold where known, predicted, p_LABEL each.

    Several labels stand with `|` between them; where there is no answer, `predicted` is empty.
    """
    labels = task.label_names
    columns: dict[str, Sequence[object]] = {"id": [example.id for example in examples]}
    for column in examples[0].texts:
        columns[column] = [example.texts[column] for example in examples]
    if any(example.label is not None for example in examples):
        columns["gold"] = [example.label for example in examples]
    columns["predicted"] = [_answer(row, labels, several=task.multi_label) for row in probabilities]
    for index, label in enumerate(labels):
        columns[f"p_{label}"] = probabilities[:, index].tolist()
    return pd.DataFrame(columns)


def _answer(row: FloatArray, labels: Sequence[str], *, several: bool) -> str | None:
    if np.isnan(row).all():
        return None
    if several:
        chosen = (name for name, p in zip(labels, row, strict=True) if p >= THRESHOLD)
        return SEVERAL.join(sorted(chosen))
    return labels[int(row.argmax())]
