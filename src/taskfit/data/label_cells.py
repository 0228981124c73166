"""Read the labels of a table: one name a row, several, or shares of all."""

import ast
import json
import re
from collections.abc import Iterable, Set

import numpy as np
import pandas as pd

from taskfit.data.cells import NotText, not_texts, shortened, text_of
from taskfit.data.columns import Columns, some_rows
from taskfit.errors import DataError

# What people put between several labels of a text.
SEPARATORS = (",", ";", "|", "/", "\t", "+")
# Joins the names of several labels of one text.
SEVERAL = "|"
# How NumPy writes an array of texts, and the texts in it.
QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
NUMPY = re.compile(rf"\[\s*(?:(?:{QUOTED.pattern})\s*)+\]")
LabelAndTarget = tuple[str | None, dict[str, float] | None]


def read_labels(
    table: pd.DataFrame, columns: Columns, *, source: str, required: bool
) -> list[LabelAndTarget]:
    """Read the label column: one name a row, or several with a separator between."""
    column = table[str(columns.label)]
    if columns.separator is not None:
        rows = []
        for parts in _several(column, columns.separator, source):
            names = sorted({columns.values.get(part, part) for part in parts})
            # A row without any of the labels is an answer too.
            rows.append((SEVERAL.join(names), dict.fromkeys(names, 1.0)))
        return list(rows)
    _check_one_each(column, source)
    raw = [value.strip() for value in column]
    if required:
        without = [str(line) for line, value in zip(table.index, raw, strict=True) if not value]
        if without:
            joined = joined_labels(raw)
            several = "" if joined is None else f" Or {joined}: then a text may have none, too."
            raise DataError(
                f"{source}: {some_rows(without)} without a label in column {columns.label!r}. Fill "
                f"them in or remove them; to label texts, use `taskfit predict`.{several}"
            )
    return [(columns.values.get(value, value) or None, None) for value in raw]


def joined_labels(labels: Iterable[str]) -> str | None:
    """Return what to set where labels seem to be several of the others joined; None: they do not.

    Args:
        labels: Of all rows.
    """
    names = set(labels) - {""}
    found = ((mark, joined_label(names, mark)) for mark in SEPARATORS)
    return next(
        (
            f"if {name!r} is several labels, set task.multi_label=true and "
            f"data.label_separator={mark!r}"
            for mark, name in found
            if name is not None
        ),
        None,
    )


def joined_label(names: Set[str], mark: str) -> str | None:
    """Return the first name that is several of the others with a mark between; None: none is."""
    return next(
        (n for n in sorted(names) if mark in n and all(p.strip() in names for p in n.split(mark))),
        None,
    )


def _several(column: "pd.Series[str]", separator: str, source: str) -> list[list[str]]:
    """Return the labels of each row: of a list its entries, of a text what stands between."""
    as_lists = holds_lists(column)
    found = []
    for line, value in column.items():
        entries = _entries(value) if as_lists else None
        if isinstance(value, NotText) and entries is None:
            raise DataError(
                f"{source}:{line}: {shortened(value)} in label column {column.name!r} are no "
                "labels. Give a list of names, or names with data.label_separator between."
            )
        parts = value.split(separator) if entries is None else entries
        found.append([part.strip() for part in parts if part.strip()])
    return found


def holds_lists(column: "pd.Series[str]") -> bool:
    """Return whether a label column holds lists, or nothing but texts that are written as lists."""
    return column.dtype == object or _all_lists(column)


def _check_one_each(column: "pd.Series[str]", source: str) -> None:
    """Check that labels of a task of one label a text are no lists.

    Raises:
        DataError: Naming the first and what to do.
    """
    found = not_texts(column)
    if not found and _all_lists(column):
        found = [(0, NotText("a list", str(column.iloc[0])))]
    if not found:
        return
    place, value = found[0]
    where = f"{source}:{column.index[place]}: the label in column {column.name!r} is {value.what}"
    if value.what == "a list":
        raise DataError(
            f"{where}, {shortened(str(column.iloc[place]))}, but this task gives a text one label. "
            "Set task.multi_label=true (--set task.multi_label=true) for several, with method "
            "head, probe, tfidf or encoder; or write one label into each row."
        )
    raise DataError(f"{where}: {shortened(value)}. Write the label's name there.")


def _all_lists(column: "pd.Series[str]") -> bool:
    """Return whether all labels of a column are lists as Python, NumPy or JSON write them.

    Names such as [1] and [2] alone are none.
    """
    filled = [value for value in dict.fromkeys(column) if value.strip()]
    return any(set(value) & set("'\",") for value in filled) and all(
        _entries(value) is not None for value in filled
    )


def _entries(value: str) -> list[str] | None:
    """Return the entries of a list, also of one written as text; None where it is none."""
    if isinstance(value, NotText):
        entries = value.value
    else:
        if not (value.startswith("[") and value.endswith("]")):
            return None
        entries = _parsed(value)
    if not isinstance(entries, list):
        return None
    texts = [text_of(entry) for entry in entries if entry is not None]
    return None if any(isinstance(text, NotText) for text in texts) else texts


def _parsed(value: str) -> object:
    try:
        return json.loads(value)
    except ValueError:
        pass
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    # Entries of a NumPy array stand without commas, which Python would join to one.
    if repr(found) != value:
        return [a or b for a, b in QUOTED.findall(value)] if NUMPY.fullmatch(value) else None
    return found


def read_shares(
    table: pd.DataFrame, columns: Columns, *, source: str, required: bool
) -> list[LabelAndTarget]:
    """Read one column of shares a label; a row's shares are divided by their sum."""
    names = list(columns.shares)
    given = table[[columns.shares[name] for name in names]]
    values = given.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)  # (N, L)
    bad = ~np.isfinite(values).all(axis=1) | (values < 0).any(axis=1) | (values.sum(axis=1) <= 0)
    if bad.any() and required:
        lines = [str(line) for line, is_bad in zip(table.index, bad, strict=True) if is_bad]
        raise DataError(
            f"{source}: {some_rows(lines)} whose shares in {', '.join(columns.shares.values())} "
            "are not numbers of at least 0 with a sum above 0. Correct or remove them."
        )
    rows: list[LabelAndTarget] = [(None, None)] * len(values)
    for row in np.flatnonzero(~bad):
        shares = values[row] / values[row].sum()
        rows[row] = (names[int(shares.argmax())], dict(zip(names, shares.tolist(), strict=True)))
    return rows
