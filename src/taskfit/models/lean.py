"""A decoder's pass over a token tree without gradients, in few and large operators.

The stock decoders run some thirty small operators a layer, adapters beside the weights; for one
short text that is nearly all of the time. Here queries, keys and values are one product, so are
gate and input of the MLP, adapters are folded in, weights are laid out for the processor once, and
masks and angles are made once for all layers. What is added up between layers stays in float32.

Legend: T tokens, D hidden width, H query heads, N key-value heads, G = H / N queries per key-value
head, E head width, P prefix tokens, Q queries of a block, K keys of a block.
"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel

from taskfit.models.attention import BlockTensors, TreeLayout, visible
from taskfit.models.lean_layers import Angles, DecoderParts, LayerParts, read_decoder
from taskfit.models.lean_weights import NotLeanError, Product, Weights, read_layer

# Joined and packed weights by base model: runs over one base share them.
_SHARED: "WeakKeyDictionary[PreTrainedModel, Weights]" = WeakKeyDictionary()


def shared_weights(model: PreTrainedModel) -> Weights:
    """Return what is kept ready of a base model, the same for all who ask."""
    if model not in _SHARED:
        packs = model.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        _SHARED[model] = Weights(packs=packs)
    return _SHARED[model]


def forget_weights(model: PreTrainedModel) -> None:
    """Give back what is kept ready of a base model whose weights are about to change."""
    _SHARED.pop(model, None)


class LeanDecoder:
    """A model's decoder with one of its adapters, or none, for scoring.

    It holds tensors as they were when it was made: make another when weights have changed.

    Attributes:
        num_bytes: Memory that it needs beside the model and what is shared.
    """

    def __init__(self, model: PreTrainedModel, adapter: str | None, *, fold: bool = True) -> None:
        """Read a model and make its weights ready.

        Args:
            model: The model; nothing in it changes.
            adapter: Name of the adapter that counts; None: none.
            fold: Whether the adapter goes into copies of the weights that it touches, which costs
                their memory and is fastest; else it is applied beside them.

        Raises:
            NotLeanError: If the lean pass does not know the model, or memory does not suffice.
        """
        parts = read_decoder(model)
        _check_memory(model)
        weights = shared_weights(model)
        self._parts = parts
        self._dtype = model.dtype
        self._layers = [_Layer(one, adapter, weights, fold=fold) for one in parts.layers]
        self.num_bytes = sum(layer.num_bytes for layer in self._layers)

    def hidden(self, ids: Tensor, positions: Tensor, layout: TreeLayout) -> Tensor:
        """Return the last hidden states in the model's number format, (1, T, D).

        Args:
            ids: Token ids, (1, T).
            positions: Of each token in its own sequence, (1, T).
            layout: Masks in float32, prefix and record.
        """
        entering = self._parts.embed(ids, positions)
        angles = _signed(self._parts.angles(entering, positions))
        # A copy: embeddings in float32 would be changed in place.
        x = entering[0].to(torch.float32, copy=True)  # (T, D)
        for place, layer in enumerate(self._layers):
            layer.run(x, angles, layout, place)
        return self._leave(x, self._parts)[None]

    def _leave(self, x: Tensor, parts: DecoderParts) -> Tensor:
        states = (x if parts.final is None else parts.final(x)).to(self._dtype)
        if parts.project_out is not None:
            states = parts.project_out(states)
        return states


def _check_memory(model: PreTrainedModel) -> None:
    """Raise unless a second copy of the decoder leaves half of the free memory."""
    needed = sum(p.numel() * p.element_size() for p in model.get_decoder().parameters())
    free = psutil.virtual_memory().available
    if needed > free / 2:
        raise NotLeanError(
            f"its copy of the weights takes {needed / 1e9:.1f} GB, of {free / 1e9:.1f} GB free"
        )


def _signed(angles: Angles) -> Angles:
    """Return angles as `_rotate` takes them: (T, 1, R), sines negative in the first half."""
    found = {}
    for kind, (cos, sin) in angles.items():
        half = sin.shape[-1] // 2
        signed = torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)
        found[kind] = (cos[:, None], signed[:, None])
    return found


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries and keys, (T, heads, E); where there are fewer angles, the first numbers."""
    size = cos.shape[-1]
    turned = heads if size == heads.shape[-1] else heads[..., :size]
    turned = torch.addcmul(turned * cos, turned.roll(size // 2, dims=-1), sin)
    return turned if size == heads.shape[-1] else torch.cat((turned, heads[..., size:]), dim=-1)


class _Layer:
    """One layer, ready to run."""

    def __init__(
        self, parts: LayerParts, adapter: str | None, weights: Weights, *, fold: bool
    ) -> None:
        def product(modules: Sequence[torch.nn.Module]) -> Product:
            return Product([read_layer(one, adapter) for one in modules], weights, fold=fold)

        self._parts = parts
        self._entering_heads = product(parts.queries_keys_values)
        self._mixed = product([parts.mixed])
        self._entering = product(parts.entering)
        self._leaving = product([parts.leaving])
        products = (self._entering_heads, self._mixed, self._entering, self._leaving)
        self.num_bytes = sum(one.num_bytes for one in products)

    def run(self, x: Tensor, angles: Angles, layout: TreeLayout, place: int) -> None:
        """Add what this layer says to the states, (T, D) in float32, in place."""
        parts, dtype = self._parts, self._mixed.dtype
        before, behind, inner, last = parts.norms
        heads = self._entering_heads(before(x).to(dtype))  # (T, (H + 2 N) E)
        added = self._mixed(self._attend(heads, angles, layout, place))
        x.add_(added if behind is None else behind(added.float()), alpha=parts.residual_factor)
        entered = self._entering(inner(x).to(dtype))
        if parts.is_gated:
            gate, rest = entered.chunk(2, dim=-1)
            entered = parts.activation(gate).mul_(rest)
        else:
            entered = parts.activation(entered)
        added = self._leaving(entered)
        x.add_(added if last is None else last(added.float()), alpha=parts.residual_factor)

    def _attend(self, flat: Tensor, angles: Angles, layout: TreeLayout, place: int) -> Tensor:
        """Return the mixed values of all tokens, (T, H E)."""
        parts, num_tokens = self._parts, len(flat)
        num_heads, num_kv = parts.num_heads, parts.num_kv
        heads = flat.view(num_tokens, num_heads + 2 * num_kv, -1)
        turned = heads[:, : num_heads + num_kv]  # (T, H + N, E)
        if parts.head_norms is not None:
            of_queries, of_keys = parts.head_norms
            pair = turned.float().split([num_heads, num_kv], dim=1)
            turned = torch.cat((of_queries(pair[0]), of_keys(pair[1])), dim=1).to(flat.dtype)
        if parts.kind is not None:
            turned = _rotate(turned, *angles[parts.kind])
        queries = turned[:, :num_heads].unflatten(1, (num_kv, -1)).permute(1, 2, 0, 3)
        keys = turned[:, num_heads:].transpose(0, 1)  # (N, T, E)
        values = heads[:, num_heads + num_kv :].transpose(0, 1)
        prefix, record = layout.prefix, layout.record
        if record is not None:
            record.keys[place] = keys[:, : record.length].contiguous()
            record.values[place] = values[:, : record.length].contiguous()
        old_keys = None if prefix is None else prefix.keys[place]
        old_values = None if prefix is None else prefix.values[place]
        outputs = []
        for block in layout.blocks:
            own = slice(block.start, block.stop)
            found = self._attend_block(
                queries[:, :, own],
                visible(keys, keys[:, own], block, old_keys),
                visible(values, values[:, own], block, old_values),
                block,
            )
            outputs.append(found)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend_block(
        self, queries: Tensor, keys: Tensor, values: Tensor, block: BlockTensors
    ) -> Tensor:
        """Return the mixed values of a block, (Q, H E), of queries (N, G, Q, E)."""
        parts = self._parts
        num_kv, group, num_queries, width = queries.shape
        rows = queries.reshape(num_kv, group * num_queries, width)
        scores = torch.bmm(rows, keys.transpose(1, 2)).view(num_kv, group, num_queries, -1)
        bias = block.window_bias if parts.has_window else block.bias
        if parts.softcap is None:
            # One operator scales, masks and widens: in bfloat16 the softmax would be slower.
            scores = torch.add(bias, scores, alpha=parts.scaling)
        else:
            capped = torch.tanh(scores.float() * (parts.scaling / parts.softcap)) * parts.softcap
            scores = capped.add_(bias)
        weights = torch.softmax(scores, dim=-1).to(values.dtype)
        mixed = torch.bmm(weights.view(num_kv, group * num_queries, -1), values)
        mixed = mixed.view(num_kv, group, num_queries, width).permute(2, 0, 1, 3)
        return mixed.reshape(num_queries, -1)
