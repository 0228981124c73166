"""Rows of an earlier run in one that goes on from it: which join, and on which side they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from taskfit.data import Example
from taskfit.errors import TaskfitError, first_line
from taskfit.runs.hold_out import TEST_SET
from taskfit.runs.origin import Origin
from taskfit.runs.rows import labelled_examples
from taskfit.runs.seen import LEARNED, Seen, Table, tables_of, text_hash
from taskfit.runs.sources import read_builtin, read_source
from taskfit.settings import DataSettings, RunSettings
from taskfit.tasks import Task
from taskfit.tasks.questions import Asked

VALIDATION = "validation"
# Sets that a method learns from and that come from tables of labels.
OF_TABLES = ("train", "demonstrations")
MOST_NAMES = 8


@dataclass(frozen=True, slots=True)
class Kept:
    """Rows by the side on which an earlier run had them.

    Attributes:
        fresh: Rows that it did not have.
        learned: What it learned from.
        validation: What it validated on.
        test: The evaluation set that it held out of its table.
        left_out: Rows of other evaluation sets of its own.
    """

    fresh: list[Example] = field(default_factory=list)
    learned: list[Example] = field(default_factory=list)
    validation: list[Example] = field(default_factory=list)
    test: list[Example] = field(default_factory=list)
    left_out: list[Example] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Earlier:
    """What is known of the run that another one goes on from; empty for a run that begins anew.

    Attributes:
        seen: Its texts.
        rows: Rows of its tables that join those of the new one.
        evaluations: Evaluation sets of a built-in task that it learned.
        notes: What people should know about them.
    """

    seen: Seen = field(default_factory=Seen)
    rows: list[Example] = field(default_factory=list)
    evaluations: Mapping[str, list[Example]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def kept(self, examples: Sequence[Example], *, keeps_test: bool = True) -> Kept:
        """Return rows by the side that they had.

        Args:
            examples: The rows.
            keeps_test: Whether the evaluation set `test` is one that is held out of the table.
        """
        found = Kept()
        sides = {**dict.fromkeys(LEARNED, found.learned), VALIDATION: found.validation}
        sides[TEST_SET] = found.test if keeps_test else found.left_out
        for example in examples:
            side = self.seen.side(example)
            rows = found.fresh if side is None else sides.get(side, found.left_out)
            rows.append(example)
        return found

    def learned_tests(self, evaluations: Mapping[str, Sequence[Example]]) -> list[str]:
        """Say which evaluation sets hold texts that the earlier run learned from."""
        counts = {
            name: sum(self.seen.learned(example) for example in examples)
            for name, examples in evaluations.items()
        }
        return [
            f"{count:,} of the {len(evaluations[name]):,} texts of {name} were training texts of "
            "the run that this one goes on from: its scores there flatter"
            for name, count in counts.items()
            if count
        ]


def find_earlier(
    settings: RunSettings, asked: Asked, read: Sequence[Example], origin: Origin
) -> Earlier:
    """Return what an earlier run brings along to new rows.

    Args:
        settings: Of the new run.
        asked: What it asks.
        read: The rows of its own table.
        origin: The earlier run.
    """
    seen = origin.seen or Seen()
    table = settings.data.train or settings.task.name or "the table"
    own_paths = {one.path for one in tables_of(settings)}
    others = [one for one in seen.tables if one.path not in own_paths]
    rows, notes = list[Example](), _about_table(asked, read, origin, seen, table)
    hashes = {text_hash(example) for example in read}
    missing = sum(side in OF_TABLES for text, side in seen.sides.items() if text not in hashes)
    if not seen.sides:
        notes = [
            f"{origin.run} does not tell which texts it held out, and its data are not as they "
            "were: all rows are split anew, and scores may flatter"
        ]
    if missing and settings.start.earlier_rows:
        rows, unread = rows_of_tables(others, asked, settings.data, seen, hashes)
        joined = sum(seen.side(example) in OF_TABLES for example in rows)
        where = ", ".join(one.source for one in others)
        if joined:
            notes.append(
                f"{joined:,} training rows of {origin.run} ({where}) join those of {table}; "
                "start.earlier_rows=false learns from the new ones alone"
            )
        if joined < missing:
            notes += unread
            notes.append(
                f"{missing - joined:,} training texts of {origin.run} are not found again, neither "
                f"in {table} nor where they were ({where or 'not known'}); what was learned of "
                "them may fade"
            )
    elif missing:
        notes.append(
            f"{missing:,} training texts of {origin.run} are not among these rows "
            "(start.earlier_rows=false); what was learned of them may fade"
        )
    evaluations: dict[str, list[Example]] = {}
    for one in others:
        if one.is_builtin:
            evaluations |= read_builtin(one.path, folder=settings.data.folder).evaluations
    return Earlier(seen, rows, evaluations, tuple(notes))


def rows_of_tables(
    tables: Sequence[Table], asked: Asked, data: DataSettings, seen: Seen, known: set[int]
) -> tuple[list[Example], list[str]]:
    """Return the rows that an earlier run had, each text once, and what could not be read.

    Args:
        tables: Where they were.
        asked: What is asked.
        data: Names columns.
        seen: The texts of that run.
        known: Hashes of texts that are there already; those found are added.
    """
    rows, unread = list[Example](), list[str]()
    for table in tables:
        try:
            found = _read(table, asked, data)
        except TaskfitError as error:
            unread.append(f"{table.source} cannot be read any more: {first_line(error)}")
            continue
        for example in found:
            text = text_hash(example)
            if text in seen.sides and text not in known and example.answers != {}:
                known.add(text)
                rows.append(example)
    return rows, unread


def _read(table: Table, asked: Asked, data: DataSettings) -> list[Example]:
    if table.is_builtin:
        return read_builtin(table.path, folder=data.folder).train
    found = read_source(table.path, encoding=table.encoding, quotes=table.quotes)
    own = data.model_copy(update={"label": table.label})
    return labelled_examples(found, asked, own, source=table.source)


def _about_table(
    asked: Asked, read: Sequence[Example], origin: Origin, seen: Seen, table: str
) -> list[str]:
    """Say what is new in a table, which classes it lacks, and which labels changed."""
    notes = []
    num_new = sum(seen.side(example) is None for example in read)
    notes.append(f"new to {origin.run}: {num_new:,} of the {len(read):,} rows of {table}")
    if isinstance(asked, Task) and origin.task is not None:
        before = origin.task.label_names
        there = {name for example in read for name in example.labels}
        if new := [name for name in asked.label_names if name not in before]:
            notes.append(f"new {_classes(new)}")
        if absent := [name for name in before if name not in there]:
            notes.append(f"without a row in {table}, and kept: {_classes(absent)}")
        if there and not there & set(before):
            notes.append(
                f"none of the classes of {origin.run} stands in {table}: are its labels written "
                "otherwise?"
            )
        if gone := [name for name in before if name not in asked.label_names]:
            notes.append(f"no longer among the labels of the task: {_classes(gone)}")
    changed = [example.id for example in read if seen.is_relabelled(example)]
    if changed:
        have = "text has" if len(changed) == 1 else "texts have"
        notes.append(
            f"{len(changed):,} {have} another label than in {origin.run} (first: "
            f"{', '.join(changed[:2])}); the one of {table} counts"
        )
    return notes


def _classes(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    word = "class" if len(names) == 1 else "classes"
    return f"{word} {', '.join(names[:MOST_NAMES])}{more}"
