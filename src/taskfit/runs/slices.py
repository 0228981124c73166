"""Slices of evaluation sets by columns of their tables: measured, written, shown."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.data.builtin import DEFAULT_SLICES
from taskfit.errors import DataError, suggestion
from taskfit.files import write_text_atomic
from taskfit.runs.asked import AskedQuestion
from taskfit.runs.sources import read_source
from taskfit.settings import RunSettings
from taskfit.stats.slices import (
    RULE,
    Slice,
    group_rows,
    slice_classes,
    slice_label_sets,
)

FILE = "slices.csv"
GOLD = "gold"
MOST = 500
FloatArray = NDArray[np.float64]


def slice_columns(settings: RunSettings) -> tuple[str, ...]:
    """Return the columns by which a run's metrics are cut up."""
    if settings.data.slices:
        return tuple(dict.fromkeys(settings.data.slices))
    return DEFAULT_SLICES.get(str(settings.task.name), ())


def check_slices(settings: RunSettings, evaluations: Mapping[str, Sequence[Example]]) -> None:
    """Check before any training that the evaluation sets can be cut up as the settings say.

    Raises:
        DataError: If no set has a column, or a cut gives too many slices.
    """
    carried = {column for examples in evaluations.values() for column in _values(examples[:1])}
    missing = [column for column in settings.data.slices if column not in carried]
    if missing and evaluations:
        data = settings.data
        sources = [*data.tests.values(), *([data.train] if data.train and not data.tests else [])]
        there = dict.fromkeys(
            str(column)
            for source in sources
            for column in read_source(
                source, encoding=data.encoding, split="test", quotes=data.quotes
            ).columns
        )
        known = [*there, *(column for column in sorted(carried) if column not in there)]
        raise DataError(
            f"data.slices: no evaluation set has a column {missing[0]!r}; there are: "
            f"{', '.join(known)}.{suggestion(missing[0], known)}"
        )
    for name, examples in evaluations.items():
        group_examples(name, examples, slice_columns(settings))


def group_examples(
    name: str, examples: Sequence[Example], by: Sequence[str]
) -> dict[str, list[str]]:
    """Return each requested column that the examples have, with its values.

    Args:
        name: Of the evaluation set, for messages.
        examples: Labelled.
        by: Requested columns; `gold` is the right label.

    Raises:
        DataError: If the columns make too many slices.
    """
    values = _values(examples)
    columns = {column: values[column] for column in by if column in values}
    for joined, groups in group_rows(columns).items() if columns else ():
        if len(groups) > MOST:
            raise DataError(
                f"{name} cut up by {joined} gives {len(groups):,} slices; at most {MOST} are "
                "measured. Choose columns with few different values."
            )
    return columns


def measure_slices(
    question: AskedQuestion,
    name: str,
    examples: Sequence[Example],
    probabilities: FloatArray,
    by: Sequence[str],
) -> list[Slice]:
    """Measure a question in the slices of an evaluation set; empty where it has no such column.

    Args:
        question: Whose probabilities they are.
        name: Of the evaluation.
        examples: With a label of the question.
        probabilities: (N, L).
        by: Columns; `gold` is the right label.
    """
    columns = group_examples(name, examples, by)
    if not columns:
        return []
    if question.task.multi_label:
        return slice_label_sets(columns, question.given(probabilities), question.present(examples))
    return slice_classes(columns, probabilities, question.gold(examples))


def write_slices(folder: Path, measured: Mapping[str, Sequence[Slice]]) -> None:
    """Write `slices.csv` into a run's folder; rows of other evaluation sets stay."""
    rows = [
        {"evaluation": name, **dataclasses.asdict(found)}
        for name, slices in measured.items()
        for found in slices
    ]
    if not rows:
        return
    table, path = pd.DataFrame(rows), folder / FILE
    if path.is_file():
        before = pd.read_csv(path, keep_default_na=False, dtype={"value": str})
        table = pd.concat([before[~before["evaluation"].isin(list(measured))], table])
    write_text_atomic(path, table.to_csv(index=False))


def read_slices(folder: Path) -> list[dict[str, object]]:
    """Return the rows of a run's `slices.csv`; none where there is no such file."""
    path = folder / FILE
    if not path.is_file():
        return []
    table = pd.read_csv(path, keep_default_na=False, dtype={"value": str})
    return [{str(k): v for k, v in row.items()} for row in table.to_dict(orient="records")]


def slices_text(name: str, slices: Sequence[Slice]) -> str:
    """Return the slices of an evaluation set as lines for the screen, uncertain ones marked."""
    width = max(len(text) for found in slices for text in (found.value, f"by {found.by}"))
    lines = [f"slices of {name}"]
    by = ""
    for found in slices:
        if found.by != by:
            by = found.by
            lines.append(f"  {f'by {by}':<{width}}       n  accuracy         95 %     F1")
        mark = "  uncertain" if found.is_uncertain else ""
        lines.append(
            f"  {found.value:<{width}}  {found.num_examples:>6,}     {found.accuracy:.3f}  "
            f"{found.accuracy_low:.3f}-{found.accuracy_high:.3f}  {found.macro_f1:.3f}{mark}"
        )
    if any(found.is_uncertain for found in slices):
        lines.append(f"  {RULE}")
    return "\n".join(lines)


def _values(examples: Sequence[Example]) -> dict[str, list[str]]:
    """Return the columns that examples have, texts among them, and `gold`."""
    first = examples[0] if examples else Example("", {})
    values = {name: [example.texts[name] for example in examples] for name in first.texts}
    for name in first.columns or ():
        values[name] = [(example.columns or {}).get(name, "") for example in examples]
    return {**values, GOLD: [str(example.label) for example in examples]}
