"""What a user decided about the findings of an audit, checked as a whole."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from taskfit.data import read_table
from taskfit.data.visible import visible
from taskfit.errors import DataError, suggestion
from taskfit.labels.audit_findings import DECISION, OF_LABELS

KEEP, REMOVE, RELABEL = "keep", "remove", "relabel"
# Before the name of a label that is called like one of these.
EXPLICIT = "label:"
NEEDED = (DECISION, "kind", "id", "label", "suggested", "row")
MOST_SHOWN = 10
LINE = re.compile(r":(\d+)$")


@dataclass(slots=True)
class Decisions:
    """What becomes of which rows.

    Attributes:
        removed: Lines of rows that go.
        relabelled: Line -> label.
        renamed: Label -> label, for all rows of it that have no decision of their own.
        kept: Lines that are expressly left as they are.
    """

    removed: set[int] = field(default_factory=set)
    relabelled: dict[int, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)


def read_decisions(
    path: Path,
    marks: Mapping[int, str],
    labels: Collection[str],
    *,
    separator: str | None = None,
    new_labels: bool = False,
) -> Decisions:
    """Read the decisions in a file of findings.

    Args:
        path: `audit.csv` as it was worked through; an Excel file will do.
        marks: Line -> `row_mark` of each row of the table as it is now.
        labels: Names of its labels.
        separator: What stands between several labels of a text; None: a text has one.
        new_labels: Whether a decision may be a label that the table does not have.

    Raises:
        DataError: If the file is none of findings or holds no decision; or listing unknown rows and
            labels, rows that changed since, and two decisions about one row.
    """
    table = read_table(str(path))
    missing = [name for name in NEEDED if name not in table]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(missing)}; it has: {', '.join(map(str, table))}. "
            "Give the audit.csv of an audit, with decisions filled in."
        )
    problems: list[str] = []
    said: dict[int | str, tuple[str, str]] = {}  # what is decided about, and where it stands
    rows = (dict(zip(table.columns, row, strict=True)) for row in table.to_numpy().tolist())
    for line, row in zip(table.index, rows, strict=True):
        where = f"{path}:{line}"
        decision = _decision(row, where, labels, separator, new_labels, problems)
        if decision is None:
            continue
        about = _about(row, where, marks, labels, problems)
        if about is None:
            continue
        before = said.setdefault(about, (decision, where))
        if before[0] != decision:
            problems.append(
                f"{where}: {decision.removeprefix(EXPLICIT)!r} for "
                f"{about if isinstance(about, str) else row['id']}, but {before[1]} says "
                f"{before[0].removeprefix(EXPLICIT)!r}"
            )
    if problems:
        more = len(problems) - MOST_SHOWN
        shown = [*problems[:MOST_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        raise DataError("The decisions cannot be applied:\n  " + "\n  ".join(shown))
    if not said:
        raise DataError(
            f"{path} holds no decision: write {KEEP}, {REMOVE}, {RELABEL} or the name of a label "
            f"into its column {DECISION!r}."
        )
    return _sorted_out(said)


def _decision(
    row: Mapping[str, str],
    where: str,
    labels: Collection[str],
    separator: str | None,
    new_labels: bool,
    problems: list[str],
) -> str | None:
    """Return `keep`, `remove`, or `label:` and a name; None where there is none, or it is wrong."""
    written = row[DECISION].strip()
    word = written.casefold()
    if not written or word == KEEP:
        return word or None
    if word == REMOVE:
        if row["kind"] in OF_LABELS:
            problems.append(f"{where}: {REMOVE} is for rows, and this finding is about a label")
            return None
        return REMOVE
    if word.startswith(EXPLICIT):
        name = written[len(EXPLICIT) :].strip()
        is_named = bool(name) or separator is not None
    else:
        name = row["suggested"].strip() if word == RELABEL else written
        # To have none of several labels may be suggested, but where a label is judged alone.
        is_named = bool(name) or (separator is not None and row["kind"] == "label error")
    if not is_named:
        none = "" if separator is None else f", or {EXPLICIT} alone for none"
        problems.append(f"{where}: {written}, but no label is suggested; write its name{none}")
        return None
    parts = [name] if separator is None else [one.strip() for one in name.split("|") if one.strip()]
    unknown = [one for one in parts if one not in labels]
    if unknown and not new_labels:
        problems.append(
            f"{where}: {visible(unknown[0])} is neither {KEEP}, {REMOVE} or {RELABEL} nor a label "
            f"of the table.{suggestion(unknown[0], labels)} --new-labels allows new ones"
        )
        return None
    return EXPLICIT + (name if separator is None else "|".join(parts))


def _about(
    row: Mapping[str, str],
    where: str,
    marks: Mapping[int, str],
    labels: Collection[str],
    problems: list[str],
) -> int | str | None:
    """Return the line of a row, or the label, that a decision is about; None where it is wrong."""
    if row["kind"] in OF_LABELS:
        # A label of the task that no row has may be kept.
        if row["label"] in labels or row[DECISION].strip().casefold() == KEEP:
            return row["label"]
        problems.append(f"{where}: the table has no label {visible(row['label'])}")
        return None
    found = LINE.search(row["id"])
    line = None if found is None else int(found[1])
    if line is None or line not in marks:
        problems.append(f"{where}: the table has no row {row['id']!r}")
        return None
    if marks[line] != row["row"]:
        problems.append(
            f"{where}: row {row['id']} says something else than it did when it was audited"
        )
        return None
    return line


def _sorted_out(said: Mapping[int | str, tuple[str, str]]) -> Decisions:
    found = Decisions()
    for about, (decision, _) in said.items():
        if isinstance(about, str):
            if decision != KEEP:
                found.renamed[about] = decision.removeprefix(EXPLICIT)
        elif decision == KEEP:
            found.kept.add(about)
        elif decision == REMOVE:
            found.removed.add(about)
        else:
            found.relabelled[about] = decision.removeprefix(EXPLICIT)
    return found


def new_label(line: int, label: str, decisions: Decisions, *, several: bool) -> str | None:
    """Return the label that a row gets, or None where it keeps its own.

    Args:
        line: Of the row.
        label: Its own; of several, their names with `|` between.
        decisions: What was decided.
        several: Whether a text may have several labels.
    """
    if line in decisions.relabelled:
        return decisions.relabelled[line]
    if line in decisions.kept:
        return None
    parts: Sequence[str] = label.split("|") if several else [label]
    renamed = [decisions.renamed.get(part, part) for part in parts]
    return None if renamed == list(parts) else "|".join(dict.fromkeys(renamed))
