"""Turn the values of a table into text."""

import pandas as pd


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Turn values into text; what is missing becomes an empty text."""
    columns = {
        str(name): ["" if _missing(value) else _text_of(value) for value in table[name]]
        for name in table.columns
    }
    index = table.index if table.index.dtype.kind == "i" else range(1, len(table) + 1)
    return pd.DataFrame(columns, index=index, dtype=str)


def _missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def _text_of(value: object) -> str:
    # A column of integers with a gap is read as floats; 1.0 is meant to be 1.
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
