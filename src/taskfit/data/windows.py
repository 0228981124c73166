"""Tables that are read in windows, so that none is held whole.

A table is looked through once when it is opened: how many rows there are, which columns, what
cannot be read. What a window holds is what `read_table` gives of its rows.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from taskfit.data.arrow_rows import arrow_table, cut_evenly, finest_times, time_columns
from taskfit.data.delimited import Delimited
from taskfit.data.json_rows import is_array, iter_objects, json_table
from taskfit.data.sources import (
    explaining_parquet,
    find_file,
    find_hub,
    hub_table,
    iter_lines,
    open_parquet,
    parquet_columns,
)
from taskfit.data.tables import DELIMITERS, contents, notes_of, read_table, require_content
from taskfit.errors import DataError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

Lines = Callable[[], Iterator[tuple[int, str]]]
LOOK_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Window:
    """Rows of a table that follow one another.

    Attributes:
        table: As `read_table` returns it; a row that cannot be read has empty texts.
        errors: Place of a row in the window, from 0 -> why it cannot be read.
    """

    table: pd.DataFrame
    errors: Mapping[int, str] = field(default_factory=dict)


class OpenTable(ABC):
    """A table that is read in windows.

    Attributes:
        source: What messages call it.
        columns: Names of the columns.
        num_rows: Rows, those that cannot be read among them.
        notes: What people should know about how it is read.
    """

    source: str
    columns: list[str]
    num_rows: int
    notes: list[str]

    def windows(self, size: int) -> Iterator[Callable[[], Window]]:
        """Yield what makes each window of so many rows, the last of fewer; call it or leave it."""
        for start, rows in enumerate(self._parts(size)):
            yield partial(self._window, rows, start * size)

    @abstractmethod
    def _parts(self, size: int) -> Iterator[Any]:
        """Yield the rows of each window, as they are read."""

    @abstractmethod
    def _window(self, rows: Any, start: int) -> Window:  # noqa: ANN401 - what `_parts` yields
        """Return rows as a window, of which so many come before."""


class TextTable(OpenTable):
    """A CSV, TSV or JSONL file."""

    def __init__(self, lines: Lines, *, kind: str, source: str, quotes: str = "auto") -> None:
        """Look through a file.

        Args:
            lines: Reads its lines, from the first, each with its number, line ends kept.
            kind: .csv, .tsv, or any other for JSONL.
            source: What messages call it.
            quotes: See `Delimited`.

        Raises:
            DataError: If it cannot be read, holds no row, or none that can be read.
        """
        require_content(lines, source)
        self.source, self.notes = source, []
        self._make: Callable[[list[Any]], pd.DataFrame]
        names: dict[str, None] = {}
        self._blank: list[str] | dict[str, str] = {}
        if kind in DELIMITERS:
            file = Delimited(partial(contents, lines), source, DELIMITERS[kind], quotes=quotes)
            self._rows: Callable[[], Iterator[tuple[int, Any]]] = file.rows
            self._make, self.notes = file.table, file.notes
            names, self._blank = dict.fromkeys(file.header), [""] * len(file.header)
        else:
            self._rows = partial(iter_objects, lines, source)
            self._make = self._objects
        self.num_rows, first_error, is_readable = 0, None, False
        for _, row in self._rows():
            self.num_rows += 1
            if isinstance(row, DataError):
                first_error = first_error or row
                continue
            is_readable = True
            if isinstance(row, dict):
                names.update(dict.fromkeys(row))
        self.columns = list(names)
        if first_error is not None and not is_readable:
            raise first_error
        _require_rows(self)

    def _objects(self, rows: list[Any]) -> pd.DataFrame:
        found = json_table(iter(rows))
        # A column that no row of this window has.
        return found.reindex(columns=self.columns, fill_value="").astype(
            {name: "str" for name in self.columns if name not in found.columns}
        )

    def _parts(self, size: int) -> Iterator[Any]:
        rows = self._rows()
        while part := list(islice(rows, size)):
            yield part

    def _window(self, rows: Any, start: int) -> Window:  # noqa: ANN401
        errors = {i: str(row) for i, (_, row) in enumerate(rows) if isinstance(row, DataError)}
        sound = [(line, self._blank if i in errors else row) for i, (line, row) in enumerate(rows)]
        return Window(self._make(sound), errors)


class PlainTexts(OpenTable):
    """A text a line, blank ones too."""

    def __init__(self, lines: Lines, *, column: str, source: str) -> None:
        """Count the lines of a file; see `TextTable`.

        Raises:
            DataError: If no line holds a text.
        """
        self.source, self.columns, self.notes = source, [column], []
        self._lines, self.num_rows, holds_text = lines, 0, False
        for _, content in lines():
            self.num_rows += 1
            holds_text = holds_text or bool(content.strip())
        if not holds_text:
            raise DataError(f"{source[0].upper()}{source[1:]} holds no text.")

    def _parts(self, size: int) -> Iterator[Any]:
        lines = self._lines()
        while part := list(islice(lines, size)):
            yield part

    def _window(self, rows: Any, start: int) -> Window:  # noqa: ANN401
        texts = {self.columns[0]: [content.rstrip("\r\n") for _, content in rows]}
        return Window(pd.DataFrame(texts, index=[line for line, _ in rows], dtype=str))


class ArrowTable(OpenTable):
    """A Parquet file or a hub set."""

    def __init__(
        self,
        tables: Callable[[int, list[str] | None], Iterator["pa.Table"]],
        *,
        num_rows: int,
        schema: "pa.Schema",
        columns: list[str],
        source: str,
    ) -> None:
        """Look through the columns of times.

        Args:
            tables: Given a number of rows and columns (None: all), reads so many at a time.
            num_rows: Rows.
            schema: Of the columns.
            columns: Those to read.
            source: What messages call it.

        Raises:
            DataError: If it cannot be read, or holds no row.
        """
        self.source, self.columns, self.num_rows, self.notes = source, columns, num_rows, []
        self._tables = tables
        times = [name for name in time_columns(schema) if name in columns]
        self._finest = finest_times(tables(LOOK_ROWS, times)) if times else {}
        _require_rows(self)

    def _parts(self, size: int) -> Iterator[Any]:
        return cut_evenly(self._tables(size, self.columns), size)

    def _window(self, rows: Any, start: int) -> Window:  # noqa: ANN401
        return Window(arrow_table(rows, self.source, start=start, finest=self._finest))


class WholeTable(OpenTable):
    """A table in memory: Excel files and JSON arrays are read whole."""

    def __init__(self, table: pd.DataFrame, source: str) -> None:
        """Cut a table that was read into windows."""
        self.source, self.notes = source, notes_of(table)
        self.columns, self.num_rows = [str(name) for name in table.columns], len(table)
        self._table = table

    def _parts(self, size: int) -> Iterator[Any]:
        for start in range(0, len(self._table), size):
            yield self._table.iloc[start : start + size]

    def _window(self, rows: Any, start: int) -> Window:  # noqa: ANN401
        return Window(rows)


def open_table(
    source: str, *, encoding: str = "utf-8", split: str = "train", quotes: str = "auto"
) -> OpenTable:
    """Open a table that is read in windows; see `read_table`, which takes the same.

    Rows of CSV, TSV and JSONL files that cannot be read are no error here, unless all are.

    Raises:
        DataError: If it cannot be found or read, or holds no row.
    """
    file = find_file(source)
    if file is None:
        return _hub_table(find_hub(source, split=split), source)
    path, kind = file
    lines = partial(iter_lines, path, encoding)
    if kind == ".parquet":
        return _parquet_table(open_parquet(path), path, source)
    if kind == ".xlsx" or is_array(lines, kind):
        return WholeTable(read_table(source, encoding=encoding, quotes=quotes), source)
    return TextTable(lines, kind=kind, source=source, quotes=quotes)


def content_hash(source: str, *, split: str = "train") -> str:
    """Return a hash of all that a source holds, so that a change in it is noticed.

    Args:
        source: As a user names it.
        split: Of a hub data set.

    Raises:
        DataError: If it cannot be found.
    """
    file = find_file(source)
    if file is None:
        return str(find_hub(source, split=split)._fingerprint)
    with file[0].open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _require_rows(table: OpenTable) -> None:
    if not table.num_rows:
        raise DataError(f"{table.source} holds no row below its header. Is it the right file?")


def _parquet_table(file: "pq.ParquetFile", path: Path, source: str) -> ArrowTable:
    import pyarrow as pa

    def tables(size: int, columns: list[str] | None) -> Iterator["pa.Table"]:
        with explaining_parquet(path):
            for batch in file.iter_batches(batch_size=size, columns=columns):
                yield pa.Table.from_batches([batch])

    schema = file.schema_arrow
    return ArrowTable(
        tables,
        num_rows=file.metadata.num_rows,
        schema=schema,
        columns=parquet_columns(file),
        source=source,
    )


def _hub_table(found: "datasets.Dataset", source: str) -> ArrowTable:
    def tables(size: int, columns: list[str] | None) -> Iterator["pa.Table"]:
        chosen = found.select_columns(columns) if columns is not None else found
        for part in chosen.with_format("arrow").iter(batch_size=size):
            yield hub_table(part, found)

    return ArrowTable(
        tables,
        num_rows=len(found),
        schema=found.features.arrow_schema,
        columns=list(found.column_names),
        source=source,
    )
