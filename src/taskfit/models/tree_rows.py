"""The sequences of a token tree as rows of batches, padded on the right.

Legend: T unique tokens of a tree, D hidden width, B sequences of a batch, L their length with
padding, N nodes read from a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taskfit.models.padded import plan_padded
from taskfit.models.transfer import on_device
from taskfit.tree import IntArray, TokenTree

# Smallest budget of a batch (tokens); otherwise as many as the tree has unique ones, which whoever
# planned it had memory for.
BATCH_TOKENS = 1024
# Keys and values of a prefix, copied for each sequence of a batch, against what a token needs that
# runs: so many of its tokens count as one.
PREFIX_SHARE = 8


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Sequences of a tree as rows, padded on the right.

    Attributes:
        nodes: The node that each cell holds; in cells of padding any, (B, L).
        read: Of each node that is read from this batch its cell, row by row, (N,).
    """

    nodes: IntArray
    read: IntArray


def row_batches(tree: TokenTree, prefix_length: int) -> list[RowBatch]:
    """Lay out the sequences of a tree in batches of like length.

    Those that occur twice or start another one run once; a node is read from the first row that
    holds it.

    Args:
        tree: The tree.
        prefix_length: Tokens whose states are copied for each sequence.
    """
    is_leaf = tree.subtree_end == np.arange(len(tree)) + 1
    paths = list({int(path[-1]): path for path in tree.paths if is_leaf[path[-1]]}.values())
    costs = [len(path) + prefix_length // PREFIX_SHARE for path in paths]
    budget = max(BATCH_TOKENS, len(tree), *costs)
    found = []
    is_read = np.zeros(len(tree), bool)
    for chosen in plan_padded(costs, budget, names=[str(i) for i in range(len(paths))]):
        rows = [paths[i] for i in chosen]
        width = max(map(len, rows))
        nodes = np.stack([np.pad(row, (0, width - len(row)), mode="edge") for row in rows])
        cells = []
        for place, row in enumerate(rows):
            first = int(np.count_nonzero(is_read[row]))  # from the root on
            cells.append(place * width + np.arange(first, len(row)))
            is_read[row] = True
        found.append(RowBatch(nodes, np.concatenate(cells)))
    return found


def states_by_node(batches: Sequence[RowBatch], states: Sequence[Tensor]) -> Tensor:
    """Return the states of nodes, (T, D), of those of batches, each (B, L, D)."""
    read = [
        one.flatten(0, 1)[on_device(batch.read, one.device)]
        for batch, one in zip(batches, states, strict=True)
    ]
    nodes = np.concatenate([batch.nodes.flat[batch.read] for batch in batches])
    return torch.cat(read)[on_device(np.argsort(nodes), read[0].device)]
