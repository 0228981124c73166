"""Read a table from a file or the hub, everything as text, with the line each row stands on."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import pandas as pd

from taskfit.data.arrow_rows import arrow_table
from taskfit.data.cells import text_of, text_table
from taskfit.data.delimited import NOTES, check_columns, read_delimited
from taskfit.data.excel import read_excel
from taskfit.data.json_rows import iter_rows, json_table
from taskfit.data.sources import (
    find_file,
    iter_lines,
    open_unpacked,
    read_hub,
    read_parquet,
)
from taskfit.errors import DataError

WHOLE = re.compile(r"-?\d+\.0")
DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_table(
    source: str, *, encoding: str = "utf-8", split: str = "train", quotes: str = "auto"
) -> pd.DataFrame:
    """Read a table; every value is text, and no text is taken for a missing value.

    What a file holds counts, not its name: an Excel or Parquet file called .csv is read as what it
    is. Values that are missing become empty texts; lists and objects become a `NotText`, which is
    refused where a text is needed. Rows without any content are kept; blank lines are none.

    Args:
        source: A .csv, .tsv, .jsonl, .json, .parquet or .xlsx file, also with .gz behind, or a hub
            id `owner/name` or `owner/name:configuration`.
        encoding: Of CSV, TSV and JSON files.
        split: Of a hub data set.
        quotes: Of CSV and TSV files; see `read_delimited`.

    Returns:
        The table, indexed by the line that each row starts on (the row's number in a sheet, or
        where several start on one line; for Parquet and hub the rows before it). What people should
        know about it is in its attribute `notes`; see `notes_of`.

    Raises:
        DataError: If it cannot be found or read, or holds no row.
    """
    file = find_file(source)
    if file is None:
        return arrow_table(read_hub(source, split=split), source)
    path, kind = file
    if kind == ".parquet":
        table = arrow_table(read_parquet(path), source)
    elif kind == ".xlsx":
        with open_unpacked(path) as opened:
            table = read_excel(opened, source)
    else:
        lines = partial(iter_lines, path, encoding)
        return parse_table(lines, kind=kind, source=source, quotes=quotes)
    return with_rows(table, source)


def parse_table(
    lines: Callable[[], Iterator[tuple[int, str]]],
    *,
    kind: str,
    source: str,
    quotes: str = "auto",
) -> pd.DataFrame:
    """Read a table out of lines of text; see `read_table`.

    Args:
        lines: Reads them, from the first, each with its number, line ends kept.
        kind: .csv, .tsv, .json, or any other for JSONL.
        source: What messages call it.
        quotes: See `read_delimited`.

    Raises:
        DataError: If it cannot be read, or holds no row.
    """
    require_content(lines, source)
    if kind in DELIMITERS:
        texts = partial(contents, lines)
        table = read_delimited(texts, source, DELIMITERS[kind], quotes=quotes)
    else:
        table = json_table(iter_rows(lines, source, kind=kind))
    return with_rows(table, source)


def contents(lines: Callable[[], Iterator[tuple[int, str]]]) -> Iterator[str]:
    """Yield lines without their numbers."""
    return (content for _, content in lines())


def require_content(lines: Callable[[], Iterator[tuple[int, str]]], source: str) -> None:
    """Raise unless there is a line that is not blank.

    Raises:
        DataError: If there is none.
    """
    if not any(content.strip() for content in contents(lines)):
        raise DataError(f"{source} is empty.")


def notes_of(table: pd.DataFrame) -> list[str]:
    """Return what people should know about how a table was read."""
    return list(table.attrs.get(NOTES, ()))


def rename_columns(table: pd.DataFrame, columns: Mapping[str, str], *, source: str) -> pd.DataFrame:
    """Return a table whose columns have the names that a task knows.

    Args:
        table: As it was read.
        columns: Name that the task knows -> name in the table.
        source: What messages call it.

    Raises:
        DataError: If a column is not there, or another has its new name.
    """
    present = [str(name) for name in table.columns]
    for name in columns.values():
        if name not in present:
            raise DataError(f"{source} has no column {name!r}; it has: {', '.join(present)}.")
    # The column that bears the name so far is not read, so it makes way.
    freed = [name for name in columns if name in present and name not in columns.values()]
    renamed = table.drop(columns=freed).rename(columns={old: new for new, old in columns.items()})
    check_columns([str(name) for name in renamed.columns], source)
    return renamed


def with_rows(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """Return a table that has rows.

    Raises:
        DataError: If it has none.
    """
    if table.empty:
        raise DataError(f"{source} holds no row below its header. Is it the right file?")
    return table


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Turn the values of a table in memory into text; what is missing becomes an empty text."""

    def shown(value: object) -> str:
        # A column of integers with a gap is one of floats in pandas; 1.0 is meant to be 1.
        text = text_of(value)
        return text[:-2] if isinstance(value, float) and WHOLE.fullmatch(text) else text

    columns = {str(name): [shown(value) for value in table[name]] for name in table.columns}
    index = table.index if table.index.dtype.kind == "i" else range(1, len(table) + 1)
    return text_table(columns, list(index))
