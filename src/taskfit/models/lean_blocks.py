"""Masks and keys of the lean pass: the same sums for a text, whatever stands beside it.

Legend: N key-value heads, T tokens, E head width, P prefix tokens, S those of them in whole groups,
Q queries of a block, C keys of a block beside the S.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskfit.models.attention import KeyValueCache
from taskfit.tree import TokenTree
from taskfit.tree.aligned import GROUP, SPAN, AlignedBlock, aligned_blocks


@dataclass(frozen=True, slots=True)
class LeanBlock:
    """A block of queries.

    Attributes:
        start: First query (token index).
        stop: One past the last query.
        keys: Places of keys in what `LeanLayout.source` returns, (C,).
        bias: 0 where a query sees a key, -inf elsewhere, (Q, S + C).
        window_bias: The same within the model's sliding window, (Q, S + C).
        spans: Bounds of what is added up in one go, among the S + C keys.
    """

    start: int
    stop: int
    keys: Tensor
    bias: Tensor
    window_bias: Tensor
    spans: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class LeanLayout:
    """What a layer needs to know of a tree.

    Attributes:
        blocks: The tree's blocks of queries, covering all its tokens in order.
        num_shared: Leading tokens of the prefix that stand before the keys of every block, S.
        prefix: Keys and values before the tree's root, or None.
        record: Where to keep the keys and values of the tree itself, or None.
    """

    blocks: Sequence[LeanBlock]
    num_shared: int
    prefix: KeyValueCache | None
    record: KeyValueCache | None

    def seen(self, own: Tensor, before: Tensor | None) -> list[Tensor]:
        """Return the keys (or values) of each block, each (N, S + C, E).

        Args:
            own: Those of the tree, (N, T, E).
            before: Those of the prefix, (N, P, E), or None.
        """
        shared, source = self.num_shared, own
        if before is not None and before.shape[1] > shared:
            source = torch.cat((before[:, shared:], own), dim=1)
        found = [source.index_select(1, block.keys) for block in self.blocks]
        if before is None or not shared:
            return found
        return [torch.cat((before[:, :shared], one), dim=1) for one in found]


def lean_layout(
    tree: TokenTree,
    num_tokens: int,
    *,
    block_size: int,
    window: int | None,
    prefix: KeyValueCache | None,
    record: KeyValueCache | None,
) -> LeanLayout:
    """Lay out a tree.

    Args:
        tree: The tree.
        num_tokens: Its tokens with those that fill it up, T.
        block_size: Most queries of a block.
        window: Number of positions that windowed layers see, or None.
        prefix: Keys and values before the root, or None.
        record: Where to keep those of the tree, or None.
    """
    before = 0 if prefix is None else prefix.length
    shared = before - before % GROUP
    depths = np.zeros(num_tokens, np.int64)
    depths[: len(tree)] = tree.positions
    blocks = aligned_blocks(tree, block_size, prefix_length=before, num_queries=num_tokens)
    return LeanLayout(
        [_block(one, depths + before, shared, window) for one in blocks], shared, prefix, record
    )


def _block(
    block: AlignedBlock, depths: NDArray[np.int64], shared: int, window: int | None
) -> LeanBlock:
    own = depths[block.start : block.stop]  # (Q,)
    keys = np.concatenate((np.arange(shared), block.depths))  # (S + C,)
    seen = np.concatenate((np.ones((len(own), shared), bool), block.visible), axis=1)
    bias = window_bias = _additive(seen)
    if window is not None and own.max() >= window:
        # A key is near if fewer than `window` positions lie between it and the query.
        window_bias = _additive(seen & (own[:, None] - keys[None, :] < window))
    cuts = [0, *(np.flatnonzero(np.diff(keys // SPAN)) + 1).tolist(), len(keys)]
    spans = list(itertools.pairwise(cuts))
    places = torch.from_numpy(block.keys)
    return LeanBlock(block.start, block.stop, places, bias, window_bias, spans)


def _additive(seen: NDArray[np.bool_]) -> Tensor:
    return torch.zeros(seen.shape).masked_fill_(torch.from_numpy(~seen), float("-inf"))
