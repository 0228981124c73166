"""What of instruction rows is not read, and which rows are not learned from: counted and told.

A column or key that nothing reads may say what to learn (a weight, a rating, the calls of tools),
so its name and the number of rows that fill it are told. Names of bookkeeping are not.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from taskfit.data.messages import LeftOut, is_filled

BOOKKEEPING = re.compile(
    r"_?ids?|idx|index|u?uid|uuid|guid|(?:row|prompt|question|message|conversation|conv|tool_call|"
    r"user)_id|sha|hash|sources?|dataset|data_source|origin|url|link|lang|language|locale|category|"
    r"categories|topic|subject|domain|task|task_name|task_type|type|split|(?:create|update)(?:d|_time|"
    r"d_at)|date|time|timestamp|version|model|model_name|generator|annotator|author|user|license|"
    r"(?:num_|n_)?tokens|length|num_turns|meta|metadata|tags|keywords|difficulty"
)
# Columns by which rows are told to be learned from or not, such as those of KTO.
LABELS = ("label", "kto_tag", "desirable", "is_desirable")
WEIGHTS = ("weight", "sample_weight", "example_weight", "loss_weight")
YES, NO = (True, 1, "true", "1"), (False, 0, "false", "0")
MOST_NAMED = 8


class RowTally:
    """Counts over the rows of a source.

    Attributes:
        total: Rows looked at.
        unread: Rows that fill a column or key which is not read, by its name.
        left_out: Rows that are not learned from, by the reason.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.total = 0
        self.unread: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()

    def leave_out(self, reason: str) -> None:
        """Count a row that is not learned from."""
        self.left_out[reason] += 1

    def reasons(self) -> str:
        """Say which rows were left out."""
        return "; ".join(
            f"{count:,} {'row' if count == 1 else 'rows'} {reason}"
            for reason, count in self.left_out.items()
        )

    def notes(self, name: str) -> list[str]:
        """Return what people should know, in lines.

        Args:
            name: Of the source.
        """
        lines = [f"{name}: left out {self.reasons()}"] if self.left_out else []
        if self.unread:
            named = [
                f"{column} ({count:,} {'row' if count == 1 else 'rows'})"
                for column, count in self.unread.most_common(MOST_NAMED)
            ]
            more = len(self.unread) - len(named)
            named += [f"{more} more"] if more else []
            lines.append(f"{name}: not read: {', '.join(named)}")
        return lines


def label_column(records: Iterable[Mapping[str, Any]], used: Collection[str]) -> str | None:
    """Return the column that says yes or no to each row's answer, if there is one.

    Args:
        records: The first rows.
        used: Columns that are read as something else.
    """
    rows = list(records)
    for name in dict.fromkeys(name for row in rows for name in row):
        if name.casefold() in LABELS and name not in used:
            values = [row[name] for row in rows if row.get(name) not in (None, "")]
            if values and all(_yes_or_no(value) is not None for value in values):
                return name
    return None


def check_learned(values: Mapping[str, Any], label: str | None) -> None:
    """Raise if columns of a row say that its answer is not to be learned.

    Args:
        values: Of all columns.
        label: See `label_column`.

    Raises:
        LeftOut: Saying why.
    """
    if label is not None and _yes_or_no(values.get(label)) is False:
        raise LeftOut(f"whose {label} is false: answers not to be given (pairs teach that, by dpo)")
    for name, value in values.items():
        if name.casefold() in WEIGHTS and _number(value) == 0:
            raise LeftOut(f"of {name} 0")


def unread_columns(
    values: Mapping[str, Any], used: Collection[str], label: str | None
) -> list[str]:
    """Return the columns of a row that hold something and are not read."""
    return [
        name
        for name, value in values.items()
        if name not in used
        and name != label
        and is_filled(value)
        and not BOOKKEEPING.fullmatch(name.casefold())
        and not (name.casefold() in WEIGHTS and _number(value) in (0, 1))
    ]


def _yes_or_no(value: Any) -> bool | None:  # noqa: ANN401 - from a file
    folded = value.strip().casefold() if isinstance(value, str) else value
    if isinstance(folded, list | dict):
        return None
    return True if folded in YES else False if folded in NO else None


def _number(value: Any) -> float | None:  # noqa: ANN401 - from a file
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
