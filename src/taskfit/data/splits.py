"""Seeded splits and draws. Every draw is a prefix of one seeded order, so draws are nested."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from taskfit.data.examples import Example, class_counts
from taskfit.errors import DataError


def split_validation(
    examples: Sequence[Example], *, fraction: float, max_validation: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """Hold out a stratified part.

    Args:
        examples: Labelled examples.
        fraction: Share to hold out.
        max_validation: Most examples to hold out.
        seed: Seed of the draw.

    Returns:
        Training and held-out examples, both in their original order. Every class keeps at least
        one training example.
    """
    size = min(max_validation, round(fraction * len(examples)))
    # The draw starts from the end of another order than `draw`, so that a small training draw
    # does not depend on which part was held out for a larger one.
    order = stratified_order(examples, seed=[seed, 1])
    left = class_counts(examples)
    held_out: set[int] = set()
    for index in order:
        if len(held_out) == size:
            break
        label = str(examples[index].label)
        if left[label] > 1:
            left[label] -= 1
            held_out.add(index)
    train = [e for i, e in enumerate(examples) if i not in held_out]
    return train, [e for i, e in enumerate(examples) if i in held_out]


def draw(
    examples: Sequence[Example],
    *,
    num_examples: int | None,
    shots_per_class: int | None,
    seed: int,
) -> list[Example]:
    """Draw examples; a larger draw of the same seed contains the smaller one.

    Args:
        examples: Labelled examples.
        num_examples: How many in all, stratified; None if `shots_per_class` is given.
        shots_per_class: How many of each class.
        seed: Seed of the order that draws are prefixes of.

    Raises:
        DataError: If there are not enough.
    """
    if shots_per_class is not None:
        counts = class_counts(examples)
        short = [f"{label} has {n}" for label, n in sorted(counts.items()) if n < shots_per_class]
        if short:
            raise DataError(
                f"{shots_per_class} examples of each class are asked for, but "
                f"{', '.join(short[:5])}."
            )
        taken: dict[str, int] = defaultdict(int)
        chosen = []
        for index in stratified_order(examples, seed=[seed]):
            label = str(examples[index].label)
            if taken[label] < shots_per_class:
                taken[label] += 1
                chosen.append(examples[index])
        return chosen
    if num_examples is None or num_examples > len(examples):
        raise DataError(
            f"{num_examples} examples are asked for, but there are {len(examples)} (after taking "
            "out validation and duplicates)."
        )
    return [examples[i] for i in stratified_order(examples, seed=[seed])[:num_examples]]


def stratified_order(examples: Sequence[Example], *, seed: Sequence[int]) -> list[int]:
    """Return a seeded order of which every prefix has nearly the classes' proportions.

    Example j of a shuffled class of size n stands at (j + u) / n on a line from 0 to 1, with u
    drawn once a class; reading the line gives each class its share at every point.
    """
    generator = np.random.default_rng(list(seed))
    members: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        members[str(example.label)].append(index)
    places: list[tuple[float, int]] = []
    for label in sorted(members):
        shuffled = generator.permutation(members[label])
        offset = generator.random()
        places.extend(((j + offset) / len(shuffled), int(i)) for j, i in enumerate(shuffled))
    return [index for _, index in sorted(places)]
