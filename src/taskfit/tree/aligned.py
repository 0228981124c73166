"""What each query of a tree attends to, laid out so that its sums never depend on other texts.

Legend: T tokens of the tree, P tokens of the prefix, Q queries of a block, C keys of a block.

Sums of numbers with few digits come out differently in another order, and a model in bfloat16 grows
such differences until answers show them. Here the tokens of a query's own path always stand in the
same order and at the same places of groups of `GROUP` keys, by their depth, whatever else is in the
tree; what it does not see adds zeros. So the same path gives the same bits, alone and in company.

A segment is a run of tokens of which each is the child of the one before. It begins with copies of
the keys of its group that stand on its path before it, and those are seen in place of the others.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskfit.tree.build import IntArray, TokenTree

# Numbers that processors add up at once (512 bits of float32), and the pairs of bfloat16 in them.
GROUP = 16


@dataclass(frozen=True, slots=True)
class AlignedBlock:
    """Consecutive queries of a tree and the keys that they may see.

    Attributes:
        start: First query of the block (token index).
        stop: One past the last query.
        keys: Places of keys among the prefix's last P % GROUP tokens, followed by the tree's, (C,).
        depths: Of the keys, counted from the start of the prefix, (C,).
        visible: Which of the keys each query sees, (Q, C); those of the prefix before them all.
    """

    start: int
    stop: int
    keys: IntArray
    depths: IntArray
    visible: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Columns:
    """All keys of a tree: places, depths, and the queries [first, end) that see them, (C,)."""

    keys: IntArray
    depths: IntArray
    first: IntArray
    end: IntArray


def aligned_blocks(
    tree: TokenTree, block_size: int, *, prefix_length: int, num_queries: int
) -> list[AlignedBlock]:
    """Cut a tree into blocks of at most `block_size` queries of nearly equal size.

    Args:
        tree: The tokens.
        block_size: Most queries of a block.
        prefix_length: Tokens before the root, P.
        num_queries: At least T; queries behind the tree only fill up, and see anything.
    """
    columns = _columns(tree, prefix_length)
    count = -(-num_queries // block_size)
    bounds = np.linspace(0, num_queries, count + 1).astype(np.int64).tolist()
    blocks = []
    for start, stop in itertools.pairwise(bounds):
        seen = (columns.first < stop) & (columns.end > start)
        groups = seen.reshape(-1, GROUP).any(axis=1)
        groups[0] |= not groups.any()
        chosen = np.repeat(groups, GROUP)
        queries = np.arange(start, stop)[:, None]  # (Q, 1)
        visible = (columns.first[chosen] <= queries) & (queries < columns.end[chosen])
        visible[max(0, len(tree) - start) :, 0] = True
        blocks.append(
            AlignedBlock(start, stop, columns.keys[chosen], columns.depths[chosen], visible)
        )
    return blocks


def _columns(tree: TokenTree, prefix_length: int) -> _Columns:
    """Lay out the keys of all segments, one segment after the other."""
    tail = prefix_length % GROUP
    total, depths = len(tree), tree.positions + tail  # counted from the last whole group
    starts = np.flatnonzero(np.diff(depths, prepend=-1) != 1)
    if total and (not len(starts) or starts[0] != 0):
        starts = np.concatenate(([0], starts))
    stops = np.append(starts[1:], total)
    most = total + 2 * GROUP * len(starts)
    keys, key_depths = np.zeros(most, np.int64), np.zeros(most, np.int64)
    first, end = np.full(most, total), np.full(most, total)
    # By depth: the key on the current path, and its place among all.
    path, places = (np.arange(int(depths.max()) + 1) for _ in range(2))
    used = top = 0
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        depth = int(depths[start])
        floor = depth - depth % GROUP
        end[places[floor:top]] = start
        top = depth + stop - start
        path[depth:top] = np.arange(tail + start, tail + stop)
        own = slice(used, used + top - floor)
        keys[own], key_depths[own] = path[floor:top], np.arange(floor, top)
        first[own] = np.concatenate((np.full(depth - floor, start), np.arange(start, stop)))
        places[floor:top] = np.arange(own.start, own.stop)
        used = own.stop + -own.stop % GROUP
    key_depths += prefix_length - tail
    return _Columns(keys[:used], key_depths[:used], first[:used], end[:used])
