"""The one type that leaves this package: a labelled text with its place of origin."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taskfit.errors import DataError, suggestion

FloatArray = NDArray[np.float64]

# Joins the names of several labels of one text.
SEVERAL = "|"
LabelAndTarget = tuple[str | None, dict[str, float] | None]


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a table.

    Attributes:
        id: Where the row comes from, such as `train.csv:17` (file and line); used in messages
            and in the predictions file.
        texts: The text columns by name, in the task's order.
        label: The label's name, or None where it is not known. Of a text with several labels, their
            names with `|` between; of one with a distribution, the most probable; of one with
            several questions, the first that is answered and its answer, by which draws go.
        target: Label -> weight where one name does not say it all: shares that sum to 1, or 1 for
            each of several labels.
        columns: Further columns that are carried along for slices, not shown to any model; None
            without any.
        answers: Question -> its label, those that are known; None where there is one question.
    """

    id: str
    texts: Mapping[str, str]
    label: str | None = None
    target: Mapping[str, float] | None = None
    columns: Mapping[str, str] | None = None
    answers: Mapping[str, str] | None = None

    def of(self, question: str) -> "Example":
        """Return it as an example of one of its questions; itself where it has one."""
        if self.answers is None:
            return self
        return Example(self.id, self.texts, self.answers.get(question), columns=self.columns)

    @property
    def is_blank(self) -> bool:
        """Return whether there is no text in it."""
        return not any(text.strip() for text in self.texts.values())

    def bare(self) -> "Example":
        """Return the texts without labels."""
        return Example(self.id, self.texts)

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the names of all its labels; of none, nothing."""
        if self.label is None:
            return ()
        return (self.label,) if self.target is None else tuple(self.target)

    def target_vector(self, labels: Sequence[str]) -> FloatArray | None:
        """Return the weights of the labels in order, (L,), or None without a label."""
        if self.label is None:
            return None
        weights = {self.label: 1.0} if self.target is None else self.target
        return np.array([weights.get(label, 0.0) for label in labels])


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a table are read.

    Attributes:
        text: Text columns in the task's order.
        label: Label column, or None for texts without labels.
        values: Values in the table -> label names; values not in it are label names already.
        shares: Label -> column with its share, for distributions over labels.
        separator: What stands between several labels of a row; None: a row has one.
        carried: Further columns to carry along where the table has them.
    """

    text: tuple[str, ...]
    label: str | None
    values: Mapping[str, str] = field(default_factory=dict)
    shares: Mapping[str, str] = field(default_factory=dict)
    separator: str | None = None
    carried: tuple[str, ...] = ()


def to_examples(
    table: pd.DataFrame,
    columns: Columns,
    *,
    source: str,
    require_labels: bool = True,
    require_text: bool = True,
) -> list[Example]:
    """Turn rows into examples.

    Args:
        table: As `read_table` returns it.
        columns: What to read.
        source: Name of the table, for ids and messages.
        require_labels: False leaves labels None where column or value is missing.
        require_text: False lets rows without any text through; see `Example.is_blank`.

    Raises:
        DataError: If a column is missing, a row has no text at all, or no label.
    """
    present = [str(name) for name in table.columns]
    lines = [str(line) for line in table.index]
    # A table of single labels may stand beside one of shares, such as a test set.
    has_shares = any(name in present for name in columns.shares.values())
    use_shares = bool(columns.shares) and (has_shares or columns.label not in present)
    label_columns = [columns.label] if columns.label else []
    if use_shares:
        label_columns = list(columns.shares.values())
    has_labels = bool(label_columns) and (
        require_labels or all(name in present for name in label_columns)
    )
    check_present([*columns.text, *(label_columns if has_labels else ())], present, source)
    texts = {name: table[name].tolist() for name in columns.text}
    empty = [
        line
        for i, line in enumerate(lines)
        if not any(str(texts[name][i]).strip() for name in columns.text)
    ]
    if empty and require_text:
        raise DataError(
            f"{source}: {_rows(empty)} without any text in {', '.join(columns.text)}. Remove them."
        )
    labels: list[LabelAndTarget] = [(None, None)] * len(lines)
    if has_labels and use_shares:
        labels = _shares(table, columns, source=source, required=require_labels)
    elif has_labels:
        labels = _labels(table, columns, source=source, required=require_labels)
    carried = _carried(table, columns)
    return [
        Example(
            id=f"{source}:{line}",
            texts={name: str(texts[name][i]) for name in columns.text},
            label=labels[i][0],
            target=labels[i][1],
            columns=carried[i],
        )
        for i, line in enumerate(lines)
    ]


def _carried(table: pd.DataFrame, columns: Columns) -> list[dict[str, str] | None]:
    """Return what each row carries along; rows with the same values share one mapping."""
    present = {str(name): name for name in table.columns}
    names = [name for name in columns.carried if name in present and name not in columns.text]
    if not names:
        return [None] * len(table)
    shared: dict[tuple[str, ...], dict[str, str]] = {}
    values = zip(*(table[present[name]].astype(str) for name in names), strict=True)
    return [shared.setdefault(row, dict(zip(names, row, strict=True))) for row in values]


def check_present(names: Sequence[str], present: Sequence[str], source: str) -> None:
    """Check that a table has columns.

    Raises:
        DataError: Naming the first that it has not.
    """
    for name in names:
        if name not in present:
            raise DataError(
                f"{source} has no column {name!r}; it has: {', '.join(present)}."
                f"{suggestion(name, present)} Name columns with --text and --label."
            )


def _labels(
    table: pd.DataFrame, columns: Columns, *, source: str, required: bool
) -> list[LabelAndTarget]:
    """Read the label column: one name a row, or several with a separator between."""
    raw = [str(value).strip() for value in table[str(columns.label)]]
    if columns.separator is not None:
        rows = []
        for value in raw:
            parts = [part.strip() for part in value.split(columns.separator) if part.strip()]
            names = sorted({columns.values.get(part, part) for part in parts})
            # A row without any of the labels is an answer too.
            rows.append((SEVERAL.join(names), dict.fromkeys(names, 1.0)))
        return list(rows)
    if required:
        without = [str(line) for line, value in zip(table.index, raw, strict=True) if not value]
        if without:
            raise DataError(
                f"{source}: {_rows(without)} without a label in column {columns.label!r}. Fill "
                "them in or remove them; to label texts, use `taskfit predict`."
            )
    return [(columns.values.get(value, value) or None, None) for value in raw]


def _shares(
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
            f"{source}: {_rows(lines)} whose shares in {', '.join(columns.shares.values())} are "
            "not numbers of at least 0 with a sum above 0. Correct or remove them."
        )
    rows: list[LabelAndTarget] = [(None, None)] * len(values)
    for row in np.flatnonzero(~bad):
        shares = values[row] / values[row].sum()
        rows[row] = (names[int(shares.argmax())], dict(zip(names, shares.tolist(), strict=True)))
    return rows


def check_labels(examples: Sequence[Example], labels: Sequence[str]) -> None:
    """Check that every label is one of the task's.

    Raises:
        DataError: Listing the first unknown ones and what is allowed.
    """
    known = set(labels)
    unknown = [
        (example, name) for example in examples for name in example.labels if name not in known
    ]
    if unknown:
        found = ", ".join(f"{name!r} ({example.id})" for example, name in unknown[:5])
        raise DataError(
            f"{len(unknown)} row{'s' * (len(unknown) > 1)} with an unknown label: {found}. The "
            f"task's labels are: {', '.join(labels)}."
            f"{suggestion(unknown[0][1], list(labels))}"
        )


def check_one_label_each(examples: Sequence[Example], separator: str) -> None:
    """Check that no label is several of the others joined, in a task of one label a text.

    Raises:
        DataError: Naming the first such labels and what to do.
    """
    names = {example.label for example in examples if example.label is not None}
    joined = sorted(
        name
        for name in names
        if separator in name and all(part.strip() in names for part in name.split(separator))
    )
    if joined:
        where = next(example.id for example in examples if example.label == joined[0])
        raise DataError(
            f"Some rows have several labels, such as {joined[0]!r} ({where}), but this task gives "
            "a text one label. Set task.multi_label=true for several (with method head, probe, "
            f"tfidf or encoder), or another data.label_separator if {separator!r} is part of a "
            "name."
        )


def check_several_classes(examples: Sequence[Example]) -> None:
    """Check that there is more than one class.

    Raises:
        DataError: If all examples have the same label.
    """
    found = {example.label for example in examples}
    if len(found) == 1:
        raise DataError(
            f"All {len(examples)} training examples have the label {found.pop()!r}; a classifier "
            "needs at least two classes. Is it the right label column, and the whole file?"
        )


def label_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """Return the distinct labels in natural order (2 before 10)."""
    names = {name for example in examples for name in example.labels}

    def key(name: str) -> list[tuple[int, int, str]]:
        parts = re.split(r"(\d+)", name)
        return [(0, int(p), "") if p.isdigit() else (1, 0, p.casefold()) for p in parts if p]

    return tuple(sorted(names, key=lambda name: (key(name), name)))


def _rows(lines: Sequence[str]) -> str:
    shown = ", ".join(lines[:5]) + (", ..." if len(lines) > 5 else "")
    return f"{len(lines)} row{'s' * (len(lines) > 1)} (line {shown})"


def class_counts(examples: Sequence[Example]) -> Counter[str]:
    """Return how many examples each label has."""
    return Counter(str(example.label) for example in examples)


def mean_words(examples: Sequence[Example]) -> float:
    """Return the words of a text on average, all columns together; 0 without texts."""
    return fmean([sum(len(text.split()) for text in e.texts.values()) for e in examples] or [0.0])
