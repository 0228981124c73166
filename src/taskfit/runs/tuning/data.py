"""From settings to rows: read, check, split, and keep evaluation sets out of training."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from taskfit.data import Example, drop_overlap
from taskfit.data.instructions import (
    Conversation,
    InstructionRow,
    Preference,
    Raw,
    read_instructions,
)
from taskfit.data.row_tally import RowTally
from taskfit.errors import DataError, SettingsError
from taskfit.runs.earlier import Earlier
from taskfit.runs.hold_out import validation_share
from taskfit.runs.seen import Seen
from taskfit.runs.tuning.rows import hash_rows
from taskfit.settings import RunSettings, TaskSettings

# Settings of classifiers, by section; empty: all of it.
UNREAD: dict[str, tuple[str, ...]] = {
    "data": (
        *("unlabeled", "text", "label", "soft_labels", "slices", "folder", "shots_per_class"),
        "test_fraction",
    ),
    "task": tuple(name for name in TaskSettings.model_fields if name != "allow_control_tokens"),
    "calibration": (),
    "search": (),
}


@dataclass(frozen=True, slots=True)
class TuningData:
    """Rows of one kind.

    Attributes:
        train: What is learned.
        validation: Held-out part of the training rows.
        evaluations: Further sets by name.
        format: How the training rows were read, for people.
        num_dropped: Training rows that stand in another set too, and were left out.
        fingerprint: Hash of each set, by name.
        notes: What is not read of the rows, which of them teach nothing, and what an earlier run
            knew of them.
    """

    train: list[InstructionRow]
    validation: list[InstructionRow]
    evaluations: dict[str, list[InstructionRow]]
    format: str
    num_dropped: int
    fingerprint: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def examples(self) -> dict[str, list[Example]]:
        """Return the texts of all sets by name, training rows with them."""
        sets = {"train": self.train, **self.sets}
        return {name: [as_example(row) for row in rows] for name, rows in sets.items()}

    @property
    def sets(self) -> dict[str, list[InstructionRow]]:
        """Return the sets that are measured, the held-out part of training first."""
        own = {"validation": self.validation} if self.validation else {}
        return {**own, **self.evaluations}


def prepare_tuning(settings: RunSettings, *, seen: Seen | None = None) -> TuningData:
    """Read and split what method=sft or method=dpo learns from.

    The split is random by row; the training rows of a smaller `data.num_train` are among those of a
    larger one. Rows that an earlier run had stay on the side that they had there.

    Args:
        settings: All settings.
        seen: The rows of the run that this one goes on from.

    Raises:
        TaskfitError: If there are no rows, or they are not what the method learns from.
    """
    _check_settings(settings)
    data = settings.data
    if data.train is None:
        raise SettingsError(
            f"method.name={settings.method.name} needs rows to learn from: give a FILE "
            "(JSON, JSONL, CSV, Parquet) or a hub id."
        )
    names = _names([data.train, data.validation, *data.tests.values()])
    notes: dict[str, None] = {}  # a source may serve as two sets
    rows, described = _read(settings, data.train, names, notes)
    num_read = len(rows)
    rows, learned, before, num_left_out = _by_side(rows, seen or Seen())
    generator = np.random.default_rng([settings.seed, 1])
    order = generator.permutation(len(rows))
    if data.validation is not None:
        validation = _drawn(
            settings, _read(settings, data.validation, names, notes)[0], limit=data.max_validation
        )
        train = [*before, *(rows[i] for i in order)]
    else:
        share = validation_share(settings, len(rows), 1, has_tests=False)
        num_held_out = min(max(0, data.max_validation - len(before)), round(share * len(rows)))
        validation = [*before, *(rows[i] for i in order[len(order) - num_held_out :])]
        train = [rows[i] for i in order[: len(order) - num_held_out]]
    train = [*train, *learned]
    evaluations = {}
    for name, source in data.tests.items():
        found = _read(settings, source, names, notes)[0]
        evaluations[name] = _drawn(settings, found, limit=data.max_test)
    held_out = {"validation": validation, **evaluations} if validation else evaluations
    single, num_dropped = _without(train, held_out)
    train = single[: data.num_train]
    if not train:
        raise DataError(f"{data.train} leaves no row to learn from; {num_dropped} stand elsewhere.")
    sets = {"train": train, "validation": validation, **evaluations}
    return TuningData(
        train=train,
        validation=validation,
        evaluations=evaluations,
        format=described,
        num_dropped=num_dropped,
        fingerprint={name: hash_rows(found) for name, found in sets.items()},
        notes=(
            *notes,
            *(() if seen is None else _notes(num_read, len(rows), num_left_out)),
        ),
    )


def _by_side(
    rows: list[InstructionRow], seen: Seen
) -> tuple[list[InstructionRow], list[InstructionRow], list[InstructionRow], int]:
    """Return rows that are new, that an earlier run learned, that it validated on; and of others.

    Others stood in its evaluation sets and are left out.
    """
    if not seen.sides:
        return rows, [], [], 0
    examples = [replace(as_example(row), id=str(place)) for place, row in enumerate(rows)]
    kept = Earlier(seen).kept(examples, keeps_test=False)
    fresh, learned, validation = (
        [rows[int(example.id)] for example in part]
        for part in (kept.fresh, kept.learned, kept.validation)
    )
    return fresh, learned, validation, len(kept.left_out)


def _notes(num_read: int, num_new: int, num_left_out: int) -> tuple[str, ...]:
    """Say what an earlier run knew of the rows."""
    notes = [f"{num_new:,} of the {num_read:,} rows are new to the run that this one goes on from"]
    if num_left_out:
        notes.append(f"left out {num_left_out:,} rows that stood in an evaluation set of that run")
    return tuple(notes)


def _check_settings(settings: RunSettings) -> None:
    """Refuse settings that would have no effect, and names of sets that are taken."""
    given, usual = settings.model_dump(), RunSettings().model_dump()
    unread = [
        f"{section}.{field}"
        for section, fields in UNREAD.items()
        for field in fields or given[section]
        if given[section][field] != usual[section][field]
    ]
    if unread:
        raise SettingsError(
            f"method.name={settings.method.name} does not read {', '.join(unread)}. Leave "
            f"{'it' if len(unread) == 1 else 'them'} out; columns are named in tuning.columns."
        )
    taken = sorted({"train", "validation"} & set(settings.data.tests))
    if taken:
        raise SettingsError(f"An evaluation set cannot be called {taken[0]}; give another name.")


def _drawn(
    settings: RunSettings, rows: list[InstructionRow], *, limit: int | None
) -> list[InstructionRow]:
    """Return at most some rows, a seeded draw in the order of the source."""
    if limit is None or len(rows) <= limit:
        return rows
    drawn = np.random.default_rng([settings.seed, 2]).permutation(len(rows))[:limit]
    return [rows[i] for i in np.sort(drawn)]


def _names(sources: Sequence[str | None]) -> dict[str, str]:
    """Return how rows of each source are called: by its file's name, unless two share it.

    Ids must differ, as the log-probabilities of pairs are kept by id.
    """
    paths = {source: Path(source).name for source in sources if source is not None}
    shared = {name for name, count in Counter(paths.values()).items() if count > 1}
    return {path: path if name in shared else name for path, name in paths.items()}


def _read(
    settings: RunSettings, source: str, names: Mapping[str, str], notes: dict[str, None]
) -> tuple[list[InstructionRow], str]:
    """Return the rows of a source that teach something, and how they were read; add notes."""
    tuning = settings.tuning
    found = read_instructions(
        source,
        kind=None if tuning.kind == "auto" else tuning.kind,
        columns=tuning.columns,
        encoding=settings.data.encoding,
        name=names[source],
    )
    needs_pairs = settings.method.name == "dpo"
    is_pairs = isinstance(found.rows[0], Preference)
    if needs_pairs != is_pairs:
        other = "dpo" if is_pairs else "sft"
        raise DataError(
            f"{source} was read as {found.format.describe()}, which method.name="
            f"{settings.method.name} does not learn from. Use --method {other}, or say what the "
            "rows are with tuning.kind and tuning.columns."
        )
    rows, tally = _telling(found.rows, last_only=tuning.turns == "last")
    notes |= dict.fromkeys((*found.notes, *tally.notes(source)))
    if not rows:
        raise DataError(
            f"{source}, read as {found.format.describe()}: none of {len(found.rows):,} rows "
            f"teaches anything. Left out: {tally.reasons()}."
        )
    return rows, found.format.describe()


def _telling(
    rows: Sequence[InstructionRow], *, last_only: bool
) -> tuple[list[InstructionRow], RowTally]:
    """Return the rows that teach something, and why others do not; empty turns are not learned."""
    kept, tally = list[InstructionRow](), RowTally()
    for row in rows:
        if isinstance(row, Conversation):
            messages = tuple(
                replace(m, learned=m.learned and bool(m.content.strip())) for m in row.messages
            )
            row = replace(row, messages=messages)
        if (reason := _teaches_nothing(row, last_only=last_only)) is None:
            kept.append(row)
        else:
            tally.leave_out(reason)
    return kept, tally


def _teaches_nothing(row: InstructionRow, *, last_only: bool) -> str | None:
    """Return why there is nothing to learn from a row; None: there is."""
    if isinstance(row, Preference):
        if not row.chosen.strip():
            return "whose chosen answer is empty"
        return "whose two answers are the same" if row.chosen == row.rejected else None
    if isinstance(row, Raw):
        return None if row.text.strip() else "whose text is empty"
    spoken = [message for message in row.messages if message.role == "assistant"]
    asked = spoken[-1:] if last_only else spoken
    if any(message.learned for message in asked):
        return None
    empty = all(not message.content.strip() for message in asked)
    return "whose answers are empty" if empty else "whose turns are told not to be learned"


def _without(
    train: Sequence[InstructionRow], held_out: Mapping[str, Sequence[InstructionRow]]
) -> tuple[list[InstructionRow], int]:
    """Return the training rows that stand in no other set, and how many do."""
    by_id = {str(index): row for index, row in enumerate(train)}
    examples = [replace(as_example(row), id=index) for index, row in by_id.items()]
    others = {name: [as_example(row) for row in rows] for name, rows in held_out.items()}
    kept, overlap = drop_overlap(examples, others)
    return [by_id[example.id] for example in kept], overlap.num_dropped


def as_example(row: InstructionRow) -> Example:
    """Return the texts by which two rows are the same: prompts of pairs, else everything."""
    if isinstance(row, Raw):
        return Example(row.id, {"0": row.text})
    messages = row.messages if isinstance(row, Conversation) else row.prompt
    # A system prompt is often the same everywhere and says nothing about the row.
    spoken = [m.content for m in messages if m.role != "system"]
    return Example(row.id, {str(place): text for place, text in enumerate(spoken)})
