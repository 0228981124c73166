"""The texts of a table that a finished run is to label, in windows or whole."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from taskfit.data import Example, notes_of, rename_columns
from taskfit.data.cells import not_texts, shortened
from taskfit.data.windows import OpenTable, Window, content_hash, open_table
from taskfit.errors import DataError, suggestion
from taskfit.runs.rows import text_examples
from taskfit.screen import Screen
from taskfit.tasks.questions import Asked

# So many rows are looked at before a model is loaded.
LOOK_ROWS = 100


class GivenTable(ABC):
    """Where texts come from.

    Attributes:
        name: What messages call it.
    """

    name: str

    @abstractmethod
    def open(self, columns: tuple[str, ...]) -> OpenTable:
        """Return the table, given the text columns of the task."""

    @abstractmethod
    def content(self) -> str:
        """Return a hash of all that is in it and of how it is read."""

    def is_unchanged(self) -> bool:
        """Return whether it still is what it was when it was opened, as far as is seen."""
        return True

    def texts(
        self, asked: Asked, columns: Mapping[str, str], *, only_predictions: bool = False
    ) -> "Texts":
        """Return its texts; see `Texts`."""
        table = self.open(tuple(asked.text))
        return Texts(table, asked, columns=columns, only_predictions=only_predictions)


class GivenFile(GivenTable):
    """A file or hub set."""

    def __init__(self, source: str, *, encoding: str, quotes: str) -> None:
        """Name it; see `open_table`."""
        self.name, self._encoding, self._quotes = source, encoding, quotes
        self._stamp: tuple[int, int] | None = None

    def open(self, columns: tuple[str, ...]) -> OpenTable:
        """Open it; see `open_table`."""
        self._stamp = self._now()
        return open_table(self.name, encoding=self._encoding, split="test", quotes=self._quotes)

    def content(self) -> str:
        """Return a hash of it, with the name that stands in ids."""
        found = content_hash(self.name, split="test")
        return f"{self.name} {found} {self._encoding} {self._quotes}"

    def is_unchanged(self) -> bool:
        """Return whether size and time of a file are what they were when it was opened."""
        return self._stamp == self._now()

    def _now(self) -> tuple[int, int] | None:
        try:
            found = Path(self.name).expanduser().stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a table as texts.

    Attributes:
        texts: N of them.
        errors: Place of a row, from 0 -> why it cannot be read.
    """

    texts: Sequence[Example]
    errors: Mapping[int, str] = field(default_factory=dict)


class Texts:
    """The texts of a table, in windows.

    Attributes:
        table: Where they come from.
        asked: The task of one question or of several.
        first: The first of them.
    """

    def __init__(
        self,
        table: OpenTable,
        asked: Asked,
        *,
        columns: Mapping[str, str],
        only_predictions: bool = False,
    ) -> None:
        """Look at the first of them.

        Args:
            table: As it was opened.
            asked: The task of one question or of several.
            columns: Column of the task -> column of the table, where it has another name.
            only_predictions: Whether other columns are left out.

        Raises:
            DataError: If a column is not there, or no row of the first ones is a text.
        """
        self.table, self.asked, self._columns = table, asked, columns
        self._only_predictions = only_predictions
        check_named(columns, asked.text)
        self.first = next(self.windows(LOOK_ROWS))()
        if len(self.first.errors) == len(self.first.texts):
            raise DataError(next(iter(self.first.errors.values())))

    def windows(self, size: int) -> Iterator[Callable[[], Rows]]:
        """Yield what makes the texts of each window; call it or leave it."""
        for make in self.table.windows(size):
            yield lambda make=make: self._rows(make())  # type: ignore[misc]

    def _rows(self, window: Window) -> Rows:
        source = self.table.source
        table = rename_columns(window.table, self._columns, source=source)
        errors = dict(window.errors)
        for name in self.asked.text:
            for place, value in not_texts(table[name]) if name in table else ():
                errors[place] = (
                    f"{source}:{table.index[place]}: column {name!r} holds {value.what}: "
                    f"{shortened(value)}. Texts are needed; write what is meant into a column of "
                    "its own."
                )
            if name in table:
                table[name] = table[name].map(str).astype("str")
        others = () if self._only_predictions else other_columns(table, self.asked.text)
        texts = text_examples(table, self.asked, source=source, carried=others, require_text=False)
        return Rows(texts, errors)


def other_columns(table: pd.DataFrame, texts: Sequence[str]) -> list[str]:
    """Return the columns of a table beside those of the texts."""
    return [str(name) for name in table.columns if name not in texts]


def named_columns(
    table: pd.DataFrame,
    columns: Mapping[str, str],
    known: Sequence[str],
    source: str,
    screen: Screen,
) -> pd.DataFrame:
    """Return a table whose columns have the names of the task's; say how it was read.

    Args:
        table: As it was read.
        columns: Column of the task -> column of the table.
        known: Columns of the task.
        source: What messages call the table.
        screen: Where it is said.

    Raises:
        DataError: If the task or the table has no such column.
    """
    for note in notes_of(table):
        screen.note(note)
    check_named(columns, known)
    return rename_columns(table, columns, source=source) if columns else table


def check_named(columns: Mapping[str, str], known: Sequence[str]) -> None:
    """Check that the columns of a task that others are named for are there.

    Args:
        columns: Column of the task -> column of a table.
        known: Columns of the task.

    Raises:
        DataError: If the task has no such column.
    """
    for name in columns:
        if name not in known:
            raise DataError(
                f"--column {name}={columns[name]}: the task reads no column {name!r}, but "
                f"{', '.join(known)}.{suggestion(name, known)}"
            )
