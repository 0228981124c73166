"""Where tables and records come from: files of several formats, packed or not, and the hub."""

import codecs
import gzip
import importlib.util
import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from taskfit.data.contents import GZIP, HEAD, true_encoding, true_kind
from taskfit.data.hub import why_not_at_hand
from taskfit.errors import DataError, first_line, suggestion

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xlsx")
# Other names of the same.
SAME = {".ndjson": ".jsonl", ".xlsm": ".xlsx", ".pq": ".parquet"}
# Encodings that such files have in practice, in the order in which they are tried for the hint.
OTHER_ENCODINGS = ("utf-16", "cp1252", "latin-1")
SHOWN_FILES = 5
PAGE_BYTES = 2**20


def find_file(source: str) -> tuple[Path, str] | None:
    """Return a file and its format; None: it is a hub id.

    The format is one of `FORMATS`: that of its ending (without .gz), unless the file's first bytes
    tell that it is another.

    Args:
        source: As a user names it.

    Raises:
        DataError: If there is no such file, and the name looks like none on the hub; or if it is
            of a kind that is not read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path, _kind(path, source)
    folder, name = path.parent, source.split(":")[0]
    if path.is_dir():
        raise _folder(path, source)
    if folder.is_dir():
        hint = suggestion(path.name, [other.name for other in folder.iterdir()])
        raise DataError(f"There is no file {source}.{hint}")
    if (
        name.count("/") != 1
        or source.startswith((".", "/", "~"))
        or name.lower().endswith((*FORMATS, ".gz"))
    ):
        raise DataError(f"There is no file {source}, nor a folder {folder}.")
    return None


def _folder(path: Path, source: str) -> DataError:
    """Return the error that a folder is given, with the files in it that could be."""
    names = sorted(
        other.name
        for other in path.iterdir()
        if other.is_file()
        and not other.name.startswith(".")
        and any(s.lower() in (*FORMATS, *SAME) for s in other.suffixes)
    )
    shown = ", ".join(names[:SHOWN_FILES]) + (", ..." if len(names) > SHOWN_FILES else "")
    return DataError(
        f"{source} is a folder; give a file of it"
        + (f", such as {path / names[0]} (it holds {shown})." if names else ".")
        + (" Put several into one file first." if len(names) > 1 else "")
    )


def _kind(path: Path, source: str) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    ending = suffixes[-1] if suffixes else path.suffix.lower()
    try:
        with open_unpacked(path) as file:
            kind = true_kind(file, source, SAME.get(ending, ending))
    except (OSError, EOFError) as error:
        raise unreadable(source, error) from error
    if kind not in FORMATS:
        raise DataError(
            f"{source}: files of kind {kind or '(no ending)'} are not read; allowed are "
            f"{', '.join(FORMATS)}, each also with .gz. Convert the file or rename it."
        )
    return kind


def unreadable(source: object, error: BaseException) -> DataError:
    """Return the error that a file cannot be opened or unpacked."""
    reason = getattr(error, "strerror", None) or first_line(error)
    return DataError(f"{source} cannot be read: {reason}.")


def open_unpacked(path: Path) -> IO[bytes]:
    """Open a file, unpacked where it begins as gzip does, whatever its name."""
    file = path.open("rb")
    packed = file.read(len(GZIP)) == GZIP
    file.seek(0)
    if not packed:
        return file
    file.close()
    return gzip.open(path, "rb")  # type: ignore[return-value]


def iter_lines(
    path: Path, encoding: str, *, source: str | None = None
) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file with their numbers, from 1; see `decode_lines`.

    Args:
        path: The file, which may be packed.
        encoding: Of the text.
        source: What messages call it; None: its path.

    Raises:
        DataError: If it cannot be read, or not in this encoding.
    """
    source = source or str(path)
    try:
        with open_unpacked(path) as file:
            yield from decode_lines(file, source, encoding)
    except (OSError, EOFError) as error:
        raise unreadable(source, error) from error


def decode_lines(file: IO[bytes], source: str, encoding: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text with their numbers, from 1, ends kept, without a byte order mark.

    Args:
        file: Unpacked, at its beginning; it can be read from there again.
        source: What messages call it.
        encoding: Of the text; UTF-8 gives way to a mark of UTF-16.

    Raises:
        DataError: If it is not in this encoding, or Python does not know it.
    """
    try:
        name = codecs.lookup(encoding).name
    except LookupError as error:
        raise DataError(f"data.encoding is {encoding!r}, which Python does not know.") from error
    head = file.read(HEAD)
    file.seek(0)
    name = true_encoding(head, source, name)
    # Python must not take other characters than line feeds for ends of lines: texts hold them.
    decoder = io.TextIOWrapper(file, encoding=name, newline="\n")
    try:
        for number, line in enumerate(decoder, start=1):
            yield number, line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeError as error:
        file.seek(0)
        raise _wrong_encoding(file.read(), source, encoding, name) from error
    finally:
        decoder.detach()


def _wrong_encoding(raw: bytes, source: str, encoding: str, name: str) -> DataError:
    if b"\0" in raw and not name.startswith(("utf-16", "utf-32")):
        return DataError(f"{source} is no text, as it seems: it holds bytes of value 0.")
    place = min(_undecoded(raw, name) or 0, len(raw) - 1)
    line = raw[:place].count(b"\n") + 1
    fits = [other for other in OTHER_ENCODINGS if _undecoded(raw, other) is None]
    return DataError(
        f"{source}:{line} is not {encoding}: byte {raw[place]:#04x} at position {place}. Give its "
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
    except UnicodeError:
        return 0
    return None


def open_parquet(path: Path) -> "pq.ParquetFile":
    """Open a Parquet file that is read in parts; a packed one is unpacked into a temporary file.

    Raises:
        DataError: If it cannot be read.
    """
    import pyarrow.parquet as pq

    # Pages are read as they are needed: one part of a file may hold a million rows.
    options = {"buffer_size": PAGE_BYTES, "pre_buffer": False}
    with explaining_parquet(path), open_unpacked(path) as file:
        if not isinstance(file, gzip.GzipFile):
            return pq.ParquetFile(path, **options)
        # What is open stays so when its name is gone; some systems keep the name until the end.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            unpacked = Path(folder) / "unpacked.parquet"
            with unpacked.open("wb") as target:
                shutil.copyfileobj(file, target)
            return pq.ParquetFile(unpacked, **options)


@contextmanager
def explaining_parquet(path: Path) -> Iterator[None]:
    """Turn what goes wrong in a Parquet file into one message.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        yield
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{path} is not a Parquet file that can be read: {first_line(error)}"
        ) from error


def parquet_columns(file: "pq.ParquetFile") -> list[str]:
    """Return the columns of a Parquet file, but for the index that pandas may have written."""
    names = file.schema_arrow.names
    return [name for name in names if not name.startswith("__index_level_")]


def read_parquet(path: Path) -> "pa.Table":
    """Read a Parquet file as it is, but for the index that pandas may have written.

    Raises:
        DataError: If it cannot be read.
    """
    file = open_parquet(path)
    with explaining_parquet(path):
        table = file.read()
    names = parquet_columns(file)
    return table.select([i for i, name in enumerate(table.column_names) if name in names])


def read_hub(source: str, *, split: str) -> "pa.Table":
    """Read one split of a hub data set whole; see `find_hub` and `hub_table`.

    Raises:
        DataError: If the package or the data set cannot be had.
    """
    found = find_hub(source, split=split)
    return hub_table(found.with_format("arrow")[:], found)


def find_hub(source: str, *, split: str) -> "datasets.Dataset":
    """Find one split of a hub data set, which lies on this machine's disk from then on.

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
    return found[chosen]


def hub_table(table: "pa.Table", of: "datasets.Dataset") -> "pa.Table":
    """Return rows of a data set as they are, but for class labels, which become their names."""
    import datasets
    import pyarrow as pa

    for place, column in enumerate(table.column_names):
        feature = of.features[column]
        if isinstance(feature, datasets.ClassLabel):
            # -1 marks hidden labels of test sets.
            names = [
                "" if v is None or v < 0 else feature.int2str(v) for v in table[column].to_pylist()
            ]
            table = table.set_column(place, column, pa.array(names, pa.string()))
    return table
