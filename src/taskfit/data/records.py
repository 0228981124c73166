"""Read the rows of a file as they are, one at a time, with the line each stands on.

`taskfit.data.tables` reads tables of texts; here values keep their structure, since the messages of
a conversation are a list.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from taskfit.data.cells import text_of
from taskfit.data.json_rows import iter_rows
from taskfit.data.sources import find_file, iter_lines, read_hub, read_parquet
from taskfit.data.tables import read_table

if TYPE_CHECKING:
    import pyarrow as pa


class Record(NamedTuple):
    """A row of a file.

    Attributes:
        line: The line it starts on, from 1 (the row's number for Parquet and hub, and in an array
            of which several start on one line).
        values: Its fields.
    """

    line: int
    values: dict[str, Any]


def iter_records(source: str, *, encoding: str = "utf-8") -> Iterator[Record]:
    """Yield the rows of a file in order; JSONL is read line by line, the others as a whole.

    Args:
        source: A .json (one array of objects), .jsonl, .csv, .tsv, .parquet or .xlsx file, also
            with .gz behind, or a hub id `owner/name` or `owner/name:configuration`; of it `train`
            is read.
        encoding: Of text files.

    Raises:
        DataError: If it cannot be found or read.
    """
    file = find_file(source)
    if file is None:
        yield from _numbered(read_hub(source, split="train"))
        return
    path, kind = file
    if kind == ".parquet":
        yield from _numbered(read_parquet(path))
    elif kind in (".csv", ".tsv", ".xlsx"):
        table = read_table(source, encoding=encoding)
        for line, row in zip(table.index, table.to_dict("records"), strict=True):
            yield Record(int(line), {str(name): value for name, value in row.items()})
    else:
        for line, values in iter_rows(lambda: iter_lines(path, encoding), str(path), kind=kind):
            yield Record(line, values)


def _numbered(table: "pa.Table") -> Iterator[Record]:
    """Yield the rows of a table; what is missing is None."""
    for line, row in enumerate(table.to_pylist(), start=1):
        yield Record(line, {name: _plain(value) for name, value in row.items()})


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever a Parquet file holds
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, bytes):
        return text_of(value)
    return None if isinstance(value, float) and value != value else value
