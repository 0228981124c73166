"""Texts and labels that are given in Python: checked, with positions, before any work."""

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taskfit.data.cells import sound
from taskfit.data.tables import as_text
from taskfit.errors import DataError, suggestion

# Positions that a message lists.
SHOWN = 5
# Values of a column that are no text.
NO_TEXT = (bytes, bytearray, Mapping, list, tuple, set, frozenset, np.ndarray, pd.Series)
WHAT_TO_GIVE = "give strings, or mappings from column names to strings"
Labels = NDArray[Any]


def text_rows(texts: Any, columns: Sequence[str] | None = None) -> list[dict[str, str]]:  # noqa: ANN401
    """Return texts as rows of columns.

    Args:
        texts: A DataFrame, or a list, tuple, array or Series of strings or mappings.
        columns: The task's; further ones are left out. None: those of the DataFrame or the first
            row, which all rows must have.

    Raises:
        DataError: If there are none, one is neither text nor mapping, a column is missing, or a
            value is missing, no text, or no characters.
    """
    if isinstance(texts, pd.DataFrame):
        table = _columns_of(texts, columns)
    else:
        found = [_row(text, f"texts[{i}]", columns) for i, text in enumerate(many(texts, "texts"))]
        if not found:
            raise DataError("There are no texts.")
        _check_same_columns(found)
        table = pd.DataFrame(found, columns=list(found[0]), dtype=object)
    if table.empty:
        raise DataError("There are no texts.")
    for name in table.columns:
        _check_values(table[name].tolist(), name, is_only=len(table.columns) == 1)
    texts_only = as_text(table.reset_index(drop=True))
    return [{str(k): v for k, v in row.items()} for row in texts_only.to_dict("records")]


def check_some_text(rows: Sequence[Mapping[str, str]]) -> None:
    """Raise unless every row has a text to learn from.

    Raises:
        DataError: Naming the positions of those that have none.
    """
    empty = [f"texts[{i}]" for i, row in enumerate(rows) if not any(map(str.strip, row.values()))]
    if empty:
        raise DataError(
            f"{_listed(empty)} without any text: there is nothing to learn from. Remove them, with "
            "their labels."
        )


def label_array(labels: Any) -> Labels:  # noqa: ANN401
    """Return labels as an array of their own type, (N,).

    Args:
        labels: A list, tuple, array or Series of strings, whole numbers or booleans.

    Raises:
        DataError: If one is missing or of no such type, types are mixed, or a text has white space
            around it, no characters, or half of a surrogate pair.
    """
    given = many(labels, "labels")
    if isinstance(given, np.ndarray):
        given = given.ravel()
    values = [_plain(value) for value in given]
    missing = [f"labels[{i}] ({value})" for i, value in enumerate(values) if _is_missing(value)]
    if missing:
        raise DataError(
            f"{_listed(missing)} missing. Leave these texts out of fitting, or give them a label."
        )
    kinds: dict[str, int] = {}
    for i, value in enumerate(values):
        kinds.setdefault(_kind(value, f"labels[{i}]"), i)
    if len(kinds) > 1:
        found = ", ".join(f"{kind} (labels[{i}]: {values[i]!r})" for kind, i in kinds.items())
        raise DataError(f"Labels are of one type, but there are {found}. Turn them into one.")
    if "strings" in kinds:
        for i, value in enumerate(values):
            _check_name(value, f"labels[{i}]")
    # Numbers in an array of objects are numbers; strings stay what they were.
    array = np.asarray(given)
    if array.dtype.kind == "T":
        return array.astype(object)
    return array if array.dtype.kind != "O" or "strings" in kinds else np.array(values)


def check_same_kind(labels: Labels, classes: Labels) -> None:
    """Raise unless labels are texts where the classes are.

    Raises:
        DataError: Naming both kinds.
    """
    texts = [bool(len(v)) and isinstance(v.tolist()[0], str) for v in (labels, classes)]
    if texts[0] != texts[1]:
        kinds = ("text", "numbers") if texts[1] else ("numbers", "text")
        raise DataError(
            f"The classes are {kinds[0]} ({classes[0]!r}, ...), but the labels are {kinds[1]} "
            f"({labels[0]!r}, ...). Turn the labels into the classes' type."
        )


def label_name(value: object) -> str:
    """Return what a label is called in tables and prompts: 1.0 is 1, as in a table's column."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def many(values: Any, what: str) -> Any:  # noqa: ANN401
    """Return what is to be a list of values, or say what to give.

    Raises:
        DataError: If it is one value, without order, without a length, or a table.
    """
    if isinstance(values, str | bytes | Mapping):
        one = "a mapping" if isinstance(values, Mapping) else "one string"
        table = " or a DataFrame" if isinstance(values, Mapping) else ""
        raise DataError(
            f"{what} is {one}; give a list{table}, also of a single one: [{what[:-1]}]."
        )
    shape = getattr(values, "shape", None)
    if shape is not None and len(shape) != 1 and not (len(shape) == 2 and what == "labels"):
        sparse = "sparse " * hasattr(values, "nnz")
        raise DataError(
            f"{what} is a {sparse}matrix of shape {tuple(shape)}; give a list, or a DataFrame with "
            "named columns."
        )
    if shape is not None and len(shape) == 2 and shape[1] != 1:
        raise DataError(
            f"y should be a 1d array, got an array of shape {tuple(shape)} instead: one label a "
            "text."
        )
    is_ordered = isinstance(values, Iterable) and not isinstance(values, set | frozenset)
    if not is_ordered or not hasattr(values, "__len__"):
        raise DataError(f"{what} is a {type(values).__name__}; give a list, an array or a Series.")
    return values.to_numpy() if isinstance(values, pd.DataFrame) else values


def _columns_of(table: pd.DataFrame, columns: Sequence[str] | None) -> pd.DataFrame:
    """Return the columns of a table by their names as text."""
    names = [str(name) for name in table.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"The DataFrame has several columns named {', '.join(twice)}. Rename them.")
    _check_columns(names, columns or (), "The DataFrame")
    return table.set_axis(names, axis=1)[list(columns or names)]


def _row(text: object, where: str, columns: Sequence[str] | None) -> dict[str, object]:
    """Return one text as a row of columns; see `text_rows`."""
    if isinstance(text, Mapping):
        row = {str(key): value for key, value in text.items()}
        _check_columns(list(row), columns or (), where)
        return {name: row[name] for name in columns or row}
    if not isinstance(text, str):
        missing = f" ({text}, a missing text)" if _is_missing(text) else ""
        raise DataError(f"{where} is a {type(text).__name__}{missing}; {WHAT_TO_GIVE}.")
    if columns is not None and len(columns) > 1:
        raise DataError(
            f"{where} is one string, but this task reads the columns {', '.join(columns)}; give "
            "mappings with these, or a DataFrame."
        )
    return {columns[0] if columns else "text": text}


def _check_same_columns(rows: Sequence[Mapping[str, object]]) -> None:
    first = list(rows[0])
    if not first:
        raise DataError("texts[0] has no columns; give at least one text a row.")
    for i, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            _check_columns(list(row), first, f"texts[{i}]")
            more = next(name for name in row if name not in rows[0])
            raise DataError(f"texts[{i}] has a column {more!r}, which texts[0] has not.")


def _check_columns(present: Sequence[str], columns: Sequence[str], where: str) -> None:
    for name in columns:
        if name not in present:
            raise DataError(
                f"{where} has no column {name!r}, which this task reads; it has: "
                f"{', '.join(present)}.{suggestion(name, present)}"
            )


def _check_values(values: Sequence[object], column: str, *, is_only: bool) -> None:
    """Check the values of a column."""
    where = "" if is_only else f"[{column!r}]"
    missing = [
        f"texts[{i}]{where} ({value})" for i, value in enumerate(values) if _is_missing(value)
    ]
    if missing:
        raise DataError(
            f"{_listed(missing)} missing in column {column!r}. Give a text, which may be empty "
            '(of a DataFrame: table.fillna("")), or leave these rows out.'
        )
    for i, value in enumerate(values):
        if isinstance(value, NO_TEXT):
            raise DataError(
                f"texts[{i}][{column!r}] is a {type(value).__name__}; texts are strings."
            )
        if isinstance(value, str):
            sound(value, f"texts[{i}]{where}")


def _check_name(name: str, where: str) -> None:
    if not name.strip():
        raise DataError(f"{where} is missing ({name!r}, an empty label). Give it a name.")
    if name != name.strip():
        raise DataError(
            f"{where} is {name!r}, with white space around it, which label columns do not keep. "
            "Remove it (label.strip())."
        )
    sound(name, where)


def _plain(value: object) -> Any:  # noqa: ANN401
    return value.item() if isinstance(value, np.generic) else value


def _is_missing(value: object) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))  # type: ignore[call-overload]


def _kind(value: object, where: str) -> str:
    """Return what a label is: strings, booleans or numbers."""
    if isinstance(value, str):
        return "strings"
    if isinstance(value, bool):
        return "booleans"
    if isinstance(value, numbers.Integral):
        return "numbers"
    if isinstance(value, float):
        if value.is_integer():
            return "numbers"
        raise DataError(
            f"Unknown label type: continuous. {where} is {value!r}; labels are classes: strings, "
            "whole numbers or booleans."
        )
    several = " A text has one label here." if isinstance(value, list | tuple | set) else ""
    raise DataError(
        f"{where} is a {type(value).__name__} ({value!r:.60}); labels are strings, whole numbers "
        f"or booleans.{several}"
    )


def _listed(found: Sequence[str]) -> str:
    shown = ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" * (len(found) > SHOWN))
    return f"{shown} {'are' if len(found) > 1 else 'is'}"
