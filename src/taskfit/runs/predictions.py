"""Predictions as tables: what `predict` writes and what a run keeps of each evaluation set."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.data.examples import SEVERAL
from taskfit.errors import SettingsError
from taskfit.settings import check_set_name
from taskfit.stats.multi_label import THRESHOLD
from taskfit.tasks import Task

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

SET, SET_SIZE = "prediction_set", "prediction_set_size"
OWN = ("id", "gold", "predicted", SET, SET_SIZE)


def write_predictions(
    folder: Path,
    name: str,
    examples: Sequence[Example],
    probabilities: FloatArray,
    task: Task,
) -> None:
    """Write `predictions/NAME.parquet`, as `prediction_table` makes it.

    Raises:
        SettingsError: If no file can have the set's name.
    """
    checked_set_name(name)
    table = prediction_table(examples, probabilities, task)
    (folder / "predictions").mkdir(exist_ok=True)
    table.to_parquet(folder / "predictions" / f"{name}.parquet", index=False)


def checked_set_name(name: str) -> str:
    """Return the name of an evaluation set.

    Raises:
        SettingsError: If no file can be called so.
    """
    try:
        return check_set_name(name)
    except ValueError as error:
        message = str(error)
        raise SettingsError(f"{message[0].upper()}{message[1:]}.") from error


def prediction_table(
    examples: Sequence[Example],
    probabilities: FloatArray,
    task: Task,
    *,
    sets: BoolArray | None = None,
) -> pd.DataFrame:
    """Return one row an example: id, texts, carried columns, gold, predicted, p_LABEL each.

    Gold stands there where it is known. Several labels stand with `|` between them; where there is
    no answer, `predicted` is empty. Columns of the user's that are called like ours are renamed;
    see `renamed_columns`.

    Args:
        examples: N texts.
        probabilities: (N, L).
        task: The task.
        sets: Which labels are in each prediction set, (N, L); adds the sets and their sizes.
    """
    labels = task.label_names
    columns: dict[str, Sequence[object]] = {"id": [example.id for example in examples]}
    first = examples[0]
    renamed = renamed_columns([*first.texts, *(first.columns or ())], labels)
    for column in first.texts:
        columns[renamed.get(column, column)] = [example.texts[column] for example in examples]
    for column in first.columns or ():
        columns[renamed.get(column, column)] = [
            (example.columns or {}).get(column) for example in examples
        ]
    if any(example.label is not None for example in examples):
        columns["gold"] = [example.label for example in examples]
    columns["predicted"] = [_answer(row, labels, several=task.multi_label) for row in probabilities]
    for index, label in enumerate(labels):
        columns[f"p_{label}"] = probabilities[:, index].tolist()
    if sets is not None:
        names = np.array(labels, dtype=object)
        columns[SET] = [SEVERAL.join(names[row]) for row in sets]
        columns[SET_SIZE] = sets.sum(axis=1).tolist()
    return pd.DataFrame(columns)


def renamed_columns(columns: Sequence[str], labels: Sequence[str]) -> Mapping[str, str]:
    """Return new names of the user's columns that are called like one of ours: `text_gold`."""
    ours = {*OWN, *(f"p_{label}" for label in labels)}
    taken = {*ours, *columns}
    renamed: dict[str, str] = {}
    for column in columns:
        if column in ours:
            name = f"text_{column}"
            while name in taken:
                name = f"text_{name}"
            taken.add(name)
            renamed[column] = name
    return renamed


def renaming_note(examples: Sequence[Example], labels: Sequence[str]) -> str | None:
    """Return a line that says which columns stand under other names in predictions, or None."""
    if not examples:
        return None
    renamed = renamed_columns([*examples[0].texts, *(examples[0].columns or ())], labels)
    if not renamed:
        return None
    pairs = ", ".join(f"{old} is called {new}" for old, new in renamed.items())
    return f"in predictions the table's column {pairs}, as they have a column of that name"


def _answer(row: FloatArray, labels: Sequence[str], *, several: bool) -> str | None:
    if np.isnan(row).all():
        return None
    if several:
        chosen = (name for name, p in zip(labels, row, strict=True) if p >= THRESHOLD)
        return SEVERAL.join(sorted(chosen))
    return labels[int(row.argmax())]
