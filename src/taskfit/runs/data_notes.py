"""What people should know about the data of a run with labels, each in one line."""

from collections.abc import Iterator, Mapping, Sequence

from taskfit.data import Example
from taskfit.data.label_cells import SEPARATORS, joined_labels
from taskfit.settings import DataSettings
from taskfit.tasks import Task
from taskfit.tasks.questions import Asked

MOST_NAMED = 5


def unseparated_note(asked: Asked, read: Sequence[Example], data: DataSettings) -> Iterator[str]:
    """Say that no text has several labels where it may have, with what may stand between them."""
    several = isinstance(asked, Task) and asked.multi_label and not data.soft_labels
    if not several or not read or any(len(example.target or {}) > 1 for example in read):
        return
    counts = {mark: sum(mark in (e.label or "") for e in read) for mark in SEPARATORS}
    mark, most = max(counts.items(), key=lambda pair: pair[1])
    hint = f"; {mark!r} stands in {most:,} of {len(read):,} labels" if most else ""
    yield (
        f"data.label_separator {data.label_separator!r} stands in no label, so every text has one "
        f"label or none{hint}"
    )


def joined_note(read: Sequence[Example]) -> str | None:
    """Say that some classes may be several labels, in a task of one label a text."""
    joined = joined_labels(example.label or "" for example in read)
    return None if joined is None else f"every different label is a class of its own; {joined}"


def lost_classes_note(whole: Sequence[Example], drawn: Sequence[Example]) -> Iterator[str]:
    """Say which classes a draw leaves no text of."""
    left = {name for example in drawn for name in _classes(example)}
    lost = sorted({name for example in whole for name in _classes(example)} - left)
    if lost:
        more = f" and {len(lost) - MOST_NAMED} more" if len(lost) > MOST_NAMED else ""
        yield (
            f"the draw of {len(drawn):,} of {len(whole):,} texts leaves none of "
            f"{', '.join(map(repr, lost[:MOST_NAMED]))}{more}: nothing is learned about "
            f"{'it' if len(lost) == 1 else 'them'}"
        )


def _classes(example: Example) -> Iterator[str]:
    """Yield the labels of an example, those of each of several questions with its name."""
    if example.answers is not None:
        yield from (f"{question} {label}" for question, label in example.answers.items())
    elif example.target is not None:
        yield from (name for name, share in example.target.items() if share > 0)
    elif example.label is not None:
        yield example.label


def answer_notes(
    asked: Asked, num_unanswered: int, evaluations: Mapping[str, Sequence[Example]]
) -> Iterator[str]:
    """Say which labels of several questions are missing where."""
    if num_unanswered:
        yield f"left out {num_unanswered} training rows without any label"
    for name, examples in evaluations.items():
        unasked = [q for q in asked.tasks if q and all(e.of(q).label is None for e in examples)]
        if unasked:
            yield f"{name} has no label of {', '.join(unasked)}: not evaluated there"
