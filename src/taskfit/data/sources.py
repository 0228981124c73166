"""Where tables and records come from: files of several formats, packed or not, and the hub."""

import codecs
import gzip
import importlib.util
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pandas as pd

from taskfit.data.hub import why_not_at_hand
from taskfit.errors import DataError, first_line, suggestion

# Encodings that such files have in practice, in the order in which they are tried for the hint.
OTHER_ENCODINGS = ("utf-16", "cp1252", "latin-1")


def find_file(source: str, formats: Sequence[str]) -> tuple[Path, str] | None:
    """Return a file and the ending that tells its format, without .gz; None: it is a hub id.

    Args:
        source: As a user names it.
        formats: Endings of what could be read; such a name is never a hub id.

    Raises:
        DataError: If there is no such file, and the name looks like none on the hub.
    """
    path = Path(source).expanduser()
    if path.is_file():
        suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
        return path, suffixes[-1] if suffixes else path.suffix.lower()
    folder, name = path.parent, source.split(":")[0]
    if path.is_dir():
        raise DataError(f"{source} is a folder; give its files.")
    if folder.is_dir():
        hint = suggestion(path.name, [other.name for other in folder.iterdir()])
        raise DataError(f"There is no file {source}.{hint}")
    if (
        name.count("/") != 1
        or source.startswith((".", "/", "~"))
        or name.lower().endswith((*formats, ".gz"))
    ):
        raise DataError(f"There is no file {source}, nor a folder {folder}.")
    return None


def unread_kind(source: str, kind: str, formats: Sequence[str]) -> DataError:
    """Return the error that a file has an ending that is not among the formats."""
    return DataError(
        f"{source}: files of kind {kind or '(no ending)'} are not read; allowed are "
        f"{', '.join(formats)}, each also with .gz. Convert the file or rename it."
    )


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def iter_lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file with their numbers, from 1.

    Raises:
        DataError: If it cannot be read, or not in this encoding.
    """
    # A byte order mark is not part of the first column's name.
    name = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
    try:
        codecs.lookup(name)
        # Python must not take other characters than line feeds for ends of lines: texts hold them.
        with io.TextIOWrapper(_open(path), encoding=name, newline="\n") as file:
            yield from enumerate(file, start=1)
    except LookupError as error:
        raise DataError(f"data.encoding is {encoding!r}, which Python does not know.") from error
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path, encoding, name) from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _wrong_encoding(path: Path, encoding: str, name: str) -> DataError:
    with _open(path) as file:
        raw = file.read()
    place = _undecoded(raw, name) or 0
    line = raw[:place].count(b"\n") + 1
    fits = [other for other in OTHER_ENCODINGS if _undecoded(raw, other) is None]
    return DataError(
        f"{path}:{line} is not {encoding}: byte {raw[place]:#04x} at position {place}. Give its "
        f"encoding, for instance --encoding {fits[0]} or --set data.encoding={fits[0]} (these "
        f"would decode it: {', '.join(fits)}), or save the file as UTF-8."
    )


def _undecoded(raw: bytes, encoding: str) -> int | None:
    """Return the position of the first byte that an encoding cannot have, if there is one."""
    if encoding == "utf-16" and not raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return 0
    try:
        raw.decode(encoding)
    except UnicodeDecodeError as error:
        return error.start
    return None


def parse_row(content: str, where: str, example: str) -> dict[str, Any] | None:
    """Return the object on a line of a JSONL file, None where the line is blank.

    Raises:
        DataError: If there is something else.
    """
    if not content.strip():
        return None
    try:
        row = json.loads(content)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}.") from error
    if not isinstance(row, dict):
        raise DataError(
            f"{where} holds a {type(row).__name__}; every line must be an object such as {example}."
        )
    return row


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a Parquet file as it is.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        if path.suffix.lower() != ".gz":
            return pd.read_parquet(path)
        with _open(path) as file:
            return pd.read_parquet(io.BytesIO(file.read()))
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{path} is not a Parquet file that can be read: {first_line(error)}"
        ) from error


def read_hub(source: str, *, split: str) -> pd.DataFrame:
    """Read one split of a hub data set as it is, but for class labels, which become their names.

    Args:
        source: `owner/name` or `owner/name:configuration`.
        split: Name of the split; where there is no `test`, `validation` serves.

    Raises:
        DataError: If the package or the data set cannot be had.
    """
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"{source} is no file here; to read it from the hub, install the package: "
            "pip install 'taskfit[hub]'."
        )
    name, _, configuration = source.partition(":")
    if reason := why_not_at_hand(name, kind="dataset"):
        raise DataError(
            f"{source} is no file here and could not be had from the hub: {reason}. Give a local "
            "file."
        )

    import datasets

    try:
        found = datasets.load_dataset(name, configuration or None)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{source} is no file here and could not be had from the hub: {first_line(error)} "
            "Check the spelling and the network; where there is none, give a local file."
        ) from error
    names = [split, "validation"] if split == "test" else [split]
    chosen = next((other for other in names if other in found), None)
    if chosen is None:
        raise DataError(f"{source} has no split {split!r}; it has: {', '.join(found)}.")
    table: pd.DataFrame = found[chosen].to_pandas()
    for column, feature in found[chosen].features.items():
        if isinstance(feature, datasets.ClassLabel):
            # -1 marks hidden labels of test sets.
            table[column] = ["" if v < 0 else feature.int2str(int(v)) for v in table[column]]
    return table
