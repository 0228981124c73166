"""The one type that leaves this package: a labelled text with its place of origin."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taskfit.data.cells import not_texts, shortened
from taskfit.data.columns import Columns, check_present, some_rows
from taskfit.data.label_cells import LabelAndTarget, joined_label, read_labels, read_shares
from taskfit.data.visible import visible
from taskfit.errors import DataError, suggestion

FloatArray = NDArray[np.float64]


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


def to_examples(
    table: pd.DataFrame,
    columns: Columns,
    *,
    source: str,
    require_labels: bool = True,
    require_text: bool = True,
) -> list[Example]:
    """Turn rows into examples.

    Where labels are read, rows with neither text nor label are left out, as spreadsheets have them
    at their ends; `left_out_note` counts them.

    Args:
        table: As `read_table` returns it.
        columns: What to read.
        source: Name of the table, for ids and messages.
        require_labels: False leaves labels None where column or value is missing.
        require_text: False lets rows without any text through; see `Example.is_blank`.

    Raises:
        DataError: If a column is missing, a row has no text at all, or no label, or a list or an
            object where there must be a text.
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
    read = [*columns.text, *(label_columns if has_labels else ())]
    check_present(read, present, source, columns.advice)
    _check_texts(table, columns.text, source)
    if has_labels:
        table = without_blank(table, read)
        lines = [str(line) for line in table.index]
    texts = {name: table[name].tolist() for name in columns.text}
    empty = [
        line
        for i, line in enumerate(lines)
        if not any(str(texts[name][i]).strip() for name in columns.text)
    ]
    if empty and require_text:
        raise DataError(
            f"{source}: {some_rows(empty)} without any text in {', '.join(columns.text)}. Remove "
            "them."
        )
    labels: list[LabelAndTarget] = [(None, None)] * len(lines)
    if has_labels and use_shares:
        labels = read_shares(table, columns, source=source, required=require_labels)
    elif has_labels:
        labels = read_labels(table, columns, source=source, required=require_labels)
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


def left_out_note(table: pd.DataFrame, examples: Sequence[Example], source: str) -> str | None:
    """Say how many rows of a table are no examples, having neither text nor label; None: all are.

    Args:
        table: As it was read.
        examples: What `to_examples` made of it.
        source: Name of the table.
    """
    left = len(table) - len(examples)
    if not left:
        return None
    return f"{source}: {left:,} row{'s' * (left > 1)} with neither text nor label left out"


def without_blank(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return a table without the rows that are blank in all of these columns."""
    rows = zip(*(table[name].tolist() for name in names), strict=True)
    filled = np.array([any(value.strip() for value in row) for row in rows], dtype=bool)
    return table if filled.all() else table[filled]


def _check_texts(table: pd.DataFrame, names: Sequence[str], source: str) -> None:
    """Check that columns hold texts.

    Raises:
        DataError: Naming column and line of what is none.
    """
    for name in names:
        found = not_texts(table[name])
        if found:
            value = found[0][1]
            lines = [str(table.index[i]) for i, _ in found]
            raise DataError(
                f"{source}: column {name!r} holds {value.what} in {some_rows(lines)}: "
                f"{shortened(value)}. Texts are needed; write what is meant into a column of its "
                "own."
            )


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
        found = ", ".join(f"{visible(name)} ({example.id})" for example, name in unknown[:5])
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
    joined = joined_label(names, separator)
    if joined is not None:
        where = next(example.id for example in examples if example.label == joined)
        raise DataError(
            f"Some rows have several labels, such as {joined!r} ({where}), but this task gives "
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
        return [(0, int(p), "") if p.isdecimal() else (1, 0, p.casefold()) for p in parts if p]

    return tuple(sorted(names, key=lambda name: (key(name), name)))


def class_counts(examples: Sequence[Example]) -> Counter[str]:
    """Return how many examples each label has."""
    return Counter(str(example.label) for example in examples)


def mean_words(examples: Sequence[Example]) -> float:
    """Return the words of a text on average, all columns together; 0 without texts."""
    return fmean([sum(len(text.split()) for text in e.texts.values()) for e in examples] or [0.0])
