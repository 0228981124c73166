"""Which columns of a table are read, and whether it has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from taskfit.errors import DataError, suggestion

NAMED_BY_FLAGS = "Name columns with --text and --label."


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a table are read.

    Attributes:
        text: Text columns in the task's order.
        label: Label column, or None for texts without labels.
        values: Values in the table -> label names; values not in it are label names already.
        shares: Label -> column with its share, for distributions over labels.
        separator: What stands between several labels of a row; None: a row has one.
        carried: Further columns to carry along where the table has them.
        advice: How to name other columns, for messages.
    """

    text: tuple[str, ...]
    label: str | None
    values: Mapping[str, str] = field(default_factory=dict)
    shares: Mapping[str, str] = field(default_factory=dict)
    separator: str | None = None
    carried: tuple[str, ...] = ()
    advice: str = NAMED_BY_FLAGS


def check_present(
    names: Sequence[str], present: Sequence[str], source: str, advice: str = NAMED_BY_FLAGS
) -> None:
    """Check that a table has columns; `advice` says how to name others.

    Raises:
        DataError: Naming the first that it has not.
    """
    for name in names:
        if name not in present:
            raise DataError(
                f"{source} has no column {name!r}; it has: {', '.join(present)}."
                f"{suggestion(name, present)} {advice}"
            )


def some_rows(lines: Sequence[str]) -> str:
    """Return how many rows there are, and the first lines of them."""
    shown = ", ".join(lines[:5]) + (", ..." if len(lines) > 5 else "")
    return f"{len(lines)} row{'s' * (len(lines) > 1)} (line {shown})"
