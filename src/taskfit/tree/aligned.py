"""What each query of a tree attends to, laid out so that its sums never depend on other texts.

Legend: T tokens of the tree, P tokens of the prefix, Q queries of a block, C keys of a block.

Sums of numbers with few digits come out differently in another order, and a model in bfloat16 grows
such differences until answers show them. Here the tokens of a query's own path always stand in the
same order and at the same places of groups of `GROUP` keys, by their depth, whatever else is in the
tree; what it does not see adds zeros. So the same path gives the same bits, alone and in company.

A segment is a run of tokens of which each is the child of the one before. It begins with copies of
the keys of its group that stand on its path before it, and those are seen in place of the others.
Libraries add up so many products in one go and then begin anew: keys are cut into spans by their
depth, and no block has more keys of one span than that.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskfit.tree.build import IntArray, TokenTree

# Numbers that processors add up at once (512 bits of float32), and the pairs of bfloat16 in them.
GROUP = 16
# Products that are added up in one go; oneDNN's matrices take 512.
SPAN = 512


@dataclass(frozen=True, slots=True)
class AlignedBlock:
    """Consecutive queries of a tree and the keys that they may see.

    Attributes:
        start: First query of the block (token index).
        stop: One past the last query.
        keys: Places of keys among the prefix's last P % GROUP tokens, followed by the tree's, (C,).
        depths: Of the keys, counted from the start of the prefix, (C,); by spans, ascending.
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

    def groups(self) -> "_Groups":
        """Return them by groups."""
        first, end = self.first.reshape(-1, GROUP), self.end.reshape(-1, GROUP)
        spans = self.depths[::GROUP] // SPAN
        return _Groups(first.min(axis=1), np.where(first < end, end, 0).max(axis=1), spans)


@dataclass(frozen=True, slots=True)
class _Groups:
    """Groups of keys, (C / 16,): the queries [first, end) of which some see them, and spans."""

    first: IntArray
    end: IntArray
    spans: IntArray


def aligned_blocks(
    tree: TokenTree, block_size: int, *, prefix_length: int, num_queries: int
) -> list[AlignedBlock]:
    """Cut a tree into blocks of at most `block_size` queries.

    Args:
        tree: The tokens.
        block_size: Most queries of a block.
        prefix_length: Tokens before the root, P.
        num_queries: At least T; queries behind the tree only fill up, and see anything.
    """
    columns = _columns(tree, prefix_length)
    groups = columns.groups()
    blocks = []
    start = 0
    while start < num_queries:
        alive = groups.end > start
        stop = _stop(groups, alive, start, min(start + block_size, num_queries), prefix_length)
        seen = alive & (groups.first < stop)
        seen[0] |= not seen.any()
        order = np.flatnonzero(seen)
        order = order[np.argsort(groups.spans[order], kind="stable")]
        chosen = (order[:, None] * GROUP + np.arange(GROUP)).ravel()
        queries = np.arange(start, stop)[:, None]  # (Q, 1)
        visible = (columns.first[chosen] <= queries) & (queries < columns.end[chosen])
        visible[max(0, len(tree) - start) :, 0] = True
        keys, depths = columns.keys[chosen], columns.depths[chosen]
        blocks.append(AlignedBlock(start, stop, keys, depths, visible))
        start = stop
    return blocks


def _stop(
    groups: "_Groups", alive: NDArray[np.bool_], start: int, most: int, prefix_length: int
) -> int:
    """Return where a block that starts so must stop, to have no more keys of a span than fit."""
    shared = prefix_length - prefix_length % GROUP
    for span in np.unique(groups.spans[alive]).tolist():
        own = groups.first[alive & (groups.spans == span)]
        room = (SPAN - max(0, shared - span * SPAN)) // GROUP
        if len(own) > room:
            most = min(most, max(start + 1, int(own[room])))
    return most


def _columns(tree: TokenTree, prefix_length: int) -> _Columns:
    """Lay out the keys of all segments, one segment after the other."""
    tail = prefix_length % GROUP
    total, depths = len(tree), tree.positions + tail  # counted from the last whole group
    starts = np.flatnonzero(np.diff(depths, prepend=depths[:1]) != 1)  # the first token is one
    stops = np.append(starts[1:], total)
    most = total + 2 * GROUP * len(starts)
    keys, key_depths = np.zeros(most, np.int64), np.zeros(most, np.int64)
    # What fills up groups is seen by nobody.
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
        keys[own] = path[floor:top]
        first[own] = np.concatenate((np.full(depth - floor, start), np.arange(start, stop)))
        places[floor:top] = np.arange(own.start, own.stop)
        whole = slice(used, own.stop + -own.stop % GROUP)
        key_depths[whole] = np.arange(floor, floor + whole.stop - used)
        used = whole.stop
    key_depths += prefix_length - tail
    return _Columns(keys[:used], key_depths[:used], first[:used], end[:used])
