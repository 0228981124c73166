"""Whether the quotes of a TSV file are marks around its fields, or characters of its texts.

A file is looked through row by row, read both ways at once, and never held.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from taskfit.errors import DataError

# Fields of a row, the header's first, or why it cannot be read; with the line that it starts on.
Row = tuple[int, list[str] | DataError]
# Stands for a carriage return that is no end of a line; Unicode keeps it from being a character.
STAND_IN = "\ufdd0"


@dataclass(slots=True)
class _Reading:
    """The rows of a file, read one way.

    Attributes:
        rows: What is left of them.
        num_rows: Sound rows so far, the header among them.
        num_unreadable: Rows so far that cannot be read.
        error: The first reason why one cannot be read, or the file cannot be read on from there.
        is_over: Whether there is nothing more to come.
    """

    rows: Iterator[Row]
    num_rows: int = 0
    num_unreadable: int = 0
    error: DataError | None = None
    is_over: bool = False
    is_broken: bool = False

    def next(self) -> list[str] | None:
        """Return the fields of the next row; None: it cannot be read, or there is none."""
        if self.is_over:
            return None
        try:
            _, row = next(self.rows)
        except StopIteration:
            self.is_over = True
            return None
        except DataError as error:
            self.error, self.is_over, self.is_broken = self.error or error, True, True
            return None
        if isinstance(row, DataError):
            self.error = self.error or row
            self.num_unreadable += 1
            return None
        self.num_rows += 1
        return row


@dataclass(slots=True)
class _Column:
    """What the fields of a column say of who wrote their quotes so.

    Attributes:
        name: As it stands in the header with quotes as characters.
        all_quoted: Whether every field that is not empty begins with a quote.
        has_fields: Whether there is one.
        num_doubled: Fields with doubled quotes inside.
        reasons: What single fields say; see `_reason`.
    """

    name: str
    all_quoted: bool = True
    has_fields: bool = False
    num_doubled: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, plain: str, content: str) -> None:
        """Look at a field, and at what it holds where quotes are marks."""
        if plain:
            self.has_fields = True
            self.all_quoted &= plain.startswith('"')
            self.num_doubled += '""' in plain[1:-1]
        self.reasons[_reason(plain, content)] += 1


@dataclass(frozen=True, slots=True)
class Quotes:
    """What the quotes of a file are.

    Attributes:
        are_marks: Whether they are marks around fields.
        notes: What people should know about it.
        trouble: What to tell where the file cannot be read whole either way.
    """

    are_marks: bool
    notes: tuple[str, ...] = ()
    trouble: DataError | None = None


def find_quotes(
    parse: Callable[[bool], Iterator[Row]],
    lines: Callable[[], Iterator[str]],
    *,
    source: str,
    delimiter: str,
) -> Quotes:
    """Find out what the quotes of a TSV file are.

    What cannot be read one way is meant the other way. Where both will do, see `_are_marks`.

    Args:
        parse: Reads the file from its beginning, quotes being marks or not.
        lines: The same lines that are parsed.
        source: What messages call the file.
        delimiter: Between its fields.

    Raises:
        DataError: If it can be read neither way.
    """
    marked, plain = _Reading(parse(True)), _Reading(parse(False))
    columns: list[_Column] | None = None
    header: list[str] = []
    while not (marked.is_over and plain.is_over):
        content, fields = marked.next(), plain.next()
        if columns is None:
            columns = [_Column(name) for name in fields or ()]
            header = content or []
        elif fields is not None and content is not None and len(fields) == len(content):
            for column, pair in zip(columns, zip(fields, content, strict=True), strict=True):
                column.add(*pair)
    if marked.error and plain.error:
        return _in_trouble(marked, plain)
    if marked.error or plain.error:
        return Quotes(marked.error is None)
    if marked.num_rows != plain.num_rows or len(header) != len(columns or ()):
        if _would_be_written((row for _, row in parse(True)), lines(), delimiter):
            return Quotes(True)
        return Quotes(True, (_note(source, "around", "some hold line breaks", "text"),))
    are_marks, reason = _are_marks(columns or ())
    where, other = ("around", "text") if are_marks else ("in", "marks")
    return Quotes(are_marks, (_note(source, where, reason, other),) if reason else ())


def _in_trouble(marked: _Reading, plain: _Reading) -> Quotes:
    """Return the way to read a file that has bad rows either way: the one that loses fewer."""
    trouble = DataError(
        f"{plain.error}\nWith quotes as marks around texts it cannot be read either: {marked.error}"
    )
    if marked.is_broken and plain.is_broken:
        raise trouble
    losses = [(one.is_broken, one.num_unreadable) for one in (marked, plain)]
    return Quotes(losses[0] < losses[1], trouble=trouble)


class _Digest:
    """A hash of a text that comes in pieces, without line breaks at its end."""

    def __init__(self) -> None:
        self._digest, self._breaks = hashlib.sha256(), 0

    def write(self, text: str) -> None:
        """Add a piece; a carriage return before a line feed does not count."""
        text = text.replace("\r\n", "\n")
        content = text.rstrip("\n")
        if content:
            self._digest.update(("\n" * self._breaks + content).encode("utf-8", "surrogatepass"))
            self._breaks = 0
        self._breaks += len(text) - len(content)

    def value(self) -> bytes:
        """Return the hash of what was added."""
        return self._digest.digest()


def _would_be_written(
    rows: Iterable[list[str] | DataError], lines: Iterable[str], delimiter: str
) -> bool:
    """Return whether Python's own writer of marks makes the same text of these rows."""
    least, most = _Digest(), _Digest()
    writers = [
        csv.writer(least, delimiter=delimiter, lineterminator="\n"),
        csv.writer(most, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL),
    ]
    for row in rows:
        if isinstance(row, DataError):
            return False
        for writer in writers:
            writer.writerow(row)
    given = _Digest()
    for line in lines:
        given.write(line)
    return given.value() in (least.value(), most.value())


def _note(source: str, where: str, reason: str, other: str) -> str:
    what = "marks around fields" if where == "around" else "characters of the texts"
    return (
        f"{source}: quotes are read as {what}, since {reason}; data.quotes={other} "
        f"(--quotes {other}) reads them the other way"
    )


def _are_marks(columns: Sequence[_Column]) -> tuple[bool, str]:
    """Tell whether the quotes of a file are marks: a writer that makes them would write it so.

    Writers put quotes around every field of a column, or around those that hold a quote (doubled
    then), a tab or a line break, Excel also around those that hold a comma. A field in quotes that
    need not be, or one without that would have to, says that no such writer made the file.

    Returns:
        Whether they are, and a reason where it could be otherwise.
    """
    counts: Counter[str] = Counter()
    whole_without_header = False
    for column in columns:
        if column.has_fields and column.all_quoted:
            counts["doubled"] += column.num_doubled
            whole_without_header |= not column.name.startswith('"')
        else:
            counts.update(column.reasons)
    speech = counts["needless"] or counts["bare"]
    if not speech and not (counts["comma"] and counts["bare comma"]):
        weak = not counts["doubled"] and (counts["comma"] or whole_without_header)
        return True, "every field that has them at both ends may need them" if weak else ""
    if counts["doubled"]:
        return True, "some are doubled inside, though not all fields are written so"
    in_pairs = counts["needless"] or counts["comma"]
    return False, "they stand around some texts only, as in speech" if in_pairs else ""


def _reason(field: str, content: str) -> str:
    """Return what a field and what it holds where quotes are marks say of who wrote them so."""
    if not field.startswith('"'):
        return "bare" if '"' in field else "bare comma" if "," in field else ""
    if '"' in content:
        return "doubled"
    if not content or STAND_IN in content or "\r" in content:
        return ""
    return "comma" if "," in content else "needless"
