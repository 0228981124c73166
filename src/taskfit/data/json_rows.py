"""Rows of JSON: an object a line, or an array of objects."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from taskfit.data.cells import text_of, text_table
from taskfit.errors import DataError

EXAMPLE = '{"text": "...", ...}'
BLANK = re.compile(r"\s*")
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
Row = tuple[int, dict[str, Any]]


class _Written(float):
    """A number that is shown as it was written: 1.0, 1e5, 0.10."""

    def __new__(cls, text: str) -> "_Written":
        made = super().__new__(cls, text)
        made.text = text
        return made

    text: str

    def __str__(self) -> str:
        return self.text


DECODER = json.JSONDecoder(parse_float=_Written)


def parse_row(content: str, where: str) -> Any:  # noqa: ANN401
    """Return the object on a line of a JSONL file, None where the line is blank.

    Args:
        content: The line.
        where: What messages call it.

    Raises:
        DataError: If there is something else.
    """
    if not content.strip():
        return None
    try:
        row = DECODER.decode(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}.") from error
    if not isinstance(row, dict):
        raise DataError(
            f"{where} holds a {type(row).__name__}; every line must be an object such as {EXAMPLE}."
        )
    if SURROGATE.search(content):
        _check_pairs(row, where)
    return row


def iter_rows(
    lines: Callable[[], Iterator[tuple[int, str]]], source: str, *, kind: str
) -> Iterator[Row]:
    """Yield the objects of a JSON or JSONL file with the line each starts on.

    Where several of an array start on one line, with their numbers: rows are known by them.

    Args:
        lines: Reads its lines, from the first.
        source: What messages call it.
        kind: .json, which may be either, or any other for JSONL.

    Raises:
        DataError: If it is something else.
    """
    if is_array(lines, kind):
        rows = list(_iter_array("".join(content for _, content in lines()), source))
        has_own_lines = len({line for line, _ in rows}) == len(rows)
        numbered = rows if has_own_lines else enumerate((row for _, row in rows), start=1)
        yield from numbered
        return
    for line, row in iter_objects(lines, source):
        if isinstance(row, DataError):
            raise row
        yield line, row


def is_array(lines: Callable[[], Iterator[tuple[int, str]]], kind: str) -> bool:
    """Return whether a file is to be one array of objects, and not an object a line."""
    return kind == ".json" and not _has_objects_on_lines(lines())


def iter_objects(
    lines: Callable[[], Iterator[tuple[int, str]]], source: str
) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """Yield the object of each line that is not blank, or why there is none."""
    for line, content in lines():
        try:
            row = parse_row(content, f"{source}:{line}")
        except DataError as error:
            yield line, error
            continue
        if row is not None:
            yield line, row


def json_table(rows: Iterator[Row]) -> pd.DataFrame:
    """Return objects as a table of texts, indexed by their lines; a key may be missing in some."""
    index: list[int] = []
    columns: dict[str, list[str]] = {}
    for line, row in rows:
        for name, value in row.items():
            if name not in columns:
                columns[name] = [""] * len(index)
            columns[name].append(value if type(value) is str else text_of(value))
        index.append(line)
        if len(row) < len(columns):
            for column in columns.values():
                if len(column) < len(index):
                    column.append("")
    return text_table(columns, index)


def _check_pairs(row: dict[str, Any], where: str) -> None:
    # JSON can write half of a surrogate pair, which no UTF-8 file can hold.
    if any("\ud800" <= c <= "\udfff" for c in json.dumps(row, ensure_ascii=False)):
        raise DataError(
            f"{where} holds half of a surrogate pair (\\ud800 to \\udfff), which is no "
            "character. Write the file anew from its source, or remove the escape."
        )


def _has_objects_on_lines(lines: Iterator[tuple[int, str]]) -> bool:
    """Tell a JSONL file that is named .json: its first line is a whole object."""
    first = next((text for _, text in lines if text.strip()), "")
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _iter_array(text: str, source: str) -> Iterator[Row]:
    """Yield the objects of an array; Python's own reader would not tell their lines."""
    place = _after_blank(text, 0)
    if text[place : place + 1] != "[":
        found = "an object" if text[place : place + 1] == "{" else repr(text[place : place + 20])
        raise DataError(
            f"{source} starts with {found}; a .json file must be one array of objects: "
            f"[{EXAMPLE}, ...]. One object a line is a .jsonl file."
        )
    place, line, counted = _after_blank(text, place + 1), 1, 0
    while text[place : place + 1] != "]":
        line += text.count("\n", counted, place)
        counted = place
        try:
            row, place = DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            where = text.count("\n", 0, error.pos) + 1 if hasattr(error, "pos") else line
            raise DataError(f"{source}:{where} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise DataError(
                f"{source}:{line} holds a {type(row).__name__}; the array must hold objects."
            )
        if SURROGATE.search(text, counted, place):
            _check_pairs(row, f"{source}:{line}")
        yield line, row
        place = _after_blank(text, place)
        mark = text[place : place + 1]
        if mark == ",":
            place = _after_blank(text, place + 1)
        elif mark != "]":
            where = text.count("\n", 0, place) + 1
            raise DataError(
                f"{source}:{where} is not JSON: {mark!r} stands where a comma or the closing "
                "bracket of the array must be. Is the file cut off?"
            )


def _after_blank(text: str, place: int) -> int:
    match = BLANK.match(text, place)
    return match.end() if match else place
