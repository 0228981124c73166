"""What each token of a tree attends to, as blocks of queries with their keys and masks.

Legend: T tokens of the tree, Q queries of a block, K keys of a block, A ancestors before a block.

A tree may be cut anywhere in depth-first order: the keys that a block of consecutive queries
`[start, stop)` can see are the ancestors of its first token plus the block itself. So attention
costs about T * (depth + block size) instead of T * T, whatever the number of examples.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskfit.tree.build import IntArray, TokenTree


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """Consecutive queries of a tree and the keys that they may see.

    Attributes:
        start: First query of the block (token index).
        stop: One past the last query.
        ancestors: Keys before the block, (A,); all are ancestors of the first query.
        visible: Which of the keys `ancestors`, then `start..stop`, each query sees, (Q, A + Q).
    """

    start: int
    stop: int
    ancestors: IntArray
    visible: NDArray[np.bool_]


def attention_blocks(tree: TokenTree, block_size: int) -> list[AttentionBlock]:
    """Cut a tree into blocks of at most `block_size` queries of nearly equal size."""
    total = len(tree)
    count = -(-total // block_size)
    bounds = np.linspace(0, total, count + 1).astype(np.int64).tolist()
    blocks = []
    for start, stop in itertools.pairwise(bounds):
        ancestors = tree.ancestors(start)  # (A,)
        own = np.arange(start, stop)  # (Q,)
        keys = np.concatenate((ancestors, own))  # (K,)
        visible = (keys[None, :] <= own[:, None]) & (own[:, None] < tree.subtree_end[keys][None, :])
        blocks.append(AttentionBlock(start, stop, ancestors, visible))
    return blocks
