"""Predictions as tables: what `predict` writes and what a run keeps of each evaluation set."""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.data.label_cells import SEVERAL
from taskfit.errors import SettingsError
from taskfit.files import file_atomic
from taskfit.runs.asked import AskedQuestion
from taskfit.settings import check_set_name
from taskfit.tasks import Task

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

SET, SET_SIZE = "prediction_set", "prediction_set_size"
ABSTAINED = "abstained"
OWN = ("gold", "predicted", "expected", ABSTAINED, SET, SET_SIZE)
SHORTENED, ERROR = "shortened", "error"  # of a text, whatever is asked about it
ID = "id"
NO_TEXT = "the row has no text"


def write_predictions(
    folder: Path,
    name: str,
    examples: Sequence[Example],
    probabilities: FloatArray,
    questions: Mapping[str, AskedQuestion],
    shortened: Set[str] | None = None,
) -> None:
    """Write `predictions/NAME.parquet`, as `prediction_table` makes it.

    Raises:
        SettingsError: If no file can have the set's name.
    """
    checked_set_name(name)
    with file_atomic(folder / "predictions" / f"{name}.parquet") as path:
        table = prediction_table(examples, probabilities, questions, shortened=shortened)
        table.to_parquet(path, index=False)


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
    questions: Mapping[str, AskedQuestion],
    *,
    sets: Mapping[str, BoolArray] = MappingProxyType({}),
    abstain_below: float | None = None,
    shortened: Set[str] | None = None,
    errors: Mapping[int, str] = MappingProxyType({}),
    keeps_id: bool = False,
) -> pd.DataFrame:
    """Return one row an example: id, texts, carried columns, gold, predicted, p_LABEL each.

    Then there are `shortened`, whether the text lost its end, and `error`, why a row has no answer;
    it is empty where all is well.

    Of several questions there are gold_QUESTION, predicted_QUESTION, p_QUESTION_LABEL, and of a
    score expected_QUESTION, the expected level. Gold stands there where it is known. Several labels
    stand with `|` between them; where there is no answer, `predicted` is empty. Columns of the
    user's that are called like ours are renamed; see `renamed_columns`.

    Args:
        examples: N texts.
        probabilities: (N, L), the labels of all questions side by side.
        questions: By name.
        sets: Question -> which labels are in each prediction set, (N, L_q); adds sets and sizes.
        abstain_below: Answers of a lower probability are left out; adds `abstained`, which is empty
            in a row that was not asked. None: all are given.
        shortened: Ids of texts that lost their end; None: it is not known, and there is no column.
        errors: Place of a row -> why it has no answer, beside those that have no text.
        keeps_id: Whether a carried column `id` stands in the place of ours, which says file and
            line.
    """
    columns: dict[str, Sequence[object] | pd.Series[Any]] = {
        ID: [example.id for example in examples]
    }
    first = examples[0]
    tasks = {name: question.task for name, question in questions.items()}
    renamed = _renamed(first, tasks, keeps_id=keeps_id)
    for column in first.texts:
        columns[renamed.get(column, column)] = [example.texts[column] for example in examples]
    for column in first.columns or ():
        columns[renamed.get(column, column)] = [
            (example.columns or {}).get(column) for example in examples
        ]
    for name, question in questions.items():
        task, end = question.task, question.ending
        labels, own = task.label_names, probabilities[:, question.columns]
        gold = [example.of(name).label for example in examples]
        if any(label is not None for label in gold):
            columns[f"gold{end}"] = gold
        answers = _answers(own, question)
        columns[f"predicted{end}"] = answers
        if abstain_below is not None:
            is_sure = own.max(axis=1) >= abstain_below
            columns[f"predicted{end}"] = [
                answer if sure else None for answer, sure in zip(answers, is_sure, strict=True)
            ]
            asked = np.array([not (e.is_blank or i in errors) for i, e in enumerate(examples)])
            columns[f"{ABSTAINED}{end}"] = pd.Series(~is_sure, dtype="boolean").where(asked)
        if task.levels:
            columns[f"expected{end}"] = (own @ np.array(task.levels)).tolist()
        for index, label in enumerate(labels):
            columns[f"p{end}_{label}"] = own[:, index].tolist()
        if name in sets:
            names = np.array(labels, dtype=object)
            chosen: list[list[str] | None] = [
                None if np.isnan(row).all() else list(names[is_in])
                for row, is_in in zip(own, sets[name], strict=True)
            ]
            sizes = [None if row is None else len(row) for row in chosen]
            columns[f"{SET}{end}"] = [None if row is None else SEVERAL.join(row) for row in chosen]
            columns[f"{SET_SIZE}{end}"] = pd.Series(sizes, dtype="Int64")
    if shortened is not None:
        columns[SHORTENED] = [example.id in shortened for example in examples]
    columns[ERROR] = [
        errors.get(place, NO_TEXT if example.is_blank else None)
        for place, example in enumerate(examples)
    ]
    return pd.DataFrame(columns)


def renamed_columns(
    columns: Sequence[str], labels: Mapping[str, Sequence[str]]
) -> Mapping[str, str]:
    """Return new names of the user's columns that are called like one of ours: `text_gold`.

    Args:
        columns: The user's.
        labels: Question -> its labels.
    """
    ours = {ID, SHORTENED, ERROR}
    for name, own in labels.items():
        end = f"_{name}" if name else ""
        ours |= {f"{column}{end}" for column in OWN if name or column != "expected"}
        ours |= {f"p{end}_{label}" for label in own}
    return names_beside(columns, ours)


def names_beside(columns: Sequence[str], ours: Set[str]) -> Mapping[str, str]:
    """Return new names of those of the user's columns that are called like one of ours."""
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


def renaming_note(
    examples: Sequence[Example], tasks: Mapping[str, Task], *, keeps_id: bool = False
) -> str | None:
    """Return a line that says which columns stand under other names in predictions, or None."""
    renamed = _renamed(examples[0], tasks, keeps_id=keeps_id) if examples else {}
    if not renamed:
        return None
    pairs = ", ".join(f"{old} is called {new}" for old, new in renamed.items())
    return f"in predictions the table's column {pairs}, as they have a column of that name"


def count_errors(num: int) -> str:
    """Return words for rows that have no answer."""
    return f"{num:,} row{'s' * (num != 1)} without a text, marked in the column {ERROR}"


def _renamed(
    example: Example, tasks: Mapping[str, Task], *, keeps_id: bool = False
) -> Mapping[str, str]:
    labels = {name: task.label_names for name, task in tasks.items()}
    carried = [name for name in example.columns or () if not (keeps_id and name == ID)]
    return renamed_columns([*example.texts, *carried], labels)


def _answers(rows: FloatArray, question: AskedQuestion) -> list[str | None]:
    """Return the answer to each text, None where there is none; of several labels those given."""
    labels = question.task.label_names
    answered = np.asarray(~np.isnan(rows).all(axis=1))
    if question.task.multi_label:
        names = np.array(labels, dtype=object)
        found = [SEVERAL.join(sorted(names[given])) for given in question.given(rows)]
    else:
        found = [labels[place] for place in np.nan_to_num(rows).argmax(axis=1)]
    return [answer if given else None for answer, given in zip(found, answered, strict=True)]
