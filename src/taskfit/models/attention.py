"""Attention over a token tree, plugged into transformers' decoders by name.

Legend: H query heads, N key-value heads, G = H / N queries per key-value head, T tokens, B blocks,
Q queries of a block, K keys of a block, A ancestors before a block, P prefix tokens, E head width,
F width of values.

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

from taskfit.models.fork_layout import ForkLayout, State
from taskfit.models.tree_blocks import BlockTensors, StackedBlocks
from taskfit.tree import IntArray

IMPLEMENTATION = "taskfit_tree"


class NoTreeError(RuntimeError):
    """A layer did not hand the tree on to its attention, or there is none."""


@dataclass(slots=True)
class KeyValueCache:
    """Keys and values of a static prefix by layer, each (N, P, E).

    Attributes:
        length: Number of prefix tokens P.
        ids: The prefix, (P,).
        keys: One tensor a layer.
        values: One tensor a layer.
        states: What recurrent layers keep behind the prefix, in one row.
    """

    length: int
    ids: IntArray
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    states: dict[int, State] = field(default_factory=dict)

    def cropped(self, length: int) -> "KeyValueCache":
        """Return the first `length` tokens of the prefix (views, nothing is copied).

        States of recurrent layers cannot be cropped; they are left out.
        """
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
            other.states,
        )


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """What the attention function needs to know of a tree.

    Attributes:
        blocks: The tree's blocks of queries, covering all its tokens in order.
        prefix: Keys and values before the tree's root, or None.
        record: Where to keep the keys and values of the tree itself, or None.
        forks: The tree's segments for recurrent layers, where the model has any.
        windows: Where to note which window each layer asks for, or None.
        stacked: The same blocks for compiled layers, or None where those run as they are.
    """

    blocks: Sequence[BlockTensors]
    prefix: KeyValueCache | None = None
    record: KeyValueCache | None = None
    forks: ForkLayout | None = None
    windows: dict[int, int | None] | None = None
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
    s_aux: Tensor | None = None,
    tree_layout: TreeLayout | LayerLayout | None = None,
    **ignored: Any,  # noqa: ANN401 - transformers hands every model its own extras
) -> tuple[Tensor, None]:
    """Attend along the paths of a token tree.

    Args:
        module: The attention layer; its `layer_idx` names its keys and values.
        query: (1, H, T, E).
        key: (1, N, T, E), rotated already where the model rotates.
        value: (1, N, T, F).
        attention_mask: Unused; the layout holds the masks.
        scaling: Factor of the scores; None means E ** -0.5.
        dropout: Share of attention weights dropped in training.
        sliding_window: Set in layers that see a limited number of positions.
        softcap: Scores s become softcap * tanh(s / softcap).
        s_aux: Sinks, (H,): each head's score of one more key, whose value is zero.
        tree_layout: The tree's masks, prefix and record; in a compiled layer its own share of them.
        ignored: Arguments of other attention functions.

    Returns:
        The mixed values (1, T, H, F), and None for the weights.
    """
    if tree_layout is None:
        raise NoTreeError("The tree attention was called without a tree; use `plain_attention`.")
    num_heads, num_tokens, width = query.shape[1:]
    num_kv = key.shape[1]
    queries = query[0].reshape(num_kv, -1, num_tokens, width)  # (N, G, T, E)
    queries = queries * (width**-0.5 if scaling is None else scaling)
    keys, values = key[0], value[0]  # (N, T, E)
    sinks = None if s_aux is None else s_aux.view(num_kv, -1, 1, 1)
    if isinstance(tree_layout, LayerLayout):
        mixed = _attend_stacked(
            queries,
            keys,
            values,
            tree_layout,
            windowed=sliding_window is not None,
            softcap=softcap,
            sinks=sinks,
            dropout=dropout if module.training else 0.0,
        )
        return mixed.reshape(1, num_heads, num_tokens, -1).transpose(1, 2).contiguous(), None
    prefix, record = tree_layout.prefix, tree_layout.record
    layer = 0 if prefix is None and record is None else int(module.layer_idx)  # type: ignore[arg-type]
    if tree_layout.windows is not None:
        tree_layout.windows[int(module.layer_idx)] = sliding_window  # type: ignore[arg-type]
    if record is not None:
        record.keys[layer] = keys[:, : record.length]
        record.values[layer] = values[:, : record.length]
    # Split once, not sliced block by block: the backward pass of a slice fills and adds a tensor as
    # long as the whole tree, for each block again.
    sizes = [block.stop - block.start for block in tree_layout.blocks]
    outputs = [
        _attend(
            own_queries,
            visible_to(block, keys, own_keys, None if prefix is None else prefix.keys[layer]),
            visible_to(block, values, own_values, None if prefix is None else prefix.values[layer]),
            block.bias if sliding_window is None else block.window_bias,
            softcap=softcap,
            sinks=sinks,
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
    mixed = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)  # (N, G, T, F)
    # Some models view what they get, as if each token's heads lay side by side.
    return mixed.reshape(1, num_heads, num_tokens, -1).transpose(1, 2).contiguous(), None


def _attend_stacked(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    layout: LayerLayout,
    *,
    windowed: bool,
    softcap: float | None,
    sinks: Tensor | None,
    dropout: float,
) -> Tensor:
    """Return what all blocks mix, (N, G, T, F), for scaled queries (N, G, T, E).

    Args:
        queries: Of the whole tree, scaled.
        keys: Of the whole tree, (N, T, E).
        values: Of the whole tree, (N, T, F).
        layout: Blocks and what stands before the tree.
        windowed: Whether the layer sees a limited number of positions.
        softcap: See `tree_attention`.
        sinks: See `_attend`.
        dropout: See `tree_attention`.
    """
    bias = layout.blocks.window_bias if windowed else layout.blocks.bias  # (B, Q, K)
    num_kv, group, num_tokens, width = queries.shape
    num_blocks, num_queries, _ = bias.shape
    ancestors = layout.blocks.ancestors

    def visible(own: Tensor, before: Tensor | None) -> Tensor:
        parts = [own.view(num_kv, num_blocks, num_queries, -1)]
        if ancestors is not None:
            found = own.index_select(1, ancestors.flatten())
            parts.insert(0, found.view(num_kv, num_blocks, -1, own.shape[-1]))
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
        sinks=None if sinks is None else sinks.repeat_interleave(num_blocks, dim=0),
        dropout=dropout,
    )
    mixed = mixed.view(num_kv, num_blocks, group, num_queries, -1).transpose(1, 2)
    return mixed.reshape(num_kv, group, num_tokens, -1)


def visible_to(block: BlockTensors, tree: Tensor, own: Tensor, prefix: Tensor | None) -> Tensor:
    """Return what a block may see of a tree's keys or values, (N, K, E).

    Args:
        block: The block.
        tree: Those of the whole tree, (N, T, E).
        own: Those of the block's own tokens, (N, Q, E).
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
    sinks: Tensor | None,
    dropout: float,
) -> Tensor:
    """Return softmax(queries keys^T + bias) values, (N, G, Q, F), for scaled queries (N, G, Q, E).

    Sinks, (N, G, 1, 1), take their share of the softmax and give nothing.

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
    if sinks is not None:
        shares = sinks.to(scores.dtype).expand(-1, -1, num_queries, -1)
        scores = torch.cat((scores, shares), dim=-1)
    weights = torch.softmax(scores, dim=-1)
    if sinks is not None:
        weights = weights[..., :-1]
    if dropout:
        weights = nn.functional.dropout(weights, dropout)
    mixed = torch.bmm(weights.reshape(num_kv, group * num_queries, -1), values)
    return mixed.view(num_kv, group, num_queries, -1)  # values may have a width of their own


AttentionInterface.register(IMPLEMENTATION, tree_attention)
