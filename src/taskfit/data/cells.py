"""What stands in a cell of a table: every value as text, and what is no text known as such."""

import json
from typing import Any

import pandas as pd

from taskfit.errors import DataError

SHOWN_CHARACTERS = 60


class NotText(str):
    """A value that no text can stand for, shown as JSON; whoever needs a text refuses it.

    Columns that nobody reads may hold such values, so a table is not refused for them.

    Attributes:
        what: What it is, for messages.
        value: The value itself: a list, a dictionary, bytes, or a formula's text.
    """

    what: str
    value: Any

    def __new__(cls, what: str, value: Any) -> "NotText":  # noqa: ANN401 - whatever a file holds
        """Write the value as JSON, bytes as Python does, a text as it is."""
        shown = value if isinstance(value, str) else repr(value)
        if isinstance(value, list | dict):
            shown = json.dumps(value, ensure_ascii=False, default=str)
        made = super().__new__(cls, shown)
        made.what, made.value = what, value
        return made


def text_of(value: object) -> str:
    """Return a value as text: what is missing as an empty one, bytes decoded as UTF-8.

    Lists, objects and other bytes become a `NotText`. A number is written as Python writes it, so
    that 1 and 1.0 stay two.
    """
    if isinstance(value, str):
        return value
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, float):
        return "" if value != value else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        raw = bytes(value)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return NotText("bytes that are not UTF-8", raw)
    if isinstance(value, dict):
        return NotText("an object", value)
    if getattr(value, "ndim", 0):
        value = value.tolist()  # type: ignore[attr-defined]
    if isinstance(value, list | tuple | set):
        return NotText("a list", list(value))
    return str(value)


def sound(text: str, where: str) -> str:
    """Return a text that any file can hold.

    Args:
        text: From memory or the command line; what is read from files is sound.
        where: What messages call it.

    Raises:
        DataError: If it holds half of a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half of a surrogate pair at character {error.start + 1} "
            f"({text[error.start]!a}), which is no character. Read the text anew from its source, "
            "or remove it."
        ) from error
    return text


def text_table(columns: dict[str, list[str]], index: Any) -> pd.DataFrame:  # noqa: ANN401 - pandas has no one name for these
    """Return columns of texts as a table; one with a `NotText` in it holds plain objects.

    Args:
        columns: Name -> texts, N each.
        index: The line each row starts on, N.
    """
    texts = {
        name: pd.Series(column, index=index, dtype=_kind_of(column))
        for name, column in columns.items()
    }
    return pd.DataFrame(texts, index=index)


def _kind_of(texts: list[str]) -> Any:  # noqa: ANN401 - pandas has no one name for these
    return "object" if any(type(text) is NotText for text in texts) else "str"


def not_texts(column: "pd.Series[Any]") -> list[tuple[int, NotText]]:
    """Return the places (from 0) of a column's values that are no text, with the values."""
    if column.dtype != object:
        return []
    return [(i, value) for i, value in enumerate(column) if type(value) is NotText]


def shortened(value: str) -> str:
    """Return the beginning of what a cell holds, for messages."""
    return value if len(value) <= SHOWN_CHARACTERS else value[: SHOWN_CHARACTERS - 3] + "..."
