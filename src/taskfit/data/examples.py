"""The one type that leaves this package: a labelled text with its place of origin."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from taskfit.data.tables import suggestion
from taskfit.errors import DataError

LABEL_NAMES = ("label", "labels", "class", "category", "target", "intent", "sentiment", "y")


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a table.

    Attributes:
        id: Where the row comes from, such as `train.csv:17` (file and line); used in messages
            and in the predictions file.
        texts: The text columns by name, in the task's order.
        label: The label's name, or None where it is not known.
    """

    id: str
    texts: Mapping[str, str]
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a table are read.

    Attributes:
        text: Text columns in the task's order.
        label: Label column, or None for texts without labels.
        values: Values in the table -> label names; values not in it are label names already.
    """

    text: tuple[str, ...]
    label: str | None
    values: Mapping[str, str] = field(default_factory=dict)


def to_examples(
    table: pd.DataFrame, columns: Columns, *, source: str, require_labels: bool = True
) -> list[Example]:
    """Turn rows into examples.

    Args:
        table: As `read_table` returns it.
        columns: What to read.
        source: Name of the table, for ids and messages.
        require_labels: False leaves labels None where column or value is missing.

    Raises:
        DataError: If a column is missing, a row has no text at all, or no label.
    """
    present = [str(name) for name in table.columns]
    wanted = list(columns.text)
    has_labels = columns.label is not None and (require_labels or columns.label in present)
    if has_labels:
        wanted.append(str(columns.label))
    for name in wanted:
        if name not in present:
            raise DataError(
                f"{source} has no column {name!r}; it has: {', '.join(present)}."
                f"{suggestion(name, present)} Name columns with --text and --label."
            )
    lines = [str(line) for line in table.index]
    texts = {name: table[name].tolist() for name in columns.text}
    raw_labels = [str(v).strip() for v in table[columns.label]] if has_labels else [""] * len(table)
    if require_labels and has_labels:
        without = [line for line, value in zip(lines, raw_labels, strict=True) if not value]
        if without:
            raise DataError(
                f"{source}: {_rows(without)} without a label in column {columns.label!r}. Fill "
                "them in or remove them; to label texts, use `taskfit predict`."
            )
    empty = [
        line
        for i, line in enumerate(lines)
        if not any(str(texts[name][i]).strip() for name in columns.text)
    ]
    if empty:
        raise DataError(
            f"{source}: {_rows(empty)} without any text in {', '.join(columns.text)}. Remove them."
        )
    return [
        Example(
            id=f"{source}:{line}",
            texts={name: str(texts[name][i]) for name in columns.text},
            label=columns.values.get(raw_labels[i], raw_labels[i]) or None,
        )
        for i, line in enumerate(lines)
    ]


def check_labels(examples: Sequence[Example], labels: Sequence[str]) -> None:
    """Check that every label is one of the task's.

    Raises:
        DataError: Listing the first unknown ones and what is allowed.
    """
    known = set(labels)
    unknown = [e for e in examples if e.label is not None and e.label not in known]
    if unknown:
        found = ", ".join(f"{e.label!r} ({e.id})" for e in unknown[:5])
        raise DataError(
            f"{len(unknown)} row{'s' * (len(unknown) > 1)} with an unknown label: {found}. The "
            f"task's labels are: {', '.join(labels)}."
            f"{suggestion(str(unknown[0].label), list(labels))}"
        )


def check_several_classes(examples: Sequence[Example]) -> None:
    """Check that there is something to tell apart.

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
    names = {example.label for example in examples if example.label is not None}

    def key(name: str) -> list[tuple[int, int, str]]:
        parts = re.split(r"(\d+)", name)
        return [(0, int(p), "") if p.isdigit() else (1, 0, p.casefold()) for p in parts if p]

    return tuple(sorted(names, key=lambda name: (key(name), name)))


def guess_columns(table: pd.DataFrame, *, text: Sequence[str], label: str | None) -> Columns:
    """Find the columns where the user names none or only some.

    Raises:
        DataError: If there is more than one way to read the table.
    """
    present = [str(name) for name in table.columns]
    for name in [*text, *([label] if label else [])]:
        if name not in present:
            raise DataError(
                f"There is no column {name!r}; the table has: {', '.join(present)}."
                f"{suggestion(name, present)}"
            )
    if label is None:
        candidates = [n for n in present if n.casefold() in LABEL_NAMES and n not in text]
        if len(candidates) != 1:
            raise DataError(
                f"Which column holds the labels? The table has: {', '.join(present)}. "
                "Name it with --label."
            )
        label = candidates[0]
    if not text:
        text = [name for name in present if name != label]
        if len(text) != 1:
            raise DataError(
                f"Which columns hold the text? Besides the label {label!r} the table has: "
                f"{', '.join(text) or 'none'}. Name them with --text, once for each."
            )
    return Columns(text=tuple(text), label=label)


def _rows(lines: Sequence[str]) -> str:
    shown = ", ".join(lines[:5]) + (", ..." if len(lines) > 5 else "")
    return f"{len(lines)} row{'s' * (len(lines) > 1)} (line {shown})"


def class_counts(examples: Sequence[Example]) -> Counter[str]:
    """Return how many examples each label has."""
    return Counter(str(example.label) for example in examples)
