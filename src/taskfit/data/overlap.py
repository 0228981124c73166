"""Find texts that stand in two sets, or twice in one."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taskfit.data.examples import Example


@dataclass(frozen=True, slots=True)
class Overlap:
    """What was found.

    Attributes:
        num_dropped: Training examples dropped because an evaluation set holds the same texts.
        dropped_by_set: How many of them each evaluation set holds.
        dropped_ids: The first five of them.
        num_repeated: Training examples whose texts stand earlier in the training set (kept).
        num_conflicts: Texts that stand in the training set with different labels (kept).
        conflict_ids: The first five such examples.
    """

    num_dropped: int
    dropped_by_set: dict[str, int]
    dropped_ids: tuple[str, ...]
    num_repeated: int
    num_conflicts: int
    conflict_ids: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """Return what was found, for people."""
        where = ", ".join(f"{name} {count}" for name, count in self.dropped_by_set.items())
        return (
            f"{self.num_dropped} training texts stand in evaluation sets"
            f"{f' ({where}) and will be left out' if where else ''}; {self.num_repeated} stand "
            f"twice in training, {self.num_conflicts} of them with different labels."
        )


def drop_overlap(
    train: Sequence[Example], evaluations: Mapping[str, Sequence[Example]]
) -> tuple[list[Example], Overlap]:
    """Drop training examples whose texts stand in an evaluation set.

    Texts are the same if they agree but for case and white space.
    """
    keys = {name: {text_key(e) for e in examples} for name, examples in evaluations.items()}
    by_set = {name: sum(text_key(e) in found for e in train) for name, found in keys.items()}
    held_out = set().union(*keys.values()) if keys else set()
    kept = [example for example in train if text_key(example) not in held_out]
    dropped = [example for example in train if text_key(example) in held_out]
    labels: dict[tuple[str, ...], set[str | None]] = defaultdict(set)
    for example in kept:
        labels[text_key(example)].add(example.label)
    conflicting = {key for key, found in labels.items() if len(found) > 1}
    return kept, Overlap(
        num_dropped=len(dropped),
        dropped_by_set={name: count for name, count in by_set.items() if count},
        dropped_ids=tuple(example.id for example in dropped[:5]),
        num_repeated=len(kept) - len(labels),
        num_conflicts=len(conflicting),
        conflict_ids=tuple(e.id for e in kept if text_key(e) in conflicting)[:5],
    )


def text_key(example: Example) -> tuple[str, ...]:
    """Return an example's texts without differences of case and white space."""
    return tuple(" ".join(text.casefold().split()) for text in example.texts.values())
