"""Choose the labelled examples that stand in the prompt."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from taskfit.data import Example
from taskfit.errors import DataError


def choose_demonstrations(
    examples: Sequence[Example],
    *,
    how: Literal["fixed", "random", "balanced"],
    num: int,
    labels: Sequence[str],
    seed: int,
) -> list[Example]:
    """Choose demonstrations and their order.

    Args:
        examples: What to choose from; examples without one of the labels are passed over.
        how: `fixed`: the first ones, in order; `random`: a seeded draw; `balanced`: one of each
            class in turn, as far as it goes, then in a seeded order.
        num: How many.
        labels: The task's labels.
        seed: Seed of choice and order.

    Raises:
        DataError: If there are not enough examples.
    """
    known = set(labels)
    examples = [example for example in examples if example.label in known]
    if num > len(examples):
        raise DataError(
            f"{num} demonstrations are asked for, but there are only {len(examples)} labelled "
            "examples to take them from. Set method.num_demonstrations lower."
        )
    if how == "fixed":
        return list(examples[:num])
    generator = np.random.default_rng([seed, 2])
    shuffled = [examples[i] for i in generator.permutation(len(examples))]
    if how == "balanced":
        queues = {label: [e for e in shuffled if e.label == label] for label in labels}
        chosen: list[Example] = []
        while len(chosen) < num:
            for label in generator.permutation(list(labels)):
                if queues[label] and len(chosen) < num:
                    chosen.append(queues[label].pop(0))
        shuffled = chosen
    picked = shuffled[:num]
    return [picked[i] for i in generator.permutation(len(picked))]
