"""Read CSV and TSV row by row: what separates columns, what quotes mean, where each row stands."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import pandas as pd

from taskfit.data.quotes import STAND_IN, Quotes, Row, find_quotes
from taskfit.errors import DataError

# What quotes at both ends of a field are: marks around it, characters of it, or to be found out.
QUOTES = ("auto", "marks", "text")
NOTES = "notes"
# What separates columns beside what the name of a file says, the likeliest first.
NAMES = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas"}
CLOSED = re.compile(r'"(?:[^"]|"")*+"')
LONE_RETURN = re.compile(r"\r(?!\n)")
SEPARATOR = re.compile(r'"?sep=(.)"?\r?')
# A stand-in of the file's own is written so, and a carriage return so.
ITSELF, RETURN = f"{STAND_IN}0", f"{STAND_IN}1"


class Delimited:
    """A CSV or TSV file, read with Python's reader, which knows the line of every row.

    Quotes around a field of a CSV file are marks. TSV files are written both ways, with quotes as
    marks (pandas, Excel) and as plain characters (many published sets), so `auto` looks through the
    file: see `find_quotes`.

    Attributes:
        header: Names of the columns.
        delimiter: What separates them.
        notes: Where a file could be meant either way, what was taken; and what separates the names
            in the first line, if it is something else.
        trouble: What to tell where the file cannot be read whole, whatever its quotes are.
    """

    def __init__(
        self,
        lines: Callable[[], Iterator[str]],
        source: str,
        delimiter: str,
        *,
        quotes: str = "auto",
    ) -> None:
        """Look at the beginning of a file, and at all of it where its quotes are to be found out.

        Args:
            lines: Reads its lines, from the first, cut at line feeds.
            source: What messages call it.
            delimiter: A comma or a tab.
            quotes: One of `QUOTES`.

        Raises:
            DataError: If it is not such a file.
        """
        csv.field_size_limit(2**31 - 1)
        self._lines, self._source, self.delimiter = lines, source, delimiter
        # Excel writes its separator into a first line, for itself.
        found = SEPARATOR.fullmatch(next(lines(), "").removesuffix("\n"))
        self._skipped = 1 if found else 0
        self.notes: list[str] = []
        if found:
            self.delimiter = found[1]
        elif (other := _other_delimiter(lines(), delimiter)) is not None:
            self.delimiter = other
            self.notes.append(f"{source}: its columns are separated by {NAMES[other]}")
        self._quotes = Quotes(are_marks=quotes != "text")
        if quotes == "auto" and self.delimiter == "\t" and any('"' in line for line in lines()):
            self._quotes = find_quotes(
                self._parse, self._read, source=source, delimiter=self.delimiter
            )
            self.notes += self._quotes.notes
        self.trouble = self._quotes.trouble
        _, header = next(self._parse(self._quotes.are_marks), (0, []))
        assert not isinstance(header, DataError), "a header that cannot be read is raised"
        self.header = [_with_returns(name) for name in header]

    @property
    def has_marks(self) -> bool:
        """Return whether quotes are marks around fields, and no characters of them."""
        return self._quotes.are_marks

    def rows(self) -> Iterator[Row]:
        """Yield the fields of each row, as many as the header's, with the line that it starts on.

        Blank lines are left out, rows of blank fields are not. In the place of a row that stands on
        one line and cannot be read comes the reason.

        Raises:
            DataError: Where a quote swallows lines, so that nobody can say where rows begin.
        """
        found = self._parse(self._quotes.are_marks)
        next(found, None)
        for line, row in found:
            if not isinstance(row, DataError):
                yield line, [_with_returns(text) if STAND_IN in text else text for text in row]
            else:
                yield line, row

    def table(self, rows: Sequence[tuple[int, list[str]]]) -> pd.DataFrame:
        """Return rows as a table of texts, indexed by line."""
        lines, fields = [line for line, _ in rows], [row for _, row in rows]
        return pd.DataFrame(fields, columns=self.header, index=lines, dtype="str")

    def _read(self) -> Iterator[str]:
        """Yield the lines behind the one that names the separator, in parts as rows may end.

        pandas on Python before 3.13 writes a carriage return in a text without quotes around it. In
        a file whose lines end with line feeds it is no end of a line, and something else stands for
        it.
        """
        lines = islice(self._lines(), self._skipped, None)
        first = next(lines, "")
        if not first.endswith("\n"):
            for part in io.StringIO(first, newline=""):
                yield part.replace(STAND_IN, ITSELF)
            return
        yield _without_returns(first)
        yield from map(_without_returns, lines)

    def _parse(self, marks: bool) -> Iterator[Row]:
        """Yield the header and then every row, quotes being marks or characters.

        Raises:
            DataError: See `rows`; and if the header cannot be read.
        """
        held: list[str] = []  # the lines of the row that is read
        reader = csv.reader(
            _held(self._read(), held),
            delimiter=self.delimiter,
            quoting=csv.QUOTE_MINIMAL if marks else csv.QUOTE_NONE,
            strict=True,
        )
        header: list[str] | None = None
        while True:
            held.clear()
            line = reader.line_num + 1 + self._skipped
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                reason = self._not_proper("".join(held), line, error, marks=marks)
                if header is None or len(held) > 1:
                    raise reason from error
                yield line, reason
                continue
            if header is None:
                if any(field.strip() for field in row):
                    header = [name.strip() for name in row]
                    check_columns(header, self._source)
                    yield line, header
            elif len(row) == len(header):
                yield line, row
            elif len(row) > 1 or any(field.strip() for field in row):
                reason = self._uneven(row, header, "".join(held), line)
                if len(held) > 1:
                    raise reason
                yield line, reason

    def _uneven(
        self, fields: Sequence[str], header: Sequence[str], row: str, line: int
    ) -> DataError:
        """Return the error that a row has other columns than the header."""
        where = ""
        for place, field, _ in _quoted_fields(row, self.delimiter):
            if "\n" in field:
                opened = line + row.count("\n", 0, place)
                end = opened + field.count("\n")
                where = f" A quote that is opened in line {opened} is closed in line {end}."
                break
        return DataError(
            f"{self._source}:{line} has {len(fields)} fields, its header {len(header)} "
            f"({', '.join(header)}).{where} Put quotes around texts that hold a "
            f"{self.delimiter!r}, or check whether a quote is left open above."
        )

    def _not_proper(self, row: str, line: int, error: csv.Error, *, marks: bool) -> DataError:
        """Return the error that Python's reader cannot read the row that starts on a line."""
        if not marks:
            return DataError(f"{self._source}:{line} is not proper: {error}.")
        name = "TSV" if self.delimiter == "\t" else "CSV"
        fields = list(_quoted_fields(row, self.delimiter))
        if not fields:
            return DataError(f"{self._source}:{line} is not proper {name}: {error}.")
        *_, (place, field, _) = fields
        line += row.count("\n", 0, place)
        plain = "Where quotes are plain characters, give data.quotes=text (--quotes text)."
        if CLOSED.fullmatch(field):
            return DataError(
                f"{self._source}:{line} is not proper {name}: a field in quotes goes on behind its "
                f'closing quote. Quotes inside such a field are written twice (""). {plain}'
            )
        return DataError(
            f"{self._source}:{line} is not proper {name}: the quote that is opened in line {line} "
            f"is closed nowhere, so the rest of the file would be one text. Close or remove it. "
            f"{plain}"
        )


def read_delimited(
    lines: Callable[[], Iterator[str]], source: str, delimiter: str, *, quotes: str = "auto"
) -> pd.DataFrame:
    """Read a CSV or TSV file whole; see `Delimited`.

    Returns:
        The table, indexed by line; its attribute `notes` holds the notes.

    Raises:
        DataError: If it is not such a file, or a row of it cannot be read.
    """
    found = Delimited(lines, source, delimiter, quotes=quotes)
    if found.trouble is not None:
        raise found.trouble
    rows: list[tuple[int, list[str]]] = []
    for line, row in found.rows():
        if isinstance(row, DataError):
            raise row
        rows.append((line, row))
    table = found.table(rows)
    table.attrs[NOTES] = found.notes
    return table


def _held(lines: Iterator[str], held: list[str]) -> Iterator[str]:
    """Yield lines, and keep them until they are cleared."""
    for line in lines:
        held.append(line)
        yield line


def _without_returns(line: str) -> str:
    """Return a line with something else in the place of carriage returns within it."""
    if "\r" not in line and STAND_IN not in line:
        return line
    return LONE_RETURN.sub(RETURN, line.replace(STAND_IN, ITSELF))


def _with_returns(text: str) -> str:
    return text.replace(RETURN, "\r").replace(ITSELF, STAND_IN)


def _other_delimiter(lines: Iterator[str], delimiter: str) -> str | None:
    """Return what separates the names of the first line, if it is not the delimiter.

    Spreadsheets write semicolons where a comma stands in numbers, and names of files lie.
    """
    first = next((line for line in islice(lines, 20) if line.strip()), "").strip()
    if delimiter in first:
        return None
    for other in NAMES:
        names = [name.strip(' "') for name in first.split(other)]
        if len(names) > 1 and all(names) and len(set(names)) == len(names):
            return other
    return None


def _quoted_fields(row: str, delimiter: str) -> Iterator[tuple[int, str, bool]]:
    """Yield place, text and whether it ends well of every field in quotes, up to one that does not.

    Args:
        row: From the start of a row; what is behind it is read as further rows.
        delimiter: Between fields.
    """
    ends = re.compile(f"[{re.escape(delimiter)}\r\n]")
    place = 0
    while place < len(row):
        if row[place] != '"':
            found = ends.search(row, place)
            if found is None:
                return
            place = found.end()
            continue
        closed = CLOSED.match(row, place)
        end = closed.end() if closed else len(row)
        ends_well = closed is not None and (end == len(row) or ends.match(row, end) is not None)
        yield place, row[place:end], ends_well
        if not ends_well:
            return
        place = end + 1


def check_columns(header: list[str], source: str) -> None:
    """Check that columns differ in name.

    Raises:
        DataError: Naming those that do not.
    """
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        shown = ", ".join(name or "'' (no name)" for name in twice)
        raise DataError(f"{source} has several columns named {shown}. Rename them.")
