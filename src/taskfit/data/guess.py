"""Which columns of a table hold text and label, where the user does not say."""

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from taskfit.data.columns import Columns, check_present
from taskfit.errors import DataError

LABEL_NAMES = ("label", "labels", "class", "category", "target", "intent", "sentiment", "y")
# What text columns are usually called; the first of these that a table has all columns of is taken.
TEXT_NAMES = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("texta", "textb"),
    ("sentencea", "sentenceb"),
    ("text",),
    ("question", "title", "body"),
    ("title", "body"),
    ("title", "description"),
    ("title", "content"),
    ("title", "abstract"),
    ("subject", "body"),
    ("headline", "body"),
    ("question", "answer"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("query", "passage"),
    ("query", "document"),
)
SINGLE_NAMES = (
    *("sentence", "review", "comment", "message", "content", "body", "tweet", "utterance"),
    *("question", "query", "document", "passage", "description", "headline", "title"),
)


def guess_columns(
    table: pd.DataFrame,
    *,
    text: Sequence[str],
    label: str | None,
    shares: Mapping[str, str] | None = None,
    separator: str | None = None,
) -> Columns:
    """Find the columns where the user names none or only some.

    Args:
        table: As `read_table` returns it.
        text: Text columns that are named.
        label: Label column, if named.
        shares: Label -> column with its share; then there need be no label column.
        separator: See `Columns`.

    Raises:
        DataError: If there is more than one way to read the table.
    """
    shares = shares or {}
    present = [str(name) for name in table.columns]
    named = [*text, *([label] if label else []), *shares.values()]
    check_present(named, present, "The table")
    if label is None and not shares:
        candidates = [n for n in present if n.casefold() in LABEL_NAMES and n not in text]
        candidates = candidates or _only_other(table, text or _usual_names(present))
        if len(candidates) != 1:
            raise DataError(
                f"Which column holds the labels? The table has: {', '.join(present)}. "
                "Name it with --label."
            )
        label = candidates[0]
    if not text:
        text = guess_text([n for n in present if n != label and n not in shares.values()])
    return Columns(text=tuple(text), label=label, shares=dict(shares), separator=separator)


def guess_text(present: Sequence[str]) -> list[str]:
    """Return the text columns among those of a table that are no labels.

    Raises:
        DataError: If there is more than one way to read the table.
    """
    text = list(present) if len(present) == 1 else _usual_names(present)
    if not text:
        raise DataError(
            f"Which columns hold the text? Besides the labels the table has: "
            f"{', '.join(present) or 'none'}. Name them with --text, once for each."
        )
    return text


def _only_other(table: pd.DataFrame, text: Sequence[str]) -> list[str]:
    """Return the only column beside the texts, if its values occur again and again."""
    left = [str(name) for name in table.columns if str(name) and str(name) not in text]
    if not text or len(left) != 1:
        return []
    return left if 2 * table[left[0]].nunique() <= len(table) else []


def guess_note(columns: Columns, table: pd.DataFrame) -> str | None:
    """Say which text columns were chosen among several; None where there was no other.

    Args:
        columns: As `guess_columns` found them, none of the text columns being named.
        table: The table.
    """
    used = {*columns.text, columns.label, *columns.shares.values()}
    left = [str(name) for name in table.columns if str(name) not in used and str(name)]
    if not left:
        return None
    several = "s" * (len(columns.text) > 1)
    return (
        f"text is read from column{several} {' and '.join(columns.text)}, not from "
        f"{', '.join(left)}; --text chooses others"
    )


def _usual_names(present: Sequence[str]) -> list[str]:
    """Return the columns that are text by their names; none where that is not clear."""
    by_name = {re.sub(r"[ _-]", "", name.casefold()): name for name in present}
    for names in TEXT_NAMES:
        if all(name in by_name for name in names):
            return [by_name[name] for name in names]
    found = [by_name[name] for name in SINGLE_NAMES if name in by_name]
    return found if len(found) == 1 else []
