"""Orders in which a prompt may list its options.

What a model answers hangs on the order of the options that it is shown (Zheng et al. 2024,
arXiv:2309.03882; Pezeshkpour & Hruschka 2023, arXiv:2308.11483). A task in another order is the
same task with the same labels in the same columns; only its prompt lists them otherwise.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, permutations

import numpy as np

from taskfit.tasks.task import Task

# Up to so many options all orders are looked through; of more, some are drawn.
MOST_LISTED = 6


def num_orders(task: Task) -> int:
    """Return in how many orders a prompt may list its options; 1 where it lists none."""
    if not task.names_options:
        return 1
    return 2 if task.levels else math.factorial(len(task.labels))


def option_orders(task: Task, count: int, *, seed: int) -> list[Task]:
    """Return the task with its options in different orders, the given order first.

    The given order is followed by its rotations, so that with as many orders as options every one
    stands at every place once (cyclic permutation, Zheng et al. 2024, section 3), and with fewer
    as far from its other places as may be; then come seeded orders, each with its rotations. The
    levels of a score stay in a row, up or down.

    Args:
        task: As it is given.
        count: How many, at least 1; if there are fewer, all of them are returned.
        seed: Of the orders behind the first rotations.
    """
    if not task.names_options:
        return [task]
    names = tuple(task.option_names)
    if task.levels:
        orders = [names, names[::-1]][:count]
    elif count < len(names):
        starts = [place * len(names) // count for place in range(count)]
        orders = [names[start:] + names[:start] for start in starts]
    else:
        orders = list(islice(_rotated(names, seed), count))
    return [task, *(replace(task, listed=order) for order in orders[1:])]


def shuffled_orders(task: Task, count: int, *, seed: int) -> list[Task]:
    """Return the task in all orders of its options; if there are more than `count`, in random ones.

    Args:
        task: As it is given.
        count: Most orders.
        seed: Of the draws.
    """
    if num_orders(task) <= count:
        return option_orders(task, count, seed=seed)
    names, generator = task.option_names, np.random.default_rng([seed, 8])
    drawn = [tuple(names[i] for i in generator.permutation(len(names))) for _ in range(count)]
    return [replace(task, listed=order) for order in drawn]


def _rotated(names: tuple[str, ...], seed: int) -> Iterator[tuple[str, ...]]:
    """Yield all orders of names without end where they are many: an order, and its rotations."""
    for order in _cycles(names, np.random.default_rng([seed, 6])):
        for start in range(len(order)):
            yield order[start:] + order[:start]


def _cycles(names: tuple[str, ...], generator: np.random.Generator) -> Iterator[tuple[str, ...]]:
    """Yield orders of which none is a rotation of another, the given one first."""
    first, others = names[0], names[1:]
    yield names
    if len(names) <= MOST_LISTED:
        found = list(permutations(others))[1:]
        yield from ((first, *found[i]) for i in generator.permutation(len(found)))
        return
    seen = {others}
    while True:
        drawn = tuple(others[i] for i in generator.permutation(len(others)))
        if drawn not in seen:
            seen.add(drawn)
            yield (first, *drawn)
