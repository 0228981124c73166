"""Texts of the command line and of standard input, as tables."""

import hashlib
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO

import pandas as pd

from taskfit.data.cells import sound
from taskfit.data.contents import true_kind
from taskfit.data.sources import iter_lines, open_unpacked
from taskfit.data.windows import OpenTable, PlainTexts, TextTable, WholeTable
from taskfit.errors import DataError
from taskfit.runs.table_texts import GivenTable

FORMATS = ("text", "csv", "tsv", "jsonl")


class GivenTexts(GivenTable):
    """Texts of the command line."""

    name = "--text"

    def __init__(self, texts: Sequence[str]) -> None:
        """Take texts; see `texts_table`."""
        self._texts = texts

    def open(self, columns: tuple[str, ...]) -> OpenTable:
        """Return them as a table."""
        return WholeTable(texts_table(self._texts, columns), self.name)

    def content(self) -> str:
        """Return a hash of them."""
        return hashlib.sha256("\0".join(self._texts).encode()).hexdigest()


class StandardInput(GivenTable):
    """Standard input, read to its end into a file and never held whole."""

    name = "standard input"

    def __init__(
        self, stream: IO[bytes], path: Path, *, form: str, encoding: str, quotes: str
    ) -> None:
        """Read it to its end.

        Args:
            stream: Standard input.
            path: The file to make.
            form: One of `FORMATS`.
            encoding: Of the text.
            quotes: See `data.quotes`.
        """
        self._path, self._form, self._encoding, self._quotes = path, form, encoding, quotes
        with path.open("wb") as file:
            shutil.copyfileobj(stream, file)

    def open(self, columns: tuple[str, ...]) -> OpenTable:
        """Open what was read.

        Raises:
            DataError: If it is not in this format or encoding.
        """
        is_text = self._form == "text"
        with open_unpacked(self._path) as file:
            kind = true_kind(file, self.name, ".txt" if is_text else f".{self._form}")
        if kind not in (".txt", *(f".{name}" for name in FORMATS)):
            raise DataError(f"{self.name} is a {kind} file; give it by its name instead of -.")
        lines = partial(iter_lines, self._path, self._encoding, source=self.name)
        if not is_text:
            return TextTable(lines, kind=kind, source=self.name, quotes=self._quotes)
        if len(columns) > 1:
            raise DataError(
                f"This task reads {', '.join(columns)}, and a line is one text. Give --format csv "
                "or jsonl with these columns."
            )
        return PlainTexts(lines, column=columns[0], source=self.name)

    def content(self) -> str:
        """Return a hash of what was read."""
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"{digest} {self._form} {self._encoding} {self._quotes}"


def texts_table(texts: Sequence[str], columns: tuple[str, ...]) -> pd.DataFrame:
    """Return texts of the command line as a table.

    Args:
        texts: Of a task of one text column as they are; of several `COLUMN=TEXT`, a text for every
            column and then those of the next row.
        columns: The task's text columns.

    Raises:
        DataError: If a text does not say its column, or a row has not all of them.
    """
    texts = [sound(text, f"--text {place}") for place, text in enumerate(texts, start=1)]
    if len(columns) == 1:
        return pd.DataFrame({columns[0]: list(texts)}, index=range(1, len(texts) + 1), dtype=str)
    by_column: dict[str, list[str]] = {name: [] for name in columns}
    example = " ".join(f'--text "{name}=..."' for name in columns)
    for text in texts:
        name, equals, rest = text.partition("=")
        if not equals or name.strip() not in by_column:
            raise DataError(
                f"--text {text!r}: this task reads {', '.join(columns)}; write {example}"
            )
        by_column[name.strip()].append(rest)
    if len({len(found) for found in by_column.values()}) > 1:
        counts = ", ".join(f"{len(found)} of {name}" for name, found in by_column.items())
        raise DataError(f"--text: every row needs each column, but there are {counts}: {example}")
    rows = len(by_column[columns[0]])
    return pd.DataFrame(by_column, index=range(1, rows + 1), dtype=str)
