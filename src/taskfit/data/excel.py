"""Read the first sheet of an Excel file (.xlsx) as it is shown: dates as dates, numbers exactly."""

import datetime
import importlib.util
import warnings
from itertools import zip_longest
from typing import IO, Any
from zipfile import BadZipFile

import pandas as pd

from taskfit.data.cells import NotText, text_of, text_table
from taskfit.data.delimited import NOTES, check_columns
from taskfit.errors import DataError, first_line

# A row's number in the sheet, and its fields.
Row = tuple[int, list[str]]


def read_excel(file: IO[bytes], source: str) -> pd.DataFrame:
    """Read the first sheet of an Excel file that holds anything.

    Args:
        file: At its beginning.
        source: What messages call it.

    Returns:
        A table of texts, indexed by the sheet's row numbers; the first row with anything in it is
        the header. Blank rows at the end are left out. The attribute `notes` names other sheets.

    Raises:
        DataError: If it is damaged, holds nothing, or openpyxl is not installed.
    """
    if importlib.util.find_spec("openpyxl") is None:
        raise DataError(
            f"{source} is an Excel file; to read it, install the package: pip install "
            "'taskfit[excel]'. Or save it in Excel as CSV UTF-8."
        )

    import openpyxl

    try:
        sheets = _sheets(openpyxl.load_workbook(file, read_only=True, data_only=True))
        if any("" in fields for rows in sheets.values() for _, fields in rows):
            # What is blank may be a formula that no program has computed.
            file.seek(0)
            formulas = _sheets(openpyxl.load_workbook(file, read_only=True))
            sheets = {name: _with_formulas(rows, formulas[name]) for name, rows in sheets.items()}
    except (BadZipFile, KeyError, ValueError, TypeError, OSError, SyntaxError) as error:
        raise DataError(
            f"{source} is an Excel file that cannot be read: {first_line(error)} Save it anew, or "
            "as CSV UTF-8."
        ) from error
    filled = {name: rows for name, rows in sheets.items() if rows}
    if not filled:
        raise DataError(f"{source} is empty.")
    (name, rows), *others = filled.items()
    table = _table(rows, source)
    if others:
        left = ", ".join(other for other, _ in others)
        table.attrs[NOTES] = [
            f"{source}: sheet {name} is read, not {left}; save another sheet as a file of its own"
        ]
    return table


def _sheets(book: Any) -> dict[str, list[Row]]:  # noqa: ANN401 - openpyxl's
    with warnings.catch_warnings():
        # Of styles and extensions that are not read.
        warnings.simplefilter("ignore")
        return {sheet.title: _rows(sheet) for sheet in book.worksheets}


def _with_formulas(rows: list[Row], formulas: list[Row]) -> list[Row]:
    """Return rows whose blank cells are known as formulas without a result where they are."""
    found: list[Row] = []
    blank: Row = (0, [])
    for (number, fields), (_, written) in zip_longest(formulas, rows, fillvalue=blank):
        known = written + [""] * (len(fields) - len(written))
        shown = [
            NotText("a formula without a result", formula) if not value and formula else value
            for value, formula in zip(known, fields, strict=True)
        ]
        found.append((number, shown))
    return found


def _rows(sheet: Any) -> list[Row]:  # noqa: ANN401 - openpyxl's
    """Return the rows of a sheet with their numbers, up to the last with anything in it."""
    # What a file says of its own size is often wrong.
    sheet.reset_dimensions()
    rows, last = [], 0
    for number, row in enumerate(sheet.iter_rows(), start=1):
        fields = [_shown(cell) for cell in row]
        rows.append((number, fields))
        if any(field.strip() for field in fields):
            last = number
    return rows[:last]


def _table(rows: list[Row], source: str) -> pd.DataFrame:
    filled = (place for place, (_, fields) in enumerate(rows) if any(f.strip() for f in fields))
    start = next(filled)
    header = [name.strip() for name in rows[start][1]]
    body = rows[start + 1 :]
    width = max(len(header), *(len(fields) for _, fields in body), 0)
    header += [""] * (width - len(header))
    padded = [fields + [""] * (width - len(fields)) for _, fields in body]
    # Columns without a name and content are formatting.
    used = [c for c in range(width) if header[c] or any(fields[c].strip() for fields in padded)]
    check_columns([header[c] for c in used], source)
    columns = {header[c]: [fields[c] for fields in padded] for c in used}
    return text_table(columns, [number for number, _ in body])


def _shown(cell: Any) -> str:  # noqa: ANN401 - openpyxl's
    """Return what a cell shows, near enough: a day without a time, a time without seconds."""
    from openpyxl.utils.escape import unescape

    value = cell.value
    if isinstance(value, str):
        # Excel writes a carriage return as _x000D_.
        return unescape(value) if "_x" in value else value
    if isinstance(value, datetime.datetime):
        return str(value.date()) if value.time() == datetime.time() else str(value)
    if isinstance(value, datetime.time):
        return value.isoformat("auto" if value.second or value.microsecond else "minutes")
    return text_of(value)
