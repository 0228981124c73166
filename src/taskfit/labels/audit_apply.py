"""Write a table anew as decided in an audit: same columns, same format, never over the input."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from taskfit.data import Columns
from taskfit.data.cells import text_of
from taskfit.data.delimited import Delimited
from taskfit.data.json_rows import iter_rows
from taskfit.data.label_cells import SEVERAL, holds_lists, read_labels
from taskfit.data.sources import find_file, iter_lines, read_parquet
from taskfit.data.tables import contents
from taskfit.errors import DataError, SettingsError
from taskfit.files import file_atomic, refuse_over_input
from taskfit.labels.audit import JSON
from taskfit.labels.audit_decisions import Decisions, new_label, read_decisions
from taskfit.labels.audit_findings import row_mark
from taskfit.labels.audit_table import label_and_texts, read_rows
from taskfit.runs.partial import write_table
from taskfit.runs.sources import check_labels_task
from taskfit.runs.training_table import columns_of
from taskfit.settings import RunSettings

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a table.

    Attributes:
        num_rows: Rows that were written.
        num_removed: Rows that went.
        num_relabelled: Rows with another label than before.
    """

    num_rows: int
    num_removed: int
    num_relabelled: int


@dataclass(frozen=True, slots=True)
class _Change:
    """Places of rows that stay, in order, and the new label of some of them."""

    kept: list[int]
    labels: dict[int, str]


def apply_decisions(
    settings: RunSettings,
    decisions: Path,
    out: Path,
    *,
    new_labels: bool = False,
    overwrite: bool = False,
) -> Applied:
    """Write the table of an audit as decided.

    Which columns hold texts and labels is read from the audit's folder where the file of decisions
    lies in it and the settings name none.

    Args:
        settings: Name the table, as for the audit.
        decisions: `audit.csv`, its column `decision` filled in where something shall change.
        out: A new file, .csv, .tsv, .jsonl or .parquet.
        new_labels: Whether decisions may name labels that the table does not have.
        overwrite: Whether a file that is there may be written over; the input never is.

    Raises:
        TaskfitError: Listing all that is wrong; then nothing is written.
    """
    check_labels_task(settings, several=False)
    data = settings.data
    if data.train is None:
        raise SettingsError("--apply changes a table: give the file that was audited.")
    _check_out(out, [data.train, decisions], overwrite=overwrite)
    table = read_rows(settings)
    columns = _columns(table, settings, decisions)
    rows = label_and_texts(table, columns, data.train)
    lines = [int(line) for line in table.index]
    marks = {line: row_mark(texts, label) for line, (texts, label) in zip(lines, rows, strict=True)}
    several = columns.separator is not None
    read = read_labels(table, columns, source=data.train, required=False)
    named = [name or "" for name, _ in read]
    known = {part for name, target in read for part in (target or ([name] if name else []))}
    known |= set(columns.values.values())
    if several and (joined := sorted(name for name in known if SEVERAL in name)):
        raise DataError(
            f"{data.train}: the label {joined[0]!r} holds a {SEVERAL!r}, which stands between "
            "several labels in an audit. Rename it in the table, and audit that."
        )
    decided = read_decisions(
        decisions, marks, known, separator=columns.separator, new_labels=new_labels
    )
    change = _change(lines, named, decided, several=several)
    _write(settings, table, columns, change, out)
    return Applied(len(change.kept), len(lines) - len(change.kept), len(change.labels))


def _check_out(out: Path, inputs: Sequence[str | Path], *, overwrite: bool) -> None:
    if out.suffix.lower() not in FORMATS:
        raise SettingsError(f"{out}: tables are written as {', '.join(FORMATS)}; name the file so.")
    if out.is_dir():
        raise SettingsError(f"{out} is a folder; name a file to write.")
    refuse_over_input(out, inputs, overwrite=None)
    if out.exists() and not overwrite:
        raise SettingsError(f"{out} is there already. Give another name, or --overwrite.")


def _columns(table: pd.DataFrame, settings: RunSettings, decisions: Path) -> Columns:
    """Return the columns that the audit read, or those that settings name."""
    data = settings.data
    path = decisions.parent / JSON
    if data.text or data.label or settings.task.name or not path.is_file():
        return columns_of(table, settings)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["columns"]
        columns = Columns(
            text=tuple(found["text"]),
            label=found["label"],
            separator=found["separator"],
            values=found["values"],
        )
    except (ValueError, KeyError, TypeError):  # another tool's file, or a built-in task's audit
        return columns_of(table, settings)
    missing = [name for name in (*columns.text, str(columns.label)) if name not in table]
    if missing:
        raise DataError(
            f"{data.train} has no column {', '.join(map(repr, missing))}, which was audited; it "
            f"has: {', '.join(map(str, table))}. Is it the same table?"
        )
    return columns


def _change(
    lines: Sequence[int], labels: Sequence[str], decided: Decisions, *, several: bool
) -> _Change:
    kept, changed = [], {}
    for place, (line, label) in enumerate(zip(lines, labels, strict=True)):
        if line in decided.removed:
            continue
        kept.append(place)
        fresh = new_label(line, label, decided, several=several)
        if fresh is not None and fresh != label:
            changed[place] = fresh
    if not kept:
        raise DataError("The decisions remove every row, so there is no table to write.")
    return _Change(kept, changed)


def _write(
    settings: RunSettings, table: pd.DataFrame, columns: Columns, change: _Change, out: Path
) -> None:
    """Write rows as they were, of JSON and Parquet with the types that they had."""
    data, kind = settings.data, out.suffix.lower()
    source, label = str(data.train), str(columns.label)
    path, given = find_file(source) or (Path(), None)
    lines = partial(iter_lines, path, data.encoding)
    form = None
    if given == kind == ".csv":
        form = Delimited(partial(contents, lines), source, ",", quotes=data.quotes)
    with file_atomic(out) as scratch:
        if given == kind == ".parquet":
            _write_parquet(path, scratch, columns, change)
        elif form is not None and form.has_marks:
            _copy_csv(lines, scratch, table, columns, change, delimiter=form.delimiter)
        elif given in (".jsonl", ".json") and kind == ".jsonl":
            rows = [row for _, row in iter_rows(lines, source, kind=given)]
            found = {text_of(row.get(label)): row.get(label) for row in rows}
            write = _written(columns, table[label], found)
            with scratch.open("w", encoding="utf-8", newline="\n") as target:
                for place in change.kept:
                    row = rows[place]
                    if place in change.labels:
                        row = {**row, label: write(change.labels[place])}
                    target.write(json.dumps(row, ensure_ascii=False) + "\n")
        else:
            write = _written(columns, table[label])
            values = table[label].tolist()
            for place, name in change.labels.items():
                values[place] = write(name)
            fresh = table.assign(**{label: values}).iloc[change.kept]
            write_table(fresh, scratch)


def _copy_csv(
    lines: Callable[[], Iterator[tuple[int, str]]],
    target: Path,
    table: pd.DataFrame,
    columns: Columns,
    change: _Change,
    *,
    delimiter: str,
) -> None:
    """Copy the lines of a CSV file letter by letter, but for rows that go or have a new label."""
    starts = {int(line): place for place, line in enumerate(table.index)}
    at, kept = str(columns.label), set(change.kept)
    write, end = _written(columns, table[at]), ""
    place = -1  # the header's
    with target.open("w", encoding="utf-8", newline="") as file:
        for number, line in lines():
            starts_row = number in starts
            # Lines within a row may end otherwise.
            end = end or ("\r\n" if line.endswith("\r\n") else "\n")
            place = starts.get(number, place)
            if place in change.labels:
                if starts_row:
                    row = {**table.iloc[place].to_dict(), at: write(change.labels[place])}
                    writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
                    writer.writerow(row.values())
            elif place < 0 or place in kept:
                file.write(line)


def _write_parquet(path: Path, target: Path, columns: Columns, change: _Change) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = read_parquet(path)
    at = table.column_names.index(str(columns.label))
    values = table.column(at).to_pylist()
    texts = pd.Series([text_of(value) for value in values])
    write = _written(columns, texts, dict(zip(texts, values, strict=True)))
    for place, name in change.labels.items():
        values[place] = write(name)
    kind = table.schema.field(at).type
    try:
        column = pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(
            f"{path}: column {columns.label!r} holds {kind}, which a new label is none of: {error}"
        ) from error
    table = table.set_column(at, table.schema.field(at), column)
    pq.write_table(table.take(change.kept), target)


def _written(
    columns: Columns,
    column: "pd.Series[str]",
    values: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[[str], Any]:
    """Return what writes a label as the table does.

    Args:
        columns: Of the table; its task may read other values than the labels' names.
        column: The labels as they were read.
        values: Text of each value in the label column -> the value itself; empty: all are texts.
    """
    by_name = {name: value for value, name in columns.values.items()}
    lists = columns.separator is not None and holds_lists(column)
    are_texts = not any(isinstance(value, list) for value in values.values())

    def write(label: str) -> Any:  # noqa: ANN401 - whatever the table holds
        if columns.separator is None:
            text = by_name.get(label, label)
            return values.get(text, text)
        parts = [by_name.get(part, part) for part in label.split(SEVERAL) if part]
        if not lists:
            return columns.separator.join(parts)
        return json.dumps(parts, ensure_ascii=False) if are_texts else parts

    return write
