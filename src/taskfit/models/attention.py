"""Attention over a token tree, plugged into transformers' decoders by name.

Legend: H query heads, N key-value heads, G = H / N queries per key-value head, T tokens, B blocks,
Q queries of a block, K keys of a block, A ancestors before a block, P prefix tokens, E head width.

The stock decoders of transformers call `attention_interface(module, query, key, value, ...)` and
hand extra keyword arguments of the model's forward down to it. So the tree needs no change in any
model: it is one attention function and one argument, `tree_layout`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from taskfit.tree import AttentionBlock, IntArray

IMPLEMENTATION = "taskfit_tree"


@dataclass(slots=True)
class KeyValueCache:
    """Keys and values of a static prefix by layer, each (N, P, E).

    Attributes:
        length: Number of prefix tokens P.
        ids: The prefix, (P,).
        keys: One tensor a layer.
        values: One tensor a layer.
    """

    length: int
    ids: IntArray
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def cropped(self, length: int) -> "KeyValueCache":
        """Return the first `length` tokens of the prefix (views, nothing is copied)."""
        return KeyValueCache(
            length,
            self.ids[:length],
            {layer: key[:, :length] for layer, key in self.keys.items()},
            {layer: value[:, :length] for layer, value in self.values.items()},
        )

    def followed_by(self, other: "KeyValueCache") -> "KeyValueCache":
        """Return the prefix with what comes behind it."""
        return KeyValueCache(
            self.length + other.length,
            np.concatenate((self.ids, other.ids)),
            {layer: torch.cat((own, other.keys[layer]), 1) for layer, own in self.keys.items()},
            {layer: torch.cat((own, other.values[layer]), 1) for layer, own in self.values.items()},
        )


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


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """What the attention function needs to know of a tree.

    Attributes:
        blocks: The tree's blocks of queries, covering all its tokens in order.
        prefix: Keys and values before the tree's root, or None.
        record: Where to keep the keys and values of the tree itself, or None.
        stacked: The same blocks for compiled layers, or None where those run as they are.
    """

    blocks: Sequence[BlockTensors]
    prefix: KeyValueCache | None = None
    record: KeyValueCache | None = None
    stacked: StackedBlocks | None = None


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """What a compiled layer needs to know of a tree: tensors alone, and nothing of its number.

    Attributes:
        blocks: The tree's blocks of queries.
        keys: Those of this layer before the tree's root, (N, P, E), or None.
        values: The same of the values.
    """

    blocks: StackedBlocks
    keys: Tensor | None
    values: Tensor | None


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
    ancestors = torch.from_numpy(keys).to(like.device) if len(keys) else None
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
    return bias.masked_fill_(torch.from_numpy(~seen).to(like.device), float("-inf"))


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    tree_layout: TreeLayout | LayerLayout | None = None,
    **ignored: Any,  # noqa: ANN401 - transformers hands every model its own extras
) -> tuple[Tensor, None]:
    """Attend along the paths of a token tree.

    Args:
        module: The attention layer; its `layer_idx` names its keys and values.
        query: (1, H, T, E).
        key: (1, N, T, E), rotated already where the model rotates.
        value: (1, N, T, E).
        attention_mask: Unused; the layout holds the masks.
        scaling: Factor of the scores; None means E ** -0.5.
        dropout: Share of attention weights dropped in training.
        sliding_window: Set in layers that see a limited number of positions.
        softcap: Scores s become softcap * tanh(s / softcap).
        tree_layout: The tree's masks, prefix and record; in a compiled layer its own share of them.
        ignored: Arguments of other attention functions.

    Returns:
        The mixed values (1, T, H, E), and None for the weights.
    """
    if tree_layout is None:
        raise RuntimeError("The tree attention was called without a tree; use `plain_attention`.")
    num_heads, num_tokens, width = query.shape[1:]
    num_kv = key.shape[1]
    queries = query[0].view(num_kv, num_heads // num_kv, num_tokens, width)  # (N, G, T, E)
    queries = queries * (width**-0.5 if scaling is None else scaling)
    keys, values = key[0], value[0]  # (N, T, E)
    if isinstance(tree_layout, LayerLayout):
        mixed = _attend_stacked(
            queries,
            keys,
            values,
            tree_layout,
            windowed=sliding_window is not None,
            softcap=softcap,
            dropout=dropout if module.training else 0.0,
        )
        return mixed.reshape(1, num_heads, num_tokens, width).transpose(1, 2), None
    prefix, record = tree_layout.prefix, tree_layout.record
    layer = 0 if prefix is None and record is None else int(module.layer_idx)  # type: ignore[arg-type]
    if record is not None:
        record.keys[layer] = keys[:, : record.length]
        record.values[layer] = values[:, : record.length]
    # Split once, not sliced block by block: the backward pass of a slice fills and adds a tensor as
    # long as the whole tree, for each block again.
    sizes = [block.stop - block.start for block in tree_layout.blocks]
    outputs = [
        _attend(
            own_queries,
            _visible(keys, own_keys, block, None if prefix is None else prefix.keys[layer]),
            _visible(values, own_values, block, None if prefix is None else prefix.values[layer]),
            block.bias if sliding_window is None else block.window_bias,
            softcap=softcap,
            dropout=dropout if module.training else 0.0,
        )
        for block, own_queries, own_keys, own_values in zip(
            tree_layout.blocks,
            torch.split(queries, sizes, dim=2),
            torch.split(keys, sizes, dim=1),
            torch.split(values, sizes, dim=1),
            strict=True,
        )
    ]
    mixed = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)  # (N, G, T, E)
    return mixed.reshape(1, num_heads, num_tokens, width).transpose(1, 2), None


def _attend_stacked(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    layout: LayerLayout,
    *,
    windowed: bool,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Return what all blocks mix, (N, G, T, E), for scaled queries (N, G, T, E).

    Args:
        queries: Of the whole tree, scaled.
        keys: Of the whole tree, (N, T, E).
        values: Of the whole tree, (N, T, E).
        layout: Blocks and what stands before the tree.
        windowed: Whether the layer sees a limited number of positions.
        softcap: See `tree_attention`.
        dropout: See `tree_attention`.
    """
    bias = layout.blocks.window_bias if windowed else layout.blocks.bias  # (B, Q, K)
    num_kv, group, num_tokens, width = queries.shape
    num_blocks, num_queries, _ = bias.shape
    ancestors = layout.blocks.ancestors

    def visible(own: Tensor, before: Tensor | None) -> Tensor:
        parts = [own.view(num_kv, num_blocks, num_queries, width)]
        if ancestors is not None:
            found = own.index_select(1, ancestors.flatten())
            parts.insert(0, found.view(num_kv, num_blocks, -1, width))
        if before is not None:
            parts.insert(0, before[:, None].expand(-1, num_blocks, -1, -1))
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)).flatten(0, 1)

    cut = queries.view(num_kv, group, num_blocks, num_queries, width).transpose(1, 2)
    mixed = _attend(
        cut.flatten(0, 1),  # (N * B, G, Q, E)
        visible(keys, layout.keys),
        visible(values, layout.values),
        bias.repeat(num_kv, 1, 1)[:, None],
        softcap=softcap,
        dropout=dropout,
    )
    mixed = mixed.view(num_kv, num_blocks, group, num_queries, width).transpose(1, 2)
    return mixed.reshape(num_kv, group, num_tokens, width)


def _visible(tree: Tensor, own: Tensor, block: BlockTensors, prefix: Tensor | None) -> Tensor:
    """Return what a block may see of a tree's keys or values, (N, K, E).

    Args:
        tree: Those of the whole tree, (N, T, E).
        own: Those of the block's own tokens, (N, Q, E).
        block: The block.
        prefix: Those before the tree's root, (N, P, E), or None.
    """
    parts = [own]
    if block.ancestors is not None:
        parts.insert(0, tree.index_select(1, block.ancestors))
    if prefix is not None:
        parts.insert(0, prefix)
    return own if len(parts) == 1 else torch.cat(parts, dim=1)


def _attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor,
    *,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Return softmax(queries keys^T + bias) values, (N, G, Q, E), for scaled queries (N, G, Q, E).

    The bias is (Q, K), or one for each of N, (N, 1, Q, K).

    The G query heads of a key-value head are rows of one product, so keys are never repeated.
    """
    num_kv, group, num_queries, width = queries.shape
    rows = queries.reshape(num_kv, group * num_queries, width)
    scores = torch.bmm(rows, keys.transpose(1, 2))  # (N, G * Q, K)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    # In place: neither product keeps its output for the backward pass.
    scores = scores.view(num_kv, group, num_queries, -1).add_(bias)
    weights = torch.softmax(scores, dim=-1)
    if dropout:
        weights = nn.functional.dropout(weights, dropout)
    mixed = torch.bmm(weights.view(num_kv, group * num_queries, -1), values)
    return mixed.view(num_kv, group, num_queries, width)


AttentionInterface.register(IMPLEMENTATION, tree_attention)
