"""Read a table from a file or the hub, everything as text, with the line each row stands on."""

import csv
import io
import json

import numpy as np
import pandas as pd

from taskfit.data.sources import (
    find_file,
    iter_lines,
    parse_row,
    read_hub,
    read_parquet,
    unread_kind,
)
from taskfit.errors import DataError

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")


def read_table(
    source: str, *, encoding: str = "utf-8", split: str = "train", keep_blank: bool = False
) -> pd.DataFrame:
    """Read a table; every value is text, and no text is taken for a missing value.

    Args:
        source: A .csv, .tsv, .jsonl or .parquet file, also with .gz behind, or a hub id
            `owner/name` or `owner/name:configuration`.
        encoding: Of CSV, TSV and JSONL files.
        split: Of a hub data set.
        keep_blank: Whether rows of CSV and TSV without any value are rows, too, as they are when
            every row shall come out again.

    Returns:
        The table, indexed by the line that each row starts on (row number for Parquet and hub).

    Raises:
        DataError: If it cannot be found or read, or holds no row.
    """
    file = find_file(source, FORMATS)
    if file is None:
        return as_text(read_hub(source, split=split))
    path, kind = file
    if kind == ".parquet":
        table = as_text(read_parquet(path))
    elif kind in (".csv", ".tsv", ".jsonl", ".ndjson"):
        lines = list(iter_lines(path, encoding))
        return parse_table(lines, kind=kind, source=source, keep_blank=keep_blank)
    else:
        raise unread_kind(source, kind, FORMATS)
    return _with_rows(table, source)


def parse_table(
    lines: list[tuple[int, str]], *, kind: str, source: str, keep_blank: bool = False
) -> pd.DataFrame:
    """Read a table out of lines of text; see `read_table`.

    Args:
        lines: Each with its number, line ends kept.
        kind: .csv, .tsv, or any other for JSONL.
        source: What messages call it.
        keep_blank: See `read_table`.

    Raises:
        DataError: If it cannot be read, or holds no row.
    """
    if not any(content.strip() for _, content in lines):
        raise DataError(f"{source} is empty.")
    if kind in (".csv", ".tsv"):
        text = "".join(content for _, content in lines)
        delimiter = "\t" if kind == ".tsv" else ","
        table = _read_delimited(text, source, delimiter, keep_blank=keep_blank)
    else:
        table = _read_jsonl(lines, source)
    return _with_rows(table, source)


def _with_rows(table: pd.DataFrame, source: str) -> pd.DataFrame:
    if table.empty:
        raise DataError(f"{source} holds no row below its header. Is it the right file?")
    return table


def _read_delimited(
    text: str, source: str, delimiter: str, *, keep_blank: bool = False
) -> pd.DataFrame:
    """Read CSV or TSV with Python's reader, which knows the line of every row."""
    csv.field_size_limit(2**31 - 1)
    # Quotes in TSV files are plain characters as often as not; a field that starts with one and
    # never closes it would swallow the rest of the file.
    file = io.StringIO(text, newline="")
    if delimiter == "\t":
        reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    rows: list[list[str]] = []
    lines: list[int] = []
    start = 1
    try:
        for row in reader:
            line, start = start, reader.line_num + 1
            is_blank = not any(field.strip() for field in row)
            # An empty line is no row; it may stand at the end of any file.
            if is_blank and not (keep_blank and row and header and len(row) == len(header)):
                continue
            if header is None:
                header = _check_header([name.strip() for name in row], source, delimiter)
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{source}:{line} has {len(row)} fields, its header {len(header)} "
                    f"({', '.join(header)}). Put quotes around texts that hold a {delimiter!r}, "
                    "or check whether a quote is left open above."
                )
            rows.append(row)
            lines.append(line)
    except csv.Error as error:
        raise DataError(f"{source}:{reader.line_num} is not proper CSV: {error}.") from error
    return pd.DataFrame(rows, columns=header, index=lines, dtype=str)


def _check_header(header: list[str], source: str, delimiter: str) -> list[str]:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{source} has several columns named {', '.join(twice)}. Rename them.")
    if len(header) == 1:
        for other, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if other != delimiter and other in header[0]:
                raise DataError(
                    f"{source} has one column, {header[0]!r}: it seems to be separated by {name}. "
                    "Save it with commas, or as .tsv with tabs."
                )
    return header


def _read_jsonl(lines: list[tuple[int, str]], source: str) -> pd.DataFrame:
    rows = {}
    for line, content in lines:
        row = parse_row(content, f"{source}:{line}", '{"text": "...", "label": "..."}')
        if row is None:
            continue
        # JSON can write half of a surrogate pair, which no UTF-8 file can hold.
        text_back = json.dumps(row, ensure_ascii=False) if "\\u" in content else ""
        if any(0xD800 <= ord(c) <= 0xDFFF for c in text_back):
            raise DataError(
                f"{source}:{line} holds half of a surrogate pair (\\ud800 to \\udfff), which is no "
                "character. Write the file anew from its source, or remove the escape."
            )
        rows[line] = row
    return as_text(pd.DataFrame(list(rows.values()), index=list(rows)))


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Turn values into text; what is missing becomes an empty text."""
    columns = {str(name): [as_cell(value) for value in table[name]] for name in table.columns}
    index = table.index if table.index.dtype.kind == "i" else range(1, len(table) + 1)
    return pd.DataFrame(columns, index=index, dtype=str)


def as_cell(value: object) -> str:
    """Return a value as text; what is missing is an empty one, and a list or object JSON."""
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return ""
    # A column of integers with a gap is read as floats; 1.0 is meant to be 1.
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
