"""Blocks of a tree's queries as tensors on the model's device: masks, and which keys they see.

Legend: T tokens, B blocks, Q queries of a block, K keys of a block, A ancestors before a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskfit.models.transfer import on_device
from taskfit.tree import AttentionBlock, IntArray


@dataclass(frozen=True, slots=True)
class BlockTensors:
    """A block of queries as tensors on the model's device.

    Attributes:
        start: First query (token index).
        stop: One past the last query.
        ancestors: Indices of keys before the block, (A,), or None where there are none.
        bias: 0 where a query sees a key, -inf elsewhere; keys are prefix, ancestors, block, (Q, K).
        window_bias: The same within the model's sliding window, (Q, K).
    """

    start: int
    stop: int
    ancestors: Tensor | None
    bias: Tensor
    window_bias: Tensor


@dataclass(frozen=True, slots=True)
class StackedBlocks:
    """Blocks of equal size as one, so that a compiled layer is the same for any number of them.

    Attributes:
        ancestors: Indices of keys before each block, (B, A), or None for a single block.
        bias: 0 where a query sees a key, -inf elsewhere; keys are prefix, ancestors, block,
            (B, Q, K).
        window_bias: The same within the model's sliding window, (B, Q, K).
    """

    ancestors: Tensor | None
    bias: Tensor
    window_bias: Tensor


def block_tensors(
    block: AttentionBlock,
    positions: IntArray,
    *,
    prefix_length: int,
    window: int | None,
    like: Tensor,
    multiple: int,
) -> BlockTensors:
    """Turn a block into an additive mask of the dtype and device of `like`.

    Args:
        block: The block.
        positions: Depth of each token of its tree, (T,).
        prefix_length: Tokens of a cached prefix, seen by all queries.
        window: Number of positions that windowed layers see, or None.
        like: Gives dtype and device.
        multiple: Ancestors are filled up to a multiple of this by keys that nobody sees.
    """
    num_queries = block.stop - block.start
    fill = -len(block.ancestors) % multiple
    seen = np.concatenate(
        (
            np.ones((num_queries, prefix_length), bool),
            np.zeros((num_queries, fill), bool),
            block.visible,
        ),
        axis=1,
    )
    # Added to the scores, not a boolean mask: it is made once for all layers and heads.
    bias = window_bias = _additive(seen, like)
    keys = np.concatenate((np.zeros(fill, dtype=np.int64), block.ancestors))
    # A key is within the window if fewer than `window` positions lie between it and the query.
    own = positions[block.start : block.stop]  # (Q,)
    if window is not None and prefix_length + own.max() >= window:
        before = np.arange(-prefix_length, 0)  # positions of the prefix
        key_positions = np.concatenate((before, positions[keys], own))  # (K,)
        near = own[:, None] - key_positions[None, :] < window  # (Q, K)
        window_bias = _additive(seen & near, like)
    ancestors = on_device(keys, like.device) if len(keys) else None
    return BlockTensors(block.start, block.stop, ancestors, bias, window_bias)


def stack_blocks(blocks: Sequence[BlockTensors], prefix_length: int) -> StackedBlocks:
    """Make one of a tree's blocks, filling ancestors up to equal numbers by keys that nobody sees.

    Args:
        blocks: Of equal numbers of queries.
        prefix_length: Tokens of a cached prefix, seen by all queries.
    """
    first = blocks[0]
    if len(blocks) == 1 and first.ancestors is None:
        # The same tensor twice would be another kind of input to the compiler than two are.
        return StackedBlocks(None, first.bias[None], first.window_bias[None].clone())
    counts = [0 if block.ancestors is None else len(block.ancestors) for block in blocks]
    # Two at least: sizes 0 and 1 are compiled apart.
    most = max(2, *counts)
    ancestors = torch.zeros(len(blocks), most, dtype=torch.int64, device=first.bias.device)
    biases = []
    for row, block, count in zip(ancestors, blocks, counts, strict=True):
        if block.ancestors is not None:
            row[most - count :] = block.ancestors
        hidden = block.bias.new_full((len(block.bias), most - count), float("-inf"))
        biases.append(
            [
                torch.cat((bias[:, :prefix_length], hidden, bias[:, prefix_length:]), dim=1)
                for bias in (block.bias, block.window_bias)
            ]
        )
    bias, window_bias = (torch.stack(kind) for kind in zip(*biases, strict=True))
    return StackedBlocks(ancestors, bias, window_bias)


def _additive(seen: np.ndarray[Any, np.dtype[np.bool_]], like: Tensor) -> Tensor:
    bias = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
    return bias.masked_fill_(on_device(~seen, like.device), float("-inf"))
