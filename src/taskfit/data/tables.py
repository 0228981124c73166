"""Read a table from a file or the hub, everything as text, with the line each row stands on."""

import csv
import gzip
import io
import json
from pathlib import Path

import pandas as pd

from taskfit.data.text_values import as_text
from taskfit.errors import DataError, suggestion

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
# Encodings that such files have in practice, in the order in which they are tried for the hint.
OTHER_ENCODINGS = ("utf-16", "cp1252", "latin-1")


def read_table(source: str, *, encoding: str = "utf-8", split: str = "train") -> pd.DataFrame:
    """Read a table; every value is text, and no text is taken for a missing value.

    Args:
        source: A .csv, .tsv, .jsonl or .parquet file, also with .gz behind, or a hub id
            `owner/name` or `owner/name:configuration`.
        encoding: Of CSV, TSV and JSONL files.
        split: Of a hub data set.

    Returns:
        The table, indexed by the line that each row starts on (row number for Parquet and hub).

    Raises:
        DataError: If it cannot be found or read, or holds no row.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        if looks_like_hub_id(source, path):
            from taskfit.data.hub import read_hub

            return read_hub(source, split=split)
        raise DataError(_not_found(source, path))
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = (
        suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else "".join(suffixes[-1:])
    )
    if kind == ".parquet":
        table = _read_parquet(path, source)
    elif kind in (".csv", ".tsv"):
        table = _read_delimited(_read_text(path, encoding), source, "\t" if kind == ".tsv" else ",")
    elif kind in (".jsonl", ".ndjson"):
        table = _read_jsonl(_read_text(path, encoding), source)
    else:
        raise DataError(
            f"{source}: files of kind {kind or '(no ending)'} are not read; allowed are "
            f"{', '.join(FORMATS)}, each also with .gz. Convert the file or rename it."
        )
    if table.empty:
        raise DataError(f"{source} holds no row below its header. Is it the right file?")
    return table


def looks_like_hub_id(source: str, path: Path) -> bool:
    """Tell `owner/name` from a path that does not exist."""
    name = source.split(":")[0]
    return (
        name.count("/") == 1
        and not source.startswith((".", "/", "~"))
        and not name.lower().endswith((*FORMATS, ".gz"))
        and not path.parent.is_dir()
    )


def _read_text(path: Path, encoding: str) -> str:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opener(path, "rb") as file:
            raw: bytes = file.read()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not raw.strip():
        raise DataError(f"{path} is empty.")
    try:
        # A byte order mark is not part of the first column's name.
        return raw.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except LookupError as error:
        raise DataError(f"data.encoding is {encoding!r}, which Python does not know.") from error
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        fits = [other for other in OTHER_ENCODINGS if _decodes(raw, other)]
        raise DataError(
            f"{path}:{line} is not {encoding}: byte {raw[error.start]:#04x} at position "
            f"{error.start}. Give its encoding, for instance --set data.encoding={fits[0]} "
            f"(these would decode it: {', '.join(fits)}), or save the file as UTF-8."
        ) from error


def _decodes(raw: bytes, encoding: str) -> bool:
    if encoding == "utf-16" and not raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return False
    try:
        raw.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _read_delimited(text: str, source: str, delimiter: str) -> pd.DataFrame:
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
            if not any(field.strip() for field in row):
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


def _read_parquet(path: Path, source: str) -> pd.DataFrame:
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path, "rb") as file:
                return as_text(pd.read_parquet(io.BytesIO(file.read())))
        return as_text(pd.read_parquet(path))
    except (OSError, EOFError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise DataError(f"{source} is not a Parquet file that can be read: {first_line}") from error


def _read_jsonl(text: str, source: str) -> pd.DataFrame:
    rows, lines = [], []
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise DataError(f"{source}:{line} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise DataError(
                f"{source}:{line} holds a {type(row).__name__}; every line must be an object such "
                'as {"text": "...", "label": "..."}.'
            )
        # JSON can write half of a surrogate pair, which no UTF-8 file can hold.
        text_back = json.dumps(row, ensure_ascii=False) if "\\u" in content else ""
        if any(0xD800 <= ord(c) <= 0xDFFF for c in text_back):
            raise DataError(
                f"{source}:{line} holds half of a surrogate pair (\\ud800 to \\udfff), which is no "
                "character. Write the file anew from its source, or remove the escape."
            )
        rows.append(row)
        lines.append(line)
    return as_text(pd.DataFrame(rows, index=lines))


def _not_found(source: str, path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"There is no file {source}, nor a folder {folder}."
    names = [other.name for other in folder.iterdir()]
    return f"There is no file {source}.{suggestion(path.name, names)}"
