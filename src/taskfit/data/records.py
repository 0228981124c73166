"""Read the rows of a file as they are, one at a time, with the line each stands on.

`taskfit.data.tables` reads tables of texts; here values keep their structure, since the messages of
a conversation are a list.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from taskfit.data.sources import (
    find_file,
    iter_lines,
    parse_row,
    read_hub,
    read_parquet,
    unread_kind,
)
from taskfit.data.tables import read_table
from taskfit.errors import DataError

FORMATS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
EXAMPLE = '{"instruction": "...", "output": "..."}'
BLANK = re.compile(r"\s*")


class Record(NamedTuple):
    """A row of a file.

    Attributes:
        line: The line it starts on (row number for Parquet and hub), from 1.
        values: Its fields.
    """

    line: int
    values: dict[str, Any]


def iter_records(
    source: str, *, encoding: str = "utf-8", keep_blank: bool = False
) -> Iterator[Record]:
    """Yield the rows of a file in order; JSONL is read line by line, the others as a whole.

    Args:
        source: A .json (one array of objects), .jsonl, .csv, .tsv or .parquet file, also with .gz
            behind, or a hub id `owner/name` or `owner/name:configuration`; of it `train` is read.
        encoding: Of text files.
        keep_blank: See `read_table`.

    Raises:
        DataError: If it cannot be found or read.
    """
    file = find_file(source, FORMATS)
    if file is None:
        yield from _numbered(read_hub(source, split="train"))
        return
    path, kind = file
    if kind == ".parquet":
        yield from _numbered(read_parquet(path))
    elif kind in (".csv", ".tsv"):
        table = read_table(source, encoding=encoding, keep_blank=keep_blank)
        for line, row in zip(table.index, table.to_dict("records"), strict=True):
            yield Record(int(line), {str(name): value for name, value in row.items()})
    elif kind in (".jsonl", ".ndjson") or (
        kind == ".json" and _has_objects_on_lines(path, encoding)
    ):
        for line, content in iter_lines(path, encoding):
            values = parse_row(content, f"{path}:{line}", EXAMPLE)
            if values is not None:
                yield Record(line, values)
    elif kind == ".json":
        yield from _iter_json_array(path, encoding)
    else:
        raise unread_kind(source, kind, FORMATS)


def _has_objects_on_lines(path: Path, encoding: str) -> bool:
    """Tell a JSONL file that is named .json: its first line is a whole object."""
    first = next((text for _, text in iter_lines(path, encoding) if text.strip()), "")
    try:
        return isinstance(json.loads(first), dict)
    except json.JSONDecodeError:
        return False


def _iter_json_array(path: Path, encoding: str) -> Iterator[Record]:
    """Yield the objects of an array; Python's own reader would not tell their lines."""
    text = "".join(content for _, content in iter_lines(path, encoding))
    decoder = json.JSONDecoder()
    place = _after_blank(text, 0)
    if text[place : place + 1] != "[":
        found = "an object" if text[place : place + 1] == "{" else repr(text[place : place + 20])
        raise DataError(
            f"{path} starts with {found}; a .json file must be one array of objects: "
            f"[{EXAMPLE}, ...]. One object a line is a .jsonl file."
        )
    place, line, counted = _after_blank(text, place + 1), 1, 0
    while text[place : place + 1] != "]":
        line += text.count("\n", counted, place)
        counted = place
        try:
            row, place = decoder.raw_decode(text, place)
        except (json.JSONDecodeError, RecursionError) as error:
            where = text.count("\n", 0, error.pos) + 1 if hasattr(error, "pos") else line
            raise DataError(f"{path}:{where} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}:{line} holds a {type(row).__name__}; the array must hold objects."
            )
        yield Record(line, row)
        place = _after_blank(text, place)
        mark = text[place : place + 1]
        if mark == ",":
            place = _after_blank(text, place + 1)
        elif mark != "]":
            where = text.count("\n", 0, place) + 1
            raise DataError(
                f"{path}:{where} is not JSON: {mark!r} stands where a comma or the closing bracket "
                "of the array must be. Is the file cut off?"
            )


def _after_blank(text: str, place: int) -> int:
    match = BLANK.match(text, place)
    return match.end() if match else place


def _numbered(table: pd.DataFrame) -> Iterator[Record]:
    """Yield the rows of a table; arrays become lists, what is missing becomes None."""
    for line, row in enumerate(table.to_dict("records"), start=1):
        yield Record(line, {str(name): _plain(value) for name, value in row.items()})


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever a Parquet file holds
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if value is pd.NA or (isinstance(value, float) and value != value):
        return None
    return value
