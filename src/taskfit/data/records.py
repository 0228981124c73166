"""Read the rows of a file as they are, one at a time, with the line each stands on.

`taskfit.data.tables` reads tables of texts; here values keep their structure, since the messages of
a conversation are a list.
"""

import codecs
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from taskfit.data.hub import hub_table
from taskfit.data.tables import looks_like_hub_id, read_table
from taskfit.errors import DataError, suggestion

RECORD_FORMATS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
BLANK = re.compile(r"\s*")


class Record(NamedTuple):
    """A row of a file.

    Attributes:
        line: The line it starts on (row number for Parquet and hub), from 1.
        values: Its fields.
    """

    line: int
    values: dict[str, Any]


def iter_records(source: str, *, encoding: str = "utf-8", split: str = "train") -> Iterator[Record]:
    """Yield the rows of a file in order; JSONL is read line by line, the others as a whole.

    Args:
        source: A .json (one array of objects), .jsonl, .csv, .tsv or .parquet file, also with .gz
            behind, or a hub id `owner/name` or `owner/name:configuration`.
        encoding: Of text files.
        split: Of a hub data set.

    Raises:
        DataError: If it cannot be found or read.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        if not looks_like_hub_id(source, path) or source.lower().endswith(RECORD_FORMATS):
            raise DataError(_not_found(source, path))
        yield from _numbered(hub_table(source, split=split))
        return
    kind = file_kind(path)
    if kind == ".parquet":
        yield from _numbered(_read_parquet(path))
    elif kind in (".csv", ".tsv"):
        _check_encoding(path, encoding)
        table = read_table(source, encoding=encoding)
        for line, row in zip(table.index, table.to_dict("records"), strict=True):
            yield Record(int(line), {str(name): value for name, value in row.items()})
    elif kind in (".jsonl", ".ndjson") or (
        kind == ".json" and _has_objects_on_lines(path, encoding)
    ):
        yield from _iter_json_lines(path, encoding)
    elif kind == ".json":
        yield from _iter_json_array(path, encoding)
    else:
        raise DataError(
            f"{source}: files of kind {kind or '(no ending)'} are not read; allowed are "
            f"{', '.join(RECORD_FORMATS)}, each also with .gz. Convert the file or rename it."
        )


def file_kind(path: Path) -> str:
    """Return the ending that tells a file's format, without .gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"] and len(suffixes) > 1:
        return suffixes[-2]
    return "".join(suffixes[-1:])


def _open(path: Path, encoding: str) -> io.TextIOWrapper:
    name = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        codecs.lookup(name)
        # Python must not take other characters than line feeds for ends of lines: texts hold them.
        return io.TextIOWrapper(opener(path, "rb"), encoding=name, newline="\n")
    except LookupError as error:
        raise DataError(f"The encoding {encoding!r} is not one that Python knows.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _iter_lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    line = 0
    try:
        with _open(path, encoding) as file:
            for line, content in enumerate(file, start=1):
                yield line, content
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not {encoding}: byte {error.object[error.start]:#04x} after line {line}. "
            "Give its encoding (--encoding cp1252, for instance), or save the file as UTF-8."
        ) from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _check_encoding(path: Path, encoding: str) -> None:
    for _ in _iter_lines(path, encoding):
        pass


def _has_objects_on_lines(path: Path, encoding: str) -> bool:
    """Tell a JSONL file that is named .json: its first line is a whole object."""
    for _, content in _iter_lines(path, encoding):
        if content.strip():
            if not content.lstrip().startswith("{"):
                return False
            try:
                json.loads(content)
            except json.JSONDecodeError:
                return False
            return True
    return False


def _iter_json_lines(path: Path, encoding: str) -> Iterator[Record]:
    for line, content in _iter_lines(path, encoding):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path}:{line} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}:{line} holds a {type(row).__name__}; every line must be an object such "
                'as {"instruction": "...", "output": "..."}.'
            )
        yield Record(line, row)


def _iter_json_array(path: Path, encoding: str) -> Iterator[Record]:
    """Yield the objects of an array; Python's own reader would not tell their lines."""
    text = "".join(content for _, content in _iter_lines(path, encoding))
    decoder = json.JSONDecoder()
    place = _after_blank(text, 0)
    if text[place : place + 1] != "[":
        found = "an object" if text[place : place + 1] == "{" else repr(text[place : place + 20])
        raise DataError(
            f"{path} starts with {found}; a .json file must be one array of objects: "
            '[{"instruction": "...", "output": "..."}, ...]. One object a line is a .jsonl file.'
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


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path, "rb") as file:
                return pd.read_parquet(io.BytesIO(file.read()))
        return pd.read_parquet(path)
    except (OSError, EOFError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise DataError(f"{path} is not a Parquet file that can be read: {first_line}") from error


def _not_found(source: str, path: Path) -> str:
    folder = path.parent
    if path.is_dir():
        return f"{source} is a folder; give its files."
    if not folder.is_dir():
        return f"There is no file {source}, nor a folder {folder}."
    return f"There is no file {source}.{suggestion(path.name, [o.name for o in folder.iterdir()])}"
