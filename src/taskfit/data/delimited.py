"""Read CSV and TSV: what quotes mean in a file, and on which line its rows stand."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from taskfit.errors import DataError

# What quotes at both ends of a field are: marks around it, characters of it, or to be found out.
QUOTES = ("auto", "marks", "text")
NOTES = "notes"
# What separates columns beside what the name of a file says, the likeliest first.
NAMES = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas"}
CLOSED = re.compile(r'"(?:[^"]|"")*+"')
LONE_RETURN = re.compile(r"\r(?!\n)")
# Unicode keeps these from being characters, so hardly any text holds one.
STAND_INS = tuple(map(chr, range(0xFDD0, 0xFDF0)))

RETURNS = frozenset(("\r", *STAND_INS))


@dataclass(frozen=True, slots=True)
class _Rows:
    """Fields of a file.

    Attributes:
        header: Names of the columns.
        rows: Fields of each row, as many as the header's.
        lines: The line each row starts on.
    """

    header: list[str]
    rows: list[list[str]]
    lines: list[int]


def read_delimited(text: str, source: str, delimiter: str, *, quotes: str = "auto") -> pd.DataFrame:
    """Read CSV or TSV with Python's reader, which knows the line of every row.

    Quotes around a field of a CSV file are marks. TSV files are written both ways, with quotes as
    marks (pandas, Excel) and as plain characters (many published sets), so `auto` looks: see
    `_are_marks`. Where a file could be meant either way, the table's attribute `notes` says what
    was taken; so it does where the names in the first line are separated by something else.

    Args:
        text: The file's.
        source: What messages call it.
        delimiter: A comma or a tab.
        quotes: One of `QUOTES`.

    Returns:
        The table, indexed by line. Blank lines are left out, rows of blank fields are kept.

    Raises:
        DataError: If it is not such a file.
    """
    csv.field_size_limit(2**31 - 1)
    # Excel writes its separator into a first line, for itself.
    first, _, rest = text.partition("\n")
    skipped = 0
    if found := re.fullmatch(r'"?sep=(.)"?\r?', first):
        text, delimiter, skipped = rest, found[1], 1
    notes: list[str] = []
    if not found and (other := _other_delimiter(text, delimiter)) is not None:
        delimiter = other
        notes.append(f"{source}: its columns are separated by {NAMES[other]}")
    # pandas on Python before 3.13 writes a carriage return in a text without quotes around it. In a
    # file whose lines end with line feeds it is no end of a line.
    stand_in = None
    if "\n" in text and LONE_RETURN.search(text):
        stand_in = next((c for c in STAND_INS if c not in text), None)
    if stand_in is not None:
        text = LONE_RETURN.sub(stand_in, text)
    if quotes == "auto" and delimiter == "\t" and '"' in text:
        found_rows, told = _of_either_kind(text, source, delimiter, skipped)
        notes += told
    else:
        found_rows = _parse(text, source, delimiter, skipped, marks=quotes != "text")
    if stand_in is not None:
        found_rows = _with_returns(found_rows, stand_in)
    table = pd.DataFrame(
        found_rows.rows, columns=found_rows.header, index=found_rows.lines, dtype="str"
    )
    table.attrs[NOTES] = notes
    return table


def _other_delimiter(text: str, delimiter: str) -> str | None:
    """Return what separates the names of the first line, if it is not the delimiter.

    Spreadsheets write semicolons where a comma stands in numbers, and names of files lie.
    """
    first = next((line for line in text.split("\n", 20) if line.strip()), "").strip()
    if delimiter in first:
        return None
    for other in NAMES:
        names = [name.strip(' "') for name in first.split(other)]
        if len(names) > 1 and all(names) and len(set(names)) == len(names):
            return other
    return None


def _of_either_kind(
    text: str, source: str, delimiter: str, skipped: int
) -> tuple[_Rows, list[str]]:
    """Read a TSV file whose quotes may be marks or characters; return what there is to tell."""
    try:
        marked = _parse(text, source, delimiter, skipped, marks=True)
    except DataError as no_marks:
        try:
            return _parse(text, source, delimiter, skipped, marks=False), []
        except DataError as error:
            raise DataError(
                f"{error}\nWith quotes as marks around texts it cannot be read either: {no_marks}"
            ) from error
    try:
        plain = _parse(text, source, delimiter, skipped, marks=False)
    except DataError:
        return marked, []
    if len(plain.rows) != len(marked.rows):
        sure = _would_be_written(marked, text, delimiter)
        return marked, [] if sure else [_note(source, "around", "some hold line breaks", "text")]
    marks, reason = _are_marks(plain, marked)
    if marks:
        return marked, [_note(source, "around", reason, "text")] if reason else []
    return plain, [_note(source, "in", reason, "marks")] if reason else []


def _would_be_written(found: _Rows, text: str, delimiter: str) -> bool:
    """Return whether Python's own writer of marks makes the same text of these rows."""
    plain = text.replace("\r\n", "\n").rstrip("\n")
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        file = io.StringIO()
        writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator="\n")
        writer.writerows([found.header, *found.rows])
        if file.getvalue().replace("\r\n", "\n").rstrip("\n") == plain:
            return True
    return False


def _note(source: str, where: str, reason: str, other: str) -> str:
    what = "marks around fields" if where == "around" else "characters of the texts"
    return (
        f"{source}: quotes are read as {what}, since {reason}; data.quotes={other} "
        f"(--quotes {other}) reads them the other way"
    )


def _are_marks(plain: _Rows, marked: _Rows) -> tuple[bool, str]:
    """Tell whether the quotes of a file are marks: a writer that makes them would write it so.

    Writers put quotes around every field of a column, or around those that hold a quote (doubled
    then), a tab or a line break, Excel also around those that hold a comma. A field in quotes that
    need not be, or one without that would have to, says that no such writer made the file.

    Args:
        plain: The file with quotes as characters.
        marked: The same with quotes as marks.

    Returns:
        Whether they are, and a reason where it could be otherwise.
    """
    counts: Counter[str] = Counter()
    whole_without_header = False
    for place, name in enumerate(plain.header):
        pairs = [
            (row[place], other[place]) for row, other in zip(plain.rows, marked.rows, strict=True)
        ]
        fields = [field for field, _ in pairs if field]
        if fields and all(field.startswith('"') for field in fields):
            counts["doubled"] += sum('""' in field[1:-1] for field in fields)
            whole_without_header |= not name.startswith('"')
        else:
            counts.update(_reason(*pair) for pair in pairs)
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
    if "," in content:
        return "comma"
    return "" if not content or RETURNS & set(content) else "needless"


def _with_returns(found: _Rows, stand_in: str) -> _Rows:
    def back(fields: Sequence[str]) -> list[str]:
        return [field.replace(stand_in, "\r") for field in fields]

    return _Rows(back(found.header), [back(row) for row in found.rows], found.lines)


def _parse(text: str, source: str, delimiter: str, skipped: int, *, marks: bool) -> _Rows:
    """Read rows, quotes being marks or characters."""
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if marks else csv.QUOTE_NONE,
        strict=True,
    )
    header: list[str] | None = None
    rows: list[list[str]] = []
    lines: list[int] = []
    start = 1
    try:
        for row in reader:
            line, start = start, reader.line_num + 1
            if header is None:
                if any(field.strip() for field in row):
                    header = [name.strip() for name in row]
                    check_columns(header, source)
                continue
            if len(row) != len(header):
                if not any(field.strip() for field in row) and len(row) <= 1:
                    continue
                part = _lines_of(text, line, start - 1)
                raise _uneven(row, header, part, source, line + skipped, delimiter)
            rows.append(row)
            lines.append(line + skipped)
    except csv.Error as error:
        if not marks:
            raise DataError(f"{source}:{start + skipped} is not proper: {error}.") from error
        rest = _lines_of(text, start, None)
        raise _not_proper(rest, source, start + skipped, delimiter) from error
    return _Rows(header or [], rows, lines)


def _lines_of(text: str, first: int, last: int | None) -> str:
    """Return the lines from one to another, both counted from 1; None: to the end."""
    return "".join(list(io.StringIO(text, newline=""))[first - 1 : last])


def _uneven(
    fields: Sequence[str], header: Sequence[str], row: str, source: str, line: int, delimiter: str
) -> DataError:
    """Return the error that a row has other columns than the header."""
    where = ""
    for place, field, _ in _quoted_fields(row, delimiter):
        if "\n" in field:
            opened = line + row.count("\n", 0, place)
            end = opened + field.count("\n")
            where = f" A quote that is opened in line {opened} is closed in line {end}."
            break
    return DataError(
        f"{source}:{line} has {len(fields)} fields, its header {len(header)} "
        f"({', '.join(header)}).{where} Put quotes around texts that hold a {delimiter!r}, "
        "or check whether a quote is left open above."
    )


def _not_proper(rest: str, source: str, line: int, delimiter: str) -> DataError:
    """Return the error that Python's reader cannot read on from the row that starts on a line."""
    name = "TSV" if delimiter == "\t" else "CSV"
    *_, (place, field, _) = _quoted_fields(rest, delimiter)
    line += rest.count("\n", 0, place)
    plain = "Where quotes are plain characters, give data.quotes=text (--quotes text)."
    if CLOSED.fullmatch(field):
        return DataError(
            f"{source}:{line} is not proper {name}: a field in quotes goes on behind its closing "
            f'quote. Quotes inside such a field are written twice (""). {plain}'
        )
    return DataError(
        f"{source}:{line} is not proper {name}: the quote that is opened in line {line} is "
        f"closed nowhere, so the rest of the file would be one text. Close or remove it. {plain}"
    )


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
