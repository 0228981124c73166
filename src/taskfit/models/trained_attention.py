"""Attention over a tree with a hand-written gradient, for the training pass on a CPU.

Legend: T tokens, H query heads, N key-value heads, G = H / N queries per key-value head, E head
width, Q queries of a block, K keys of a block.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from taskfit.models.attention import TreeLayout, visible_to
from taskfit.models.lean_attention import masked_scores, normalized, rotated
from taskfit.models.lean_layers import LayerParts, Norm
from taskfit.models.tree_blocks import BlockTensors

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Kept:
    """What the gradient needs of a pass.

    Attributes:
        flat: Queries and keys, normalised and rotated, and values, (T, (H + 2 N) E).
        raw: Queries and keys as they came in, (T, H + N, E), where they are normalised, else None.
        weights: Of each block, (N, G Q, K).
    """

    flat: Tensor
    raw: Tensor | None
    weights: tuple[Tensor, ...]


def attend(
    flat: Tensor, angles: Pair | None, layout: TreeLayout, parts: LayerParts, place: int
) -> tuple[Tensor, Kept]:
    """Return the mixed values of all tokens, (T, H E), and what the gradient needs.

    Args:
        flat: Queries, keys and values, (T, (H + 2 N) E); changed in place.
        angles: Cosines and signed sines, (T, 1, R) each; None: nothing is rotated.
        layout: The tree's masks in float32, prefix and record.
        parts: The layer.
        place: Its number.
    """
    num_heads, num_kv = parts.num_heads, parts.num_kv
    heads = flat.view(len(flat), num_heads + 2 * num_kv, -1)
    turned, raw = heads[:, : num_heads + num_kv], None
    if parts.head_norms is not None:
        raw = turned.clone()
        turned.copy_(normalized(raw, parts))
    if angles is not None:
        turned.copy_(rotated(turned, *angles))
    queries, keys, values = _split(heads, parts)
    prefix, record = layout.prefix, layout.record
    if record is not None:
        record.keys[place] = keys[:, : record.length].contiguous()
        record.values[place] = values[:, : record.length].contiguous()
    before = (None, None) if prefix is None else (prefix.keys[place], prefix.values[place])
    outputs, weights = [], []
    for block in layout.blocks:
        own = slice(block.start, block.stop)
        rows = queries[:, :, own].reshape(num_kv, -1, heads.shape[-1])  # (N, G Q, E)
        seen = visible_to(block, keys, keys[:, own], before[0])
        bias = block.window_bias if parts.has_window else block.bias
        scores = masked_scores(rows, seen, bias, parts)
        found = torch.softmax(scores, dim=-1).to(flat.dtype).view(num_kv, rows.shape[1], -1)
        mixed = torch.bmm(found, visible_to(block, values, values[:, own], before[1]))
        outputs.append(_as_tokens(mixed, num_heads))
        weights.append(found)
    whole = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return whole, Kept(flat, raw, tuple(weights))


def attend_back(
    grad: Tensor, kept: Kept, angles: Pair | None, layout: TreeLayout, parts: LayerParts, place: int
) -> Tensor:
    """Return the gradient of queries, keys and values, (T, (H + 2 N) E).

    Args:
        grad: Of the mixed values, (T, H E).
        kept: What the pass returned.
        angles: As in the pass, like the other arguments.
        layout: The same.
        parts: The same.
        place: The same.
    """
    num_heads, num_kv = parts.num_heads, parts.num_kv
    heads = kept.flat.view(len(grad), num_heads + 2 * num_kv, -1)
    queries, keys, values = _split(heads, parts)
    prefix = layout.prefix
    before = (None, None) if prefix is None else (prefix.keys[place], prefix.values[place])
    result = torch.empty_like(heads)
    of_keys, of_values = _Sums(keys, layout), _Sums(values, layout)
    of_mixed = grad.view(len(grad), num_kv, num_heads // num_kv, -1).permute(1, 2, 0, 3)
    for block, weights in zip(layout.blocks, kept.weights, strict=True):
        own = slice(block.start, block.stop)
        rows = queries[:, :, own].reshape(num_kv, -1, heads.shape[-1])
        below = of_mixed[:, :, own].reshape(rows.shape)  # (N, G Q, E)
        of_values.add(block, torch.bmm(weights.transpose(1, 2), below))
        seen = visible_to(block, values, values[:, own], before[1])
        of_weights = torch.bmm(below, seen.transpose(1, 2))  # (N, G Q, K)
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        seen = visible_to(block, keys, keys[:, own], before[0])
        if parts.softcap is not None:
            share = torch.bmm(rows, seen.transpose(1, 2)).float()
            share = torch.tanh(share.mul_(parts.scaling / parts.softcap))
            of_scores = (of_scores * (1 - share.square())).to(of_scores.dtype)
        of_scores.mul_(parts.scaling)
        of_keys.add(block, torch.bmm(of_scores.transpose(1, 2), rows))
        found = _as_tokens(torch.bmm(of_scores, seen), num_heads)
        result[own, :num_heads] = found.view(block.stop - block.start, num_heads, -1)
    result[:, num_heads : num_heads + num_kv] = of_keys.total.transpose(0, 1)
    result[:, num_heads + num_kv :] = of_values.total.transpose(0, 1)
    turned = result[:, : num_heads + num_kv]
    back = turned if angles is None else rotated_back(turned, *angles)
    if parts.head_norms is not None and kept.raw is not None:
        raw = torch.split(kept.raw.float(), [num_heads, num_kv], dim=1)
        pair = torch.split(back.float(), [num_heads, num_kv], dim=1)
        both = zip(parts.head_norms, pair, raw, strict=True)
        back = torch.cat([norm_back(norm, of, x) for norm, of, x in both], dim=1)
    if back is not turned:
        turned.copy_(back)
    return result.view(len(grad), -1)


class _Sums:
    """Gradients of a tree's keys or values, added up over blocks, (N, T, E)."""

    def __init__(self, like: Tensor, layout: TreeLayout) -> None:
        self._prefix = 0 if layout.prefix is None else layout.prefix.length
        self._is_whole = len(layout.blocks) == 1 and layout.blocks[0].ancestors is None
        # Many small parts come together: float32 loses none of them.
        self.total = like if self._is_whole else torch.zeros_like(like, dtype=torch.float32)

    def add(self, block: BlockTensors, part: Tensor) -> None:
        """Add those of what a block sees: prefix, ancestors, the block itself, (N, K, E)."""
        part = part[:, self._prefix :]
        if self._is_whole:
            self.total = part
            return
        if block.ancestors is not None:
            count = len(block.ancestors)
            self.total.index_add_(1, block.ancestors, part[:, :count].float())
            part = part[:, count:]
        self.total[:, block.start : block.stop] += part


def _split(heads: Tensor, parts: LayerParts) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries (N, G, T, E), keys and values (N, T, E)."""
    num_heads, num_kv = parts.num_heads, parts.num_kv
    grouped = (len(heads), num_kv, num_heads // num_kv, -1)
    queries = heads[:, :num_heads].view(grouped)
    keys = heads[:, num_heads : num_heads + num_kv].transpose(0, 1)
    values = heads[:, num_heads + num_kv :].transpose(0, 1)
    return queries.permute(1, 2, 0, 3), keys, values


def _as_tokens(mixed: Tensor, num_heads: int) -> Tensor:
    """Turn (N, G Q, E) to (Q, H E)."""
    num_kv, _, width = mixed.shape
    tokens = mixed.view(num_kv, num_heads // num_kv, -1, width).permute(2, 0, 1, 3)
    return tokens.reshape(tokens.shape[0], -1)


def rotated_back(grad: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the gradient of what `rotated` was given."""
    size = cos.shape[-1]
    of = grad if size == grad.shape[-1] else grad[..., :size]
    of = (of * sin).roll(size // 2, dims=-1).addcmul_(of, cos)
    return of if size == grad.shape[-1] else torch.cat((of, grad[..., size:]), dim=-1)


def norm_back(norm: Norm, grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of what a norm was given, in float32.

    Args:
        norm: The norm.
        grad: Of its output, (..., D).
        x: Its input in float32, (..., D).
    """
    if norm.centers:
        shape = [norm.width]
        _, mean, scale = torch.native_layer_norm(x, shape, norm.weight, norm.bias, norm.epsilon)
        found: Tensor = torch.ops.aten.native_layer_norm_backward(
            grad.float(), x, shape, mean, scale, norm.weight, norm.bias, [True, False, False]
        )[0]
        return found
    lengths = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = lengths.square_().div_(norm.width).add_(norm.epsilon).rsqrt_()
    of = grad.float() if norm.weight is None else grad * norm.weight
    shared = (of * x).sum(dim=-1, keepdim=True).mul_(scale.pow(3)).div_(-norm.width)
    return torch.addcmul(of.mul_(scale), x, shared)
