"""What attention is made of in the passes for a CPU, in scoring and in training.

Legend: T tokens, H query heads, N key-value heads, G = H / N queries per key-value head, E head
width, R angles of a head, Q queries of a block, K keys of a block.
"""

import torch
from torch import Tensor

from taskfit.models.lean_layers import Angles, LayerParts


def signed_angles(angles: Angles) -> Angles:
    """Return angles as `rotated` takes them: (T, 1, R), sines negative in the first half."""
    found = {}
    for kind, (cos, sin) in angles.items():
        half = sin.shape[-1] // 2
        signed = torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)
        found[kind] = (cos[:, None], signed[:, None])
    return found


def normalized(heads: Tensor, parts: LayerParts) -> Tensor:
    """Return queries and keys, (T, H + N, E), normalised where the layer does so."""
    if parts.head_norms is None:
        return heads
    pair = torch.split(heads.float(), [parts.num_heads, parts.num_kv], dim=1)
    found = [norm(part) for norm, part in zip(parts.head_norms, pair, strict=True)]
    return torch.cat(found, dim=1).to(heads.dtype)


def rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (T, heads, E); where there are fewer angles, the first numbers alone."""
    size = cos.shape[-1]
    turned = heads if size == heads.shape[-1] else heads[..., :size]
    turned = torch.addcmul(turned * cos, turned.roll(size // 2, dims=-1), sin)
    return turned if size == heads.shape[-1] else torch.cat((turned, heads[..., size:]), dim=-1)


def masked_scores(rows: Tensor, keys: Tensor, bias: Tensor, parts: LayerParts) -> Tensor:
    """Return the scores of a block in float32, (N, G, Q, K).

    Args:
        rows: Queries, (N, G Q, E).
        keys: What they may see, (N, K, E).
        bias: 0 where a query sees a key, -inf elsewhere, float32, (Q, K).
        parts: The layer.
    """
    scores = torch.bmm(rows, keys.transpose(1, 2)).view(len(rows), -1, *bias.shape)
    if parts.softcap is None:
        # One operator scales, masks and widens: in bfloat16 the softmax would be slower.
        return torch.add(bias, scores, alpha=parts.scaling)
    capped = torch.tanh(scores.float().mul_(parts.scaling / parts.softcap))
    return capped.mul_(parts.softcap).add_(bias)
