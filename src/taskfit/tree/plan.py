"""Cut a list of sequences into trees of a bounded number of unique tokens."""

from collections.abc import Sequence

import numpy as np

from taskfit.errors import DataError
from taskfit.tree.build import IntArray, shared_with_previous, sort_order


def plan_trees(
    groups: Sequence[Sequence[IntArray]],
    token_budget: int,
    *,
    names: Sequence[str],
    shares: bool = True,
) -> list[list[int]]:
    """Pack groups of sequences into trees, keeping neighbours that share a prefix together.

    A group is what must stand in one tree, such as the candidate labels of one example. The
    groups are sorted by their first sequence and packed greedily in that order; in a sorted order
    no other packing of a run of neighbours shares more. For a model that runs every sequence by
    itself they are sorted by length, since it pads.

    Args:
        groups: One or more sequences of token ids each.
        token_budget: Most tokens that one tree makes the model run (tokens).
        names: The groups' names for messages, such as `train.csv:17`.
        shares: Whether the model runs what sequences share once.

    Returns:
        For every tree the indices of its groups; every group stands in exactly one tree.

    Raises:
        DataError: If one group alone needs more tokens than the budget.
    """
    sizes = np.array([tokens_to_run(group, shares=shares) for group in groups], dtype=np.int64)
    too_large = np.flatnonzero(sizes > token_budget)
    if len(too_large):
        worst = int(too_large[0])
        raise DataError(
            f"{names[worst]} needs {sizes[worst]} {'unique ' * shares}tokens in one forward pass; "
            f"the token budget is {token_budget} ({len(too_large)} such examples). "
            f"Raise the token budget, or set model.max_length so that long texts are shortened."
        )
    if shares:
        order = sort_order([group[0] for group in groups])
        shared = shared_with_previous([groups[i][0] for i in order])
    else:
        order = sorted(range(len(groups)), key=lambda i: max(map(len, groups[i])))
        shared = np.zeros(len(groups), dtype=np.int64)
    trees: list[list[int]] = []
    used = token_budget
    for index, common in zip(order, shared.tolist(), strict=True):
        added = int(sizes[index]) - common
        if not trees or used + added > token_budget:
            trees.append([])
            used, added = 0, int(sizes[index])
        trees[-1].append(index)
        used += added
    return trees


def tokens_to_run(sequences: Sequence[IntArray], *, shares: bool) -> int:
    """Return how many tokens a model runs for these sequences.

    Args:
        sequences: Token ids.
        shares: Whether it runs what they share once; else it runs each by itself, without those
            that others start with, padding not counted.
    """
    if shares or len(sequences) == 1:
        return unique_tokens(sequences)
    rows = [sequences[i] for i in sort_order(sequences)]
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    # A sequence that others start with stands right before one of them.
    is_start = np.append(shared_with_previous(rows)[1:] == lengths[:-1], False)
    return int(lengths[~is_start].sum())


def unique_tokens(sequences: Sequence[IntArray]) -> int:
    """Return the number of nodes that a tree of these sequences has."""
    if len(sequences) == 1:
        return len(sequences[0])
    rows = [sequences[i] for i in sort_order(sequences)]
    return int(sum(map(len, rows)) - shared_with_previous(rows).sum())
