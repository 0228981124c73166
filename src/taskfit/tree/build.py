"""Build a tree of tokens from token sequences: sort them, measure shared prefixes, lay out.

Legend: S sequences, T unique tokens (nodes of the tree), L length of one sequence.

Sorting sequences lexicographically puts those that share a prefix next to each other, and then
the prefix shared with the *previous* sequence is the longest shared with any earlier one. So the
nodes in depth-first order are simply each sorted sequence without that shared part. No step loops
over tokens in Python; all work is linear in the tokens given, but for the sort of S keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenTree:
    """A tree of tokens in depth-first order.

    Token `k` is an ancestor of `q`, or `q` itself, exactly if `k <= q < subtree_end[k]`.

    Attributes:
        ids: Token ids, (T,).
        positions: Depth of each token = its position in its own sequence, (T,).
        subtree_end: One past the last token of each token's subtree, (T,).
        paths: For every sequence, in the order given, the nodes that spell it, each (L,).
    """

    ids: IntArray
    positions: IntArray
    subtree_end: IntArray
    paths: tuple[IntArray, ...]

    def __len__(self) -> int:
        """Return the number of unique tokens."""
        return len(self.ids)

    @classmethod
    def build(cls, sequences: Sequence[IntArray | Sequence[int]]) -> "TokenTree":
        """Merge sequences of token ids into one tree.

        Args:
            sequences: S non-empty sequences of token ids; equal ones share all their nodes.

        Raises:
            ValueError: If there is no sequence, or one of them is empty.
        """
        rows = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
        if not rows or min(map(len, rows)) == 0:
            raise ValueError("A token tree needs at least one sequence, and none may be empty.")
        order = sort_order(rows)
        rows_sorted = [rows[i] for i in order]
        shared = shared_with_previous(rows_sorted)  # (S,)
        lengths = np.fromiter(map(len, rows_sorted), np.int64, len(rows))  # (S,)
        starts = np.concatenate(([0], np.cumsum(lengths - shared)))  # (S + 1,)
        fresh = [row[skip:] for row, skip in zip(rows_sorted, shared.tolist(), strict=True)]
        ids = np.concatenate(fresh)  # (T,)
        positions = ragged_arange(shared, lengths)  # (T,)
        return cls(
            ids=ids,
            positions=positions,
            subtree_end=_subtree_ends(shared.tolist(), lengths.tolist(), starts.tolist()),
            paths=_paths(order, shared.tolist(), lengths.tolist(), starts.tolist()),
        )

    def padded(self, multiple: int) -> "TokenTree":
        """Return the tree with roots of one token behind it, up to a multiple of tokens.

        Nothing attends to them and they attend to nothing, so all other tokens are as before.
        """
        total = len(self)
        extra = -total % multiple
        zeros = np.zeros(extra, dtype=np.int64)
        return TokenTree(
            ids=np.concatenate((self.ids, zeros)),
            positions=np.concatenate((self.positions, zeros)),
            subtree_end=np.concatenate((self.subtree_end, np.arange(total, total + extra) + 1)),
            paths=self.paths,
        )

    def behind(self, ids: IntArray) -> "TokenTree":
        """Return the tree with tokens before its root, (P,), which become its first P nodes."""
        before = np.arange(len(ids))
        return TokenTree(
            ids=np.concatenate((ids, self.ids)),
            positions=np.concatenate((before, self.positions + len(ids))),
            subtree_end=np.concatenate(
                (np.full(len(ids), len(ids) + len(self)), self.subtree_end + len(ids))
            ),
            paths=tuple(np.concatenate((before, path + len(ids))) for path in self.paths),
        )

    def ancestors(self, node: int) -> IntArray:
        """Return the proper ancestors of a node, root first, (depth of the node,)."""
        before = np.arange(node)
        return before[self.subtree_end[:node] > node]


def common_prefix_length(first: IntArray, second: IntArray) -> int:
    """Return how many leading tokens two sequences share."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def sort_order(rows: Sequence[IntArray]) -> list[int]:
    """Return the indices that sort sequences lexicographically, a prefix before its extensions."""
    # Big-endian bytes compare as the numbers do, and Python compares bytes at C speed.
    keys = [row.astype(">u4").tobytes() for row in rows]
    return sorted(range(len(rows)), key=keys.__getitem__)


def shared_with_previous(rows: Sequence[IntArray]) -> IntArray:
    """Return for every row how many leading tokens it shares with the row before, (S,)."""
    shared = np.zeros(len(rows), dtype=np.int64)
    if len(rows) < 2:
        return shared
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    compared = np.minimum(lengths[1:], lengths[:-1])  # (S - 1,)
    flat = np.concatenate(rows)
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    offsets = ragged_arange(np.zeros_like(compared), compared)
    here = np.repeat(starts[1:], compared) + offsets
    previous = np.repeat(starts[:-1], compared) + offsets
    # Where tokens differ the offset counts, elsewhere the compared length: the minimum is it.
    candidates = np.where(flat[here] != flat[previous], offsets, np.repeat(compared, compared))
    shared[1:] = np.minimum.reduceat(candidates, np.concatenate(([0], np.cumsum(compared)[:-1])))
    return shared


def ragged_arange(starts: IntArray, stops: IntArray) -> IntArray:
    """Return the concatenation of `arange(start, stop)` over pairs with start <= stop."""
    counts = stops - starts
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    offsets: IntArray = np.repeat(ends - counts - starts, counts)
    return np.arange(total, dtype=np.int64) - offsets


def _subtree_ends(shared: list[int], lengths: list[int], starts: list[int]) -> IntArray:
    """Return one past the last descendant of every node, (T,).

    The subtree of a node at depth d ends where the first later branch starts that shares at most
    d tokens. Going backwards over branches, `pending` holds those that can still be the first, the
    nearest last; each is pushed and popped once.
    """
    total = starts[-1]
    ends = np.full(total, total, dtype=np.int64)
    pending: list[tuple[int, int]] = []  # (shared tokens, first node), shared strictly increasing
    for branch in range(len(lengths) - 1, -1, -1):
        low, first = shared[branch], starts[branch]
        high = lengths[branch]
        if first == starts[branch + 1]:
            continue  # a repeated sequence adds no node and ends no subtree
        while pending and high > low:
            threshold, later_start = pending[-1]
            bottom = max(threshold, low)
            if bottom < high:
                ends[first + bottom - low : first + high - low] = later_start
                high = bottom
            if threshold < low:
                break
            pending.pop()
        while pending and pending[-1][0] >= low:
            pending.pop()
        pending.append((low, first))
    return ends


def _paths(
    order: list[int], shared: list[int], lengths: list[int], starts: list[int]
) -> tuple[IntArray, ...]:
    """Return the nodes of every sequence, in the callers' order."""
    nodes = np.arange(starts[-1], dtype=np.int64)
    paths: list[IntArray] = [nodes[:0]] * len(order)
    previous = nodes[:0]
    for branch, sequence in enumerate(order):
        own = nodes[starts[branch] : starts[branch + 1]]
        previous = np.concatenate((previous[: shared[branch]], own))
        paths[sequence] = previous
    return tuple(paths)
