"""A decoder's pass over a token tree without gradients, in few and large operators.

The stock decoders run some thirty small operators a layer, adapters beside the weights; for one
short text that is nearly all of the time. Here queries, keys and values are one product, so are
gate and input of the MLP, so are the adapters of both, weights are laid out for the processor once,
and masks and angles are made once for all layers. What is added up between layers stays in float32.

Legend: T tokens, D hidden width, H query heads, N key-value heads, G = H / N queries per key-value
head, E head width, P prefix tokens, Q queries of a block, K keys of a block.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import psutil
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from taskfit.models.adapters import adapters_off
from taskfit.models.lean_attention import masked_scores, normalized, rotated, signed_angles
from taskfit.models.lean_blocks import LeanBlock, LeanLayout
from taskfit.models.lean_layers import Angles, LayerParts, read_decoder
from taskfit.models.lean_weights import (
    NotLeanError,
    Product,
    Weights,
    active_adapter,
    adapted_layer,
    packs_weights,
    read_layer,
)

# Most memory of states below adapters: those of some 7,000 tokens of the 135M model.
LOWER_BYTES = 16 * 1024 * 1024
# Joined and packed weights by base model: runs over one base share them.
_SHARED: "WeakKeyDictionary[PreTrainedModel, Weights]" = WeakKeyDictionary()


def shared_weights(model: PreTrainedModel) -> Weights:
    """Return what is kept ready of a base model, the same for all who ask."""
    if model not in _SHARED:
        _SHARED[model] = Weights(packs=packs_weights(model.dtype))
    return _SHARED[model]


def forget_weights(model: PreTrainedModel) -> None:
    """Give back what is kept ready of a base model whose weights are about to change."""
    _SHARED.pop(model, None)


def apart_from_stock(states: Tensor, stock: Tensor, dtype: torch.dtype) -> str | None:
    """Return what is wrong where states of a small tree are not the stock decoder's, else None.

    Args:
        states: In float32, (T, D).
        stock: Those of the stock decoder.
        dtype: The model's number format.
    """
    errors, sizes = (states - stock).norm(dim=-1), stock.norm(dim=-1)
    if dtype == torch.float32:
        difference, allowed = float(errors.norm() / (sizes.norm() + 1e-6)), 1e-4
    else:
        # In 16 bits single states may be anything, in either pass; a wrong pass is wrong in more.
        each = errors / (sizes + 1e-6)
        difference, allowed = float(each.quantile(0.75, interpolation="lower")), 0.1
    if difference < allowed:
        return None
    return f"its states differ from those of the stock decoder by {difference:.2g}"


class LeanPass:
    """Which decoder a model scores with: a lean one for each adapter, or the stock one.

    Attributes:
        refusal: Why the stock decoder scores although the lean one was asked for, or None.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Leave all to the stock decoder."""
        self._model = model
        self._fold: bool | None = None
        self._decoders: dict[str | None, LeanDecoder | None] = {}
        self._adapted: LoraLayer | None = None
        self._lower = LowerStates()
        self._is_bare = False
        self.refusal: str | None = None

    @property
    def scores(self) -> bool:
        """Return whether lean decoders are asked for."""
        return self._fold is not None

    def use(self, *, fold: bool | None = None) -> None:
        """Score with lean decoders from now on; call it again when weights have changed.

        On a CPU only. One is made at the first pass without gradients under an adapter, and checked
        against the stock decoder.

        Args:
            fold: Whether adapters go into copies of the weights that they touch; without, runs
                over one base need hardly more memory than one. None: in float32 only, since the
                sum of a weight and its small change loses much of the change in 16 bits.
        """
        self._decoders, self.refusal, self._lower = {}, None, LowerStates()
        if fold is None:
            fold = self._model.dtype == torch.float32
        self._fold = fold if self._model.device.type == "cpu" else None
        self._adapted = adapted_layer(self._model)

    def forget(self) -> None:
        """Leave all to the stock decoder again; call it before weights change."""
        self._decoders, self.refusal, self._lower = {}, None, LowerStates()
        self._fold = None
        forget_weights(self._model)

    def stock_note(self, what: str = "texts are read by") -> str | None:
        """Return what people should know where something is slower than it mostly is on a CPU.

        Known once something has run.

        Args:
            what: What the stock decoder does.
        """
        if self.refusal is None:
            return None
        return f"{what} transformers' own layers, more slowly: {self.refusal}"

    def decoder(self, check: Callable[[], Tensor]) -> "LeanDecoder | None":
        """Return what scores now; None: the stock decoder.

        Args:
            check: Decodes a small tree with what scores.
        """
        if self._fold is None or torch.is_grad_enabled():
            return None
        try:
            adapter = None if self._is_bare else active_adapter(self._adapted)
        except NotLeanError as found:
            self.refusal = str(found)
            return None
        if adapter not in self._decoders:
            self._make(adapter, check, fold=self._fold)
        return self._decoders[adapter]

    @contextmanager
    def untuned(self) -> Iterator[None]:
        """Compute without gradients as before training, where adapters alone were trained."""
        if self._fold is None or self._decoders.get(None) is None:
            with torch.no_grad(), adapters_off(self._model):
                yield
            return
        # To switch thousands of modules takes as long as a short text.
        self._is_bare = True
        try:
            with torch.no_grad():
                yield
        finally:
            self._is_bare = False

    def _make(self, adapter: str | None, check: Callable[[], Tensor], *, fold: bool) -> None:
        self._decoders[adapter] = None
        stock = check()
        try:
            found = LeanDecoder(self._model, adapter, fold=fold, lower=self._lower)
        except NotLeanError as error:
            self.refusal = str(error)
            return
        self._decoders[adapter] = found
        if (apart := apart_from_stock(check(), stock, self._model.dtype)) is not None:
            self._decoders[adapter], self.refusal = None, apart
        self._lower.are_asked_for |= adapter is None


class LowerStates:
    """What the layers below an adapter say of trees, for who reads the same trees without it.

    A head and the probe that it is blended with read the same prompts: what lies below the first
    adapter is the same for both. Of a few trees, the last ones, in float32.

    Attributes:
        are_asked_for: Whether somebody reads without the adapter.
    """

    def __init__(self) -> None:
        """Keep nothing yet."""
        self.are_asked_for = False
        self._kept: dict[bytes, tuple[int, Tensor]] = {}
        self._num_bytes = 0

    def keep(self, key: bytes, num_layers: int, states: Tensor) -> None:
        """Keep the states behind so many layers, (T, D)."""
        if key not in self._kept:
            self._kept[key] = num_layers, states.clone()
            self._num_bytes += states.nbytes
        while self._num_bytes > LOWER_BYTES:
            _, dropped = self._kept.pop(next(iter(self._kept)))
            self._num_bytes -= dropped.nbytes

    def find(self, key: bytes) -> tuple[int, Tensor] | None:
        """Return a number of layers with the states behind them, to be changed, or None."""
        found = self._kept.get(key)
        return None if found is None else (found[0], found[1].clone())


class LeanDecoder:
    """A model's decoder with one of its adapters, or none, for scoring.

    It holds tensors as they were when it was made: make another when weights have changed.

    Attributes:
        num_bytes: Memory that it needs beside the model and what is shared.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        adapter: str | None,
        *,
        fold: bool = True,
        lower: LowerStates | None = None,
    ) -> None:
        """Read a model and make its weights ready.

        Args:
            model: The model; nothing in it changes.
            adapter: Name of the adapter that counts; None: none.
            fold: Whether the adapter goes into copies of the weights that it touches, which costs
                their memory and is fastest; else it is applied beside them.
            lower: Shared by the decoders of one model with its adapter and without.

        Raises:
            NotLeanError: If the lean pass does not know the model, or memory does not suffice.
        """
        parts = read_decoder(model)
        check_memory(model)
        weights = shared_weights(model)
        self._parts = parts
        self._dtype = model.dtype
        self._layers = [_Layer(one, adapter, weights, fold=fold) for one in parts.layers]
        self.num_bytes = sum(layer.num_bytes for layer in self._layers)
        self._lower = lower or LowerStates()
        adapted = [place for place, layer in enumerate(self._layers) if layer.is_adapted]
        self._first = adapted[0] if adapted else None

    @torch.inference_mode()
    def hidden(self, ids: Tensor, positions: Tensor, layout: LeanLayout) -> Tensor:
        """Return the last hidden states in the model's number format, (1, T, D).

        Args:
            ids: Token ids, (1, T).
            positions: Of each token in its own sequence, (1, T).
            layout: Masks in float32, prefix and record.
        """
        entering = self._parts.embed(ids, positions)
        angles = signed_angles(self._parts.angles(entering, positions))
        key = None
        if self._lower.are_asked_for and layout.record is None:
            before = b"" if layout.prefix is None else layout.prefix.ids.tobytes()
            # Depths of tokens in this order are the whole tree.
            key = b"|".join((before, ids.numpy().tobytes(), positions.numpy().tobytes()))
        found = self._lower.find(key) if key is not None and self._first is None else None
        # A copy: embeddings in float32 would be changed in place.
        start, x = found or (0, entering[0].to(torch.float32, copy=True))  # (T, D)
        for place in range(start, len(self._layers)):
            if place == self._first and place and key is not None:
                self._lower.keep(key, place, x)
            self._layers[place].run(x, angles, layout, place)
        return self._leave(x)[None]

    def _leave(self, x: Tensor) -> Tensor:
        parts = self._parts
        states = (x if parts.final is None else parts.final(x)).to(self._dtype)
        if parts.project_out is not None:
            states = parts.project_out(states)
        return states


def free_bytes() -> int:
    """Return the main memory that nobody uses (bytes)."""
    return int(psutil.virtual_memory().available)


def check_memory(model: PreTrainedModel, *, copies: int = 1) -> None:
    """Raise unless a second copy of the decoder leaves half of the free memory."""
    needed = sum(p.numel() * p.element_size() for p in model.get_decoder().parameters())
    free = free_bytes()
    if needed > free / 2:
        raise NotLeanError(
            f"its copy of the weights takes {needed / 1e9:.1f} GB, of {free / 1e9:.1f} GB free"
        )


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
        self.is_adapted = any(one.is_adapted for one in products)

    def run(self, x: Tensor, angles: Angles, layout: LeanLayout, place: int) -> None:
        """Add what this layer says to the states, (T, D) in float32, in place."""
        parts, dtype = self._parts, self._mixed.dtype
        before, behind, inner, last = parts.norms
        heads = self._entering_heads(before(x).to(dtype))  # (T, (H + 2 N) E)
        added = self._mixed(self._attend(heads, angles, layout, place))
        x.add_(added if behind is None else behind(added.float()), alpha=parts.residual_factor)
        entered = self._entering(inner(x).to(dtype))
        added = self._leaving(parts.activated(entered))
        x.add_(added if last is None else last(added.float()), alpha=parts.residual_factor)

    def _attend(self, flat: Tensor, angles: Angles, layout: LeanLayout, place: int) -> Tensor:
        """Return the mixed values of all tokens, (T, H E)."""
        parts, num_tokens = self._parts, len(flat)
        num_heads, num_kv = parts.num_heads, parts.num_kv
        heads = flat.view(num_tokens, num_heads + 2 * num_kv, -1)
        turned = normalized(heads[:, : num_heads + num_kv], parts)  # (T, H + N, E)
        if parts.kind is not None:
            turned = rotated(turned, *angles[parts.kind])
        queries = turned[:, :num_heads].view(num_tokens, num_kv, -1, heads.shape[-1])
        queries = queries.permute(1, 2, 0, 3)  # (N, G, T, E)
        keys = turned[:, num_heads:].transpose(0, 1)  # (N, T, E)
        values = heads[:, num_heads + num_kv :].transpose(0, 1)
        prefix, record = layout.prefix, layout.record
        if record is not None:
            record.keys[place] = keys[:, : record.length].contiguous()
            record.values[place] = values[:, : record.length].contiguous()
        seen_keys = layout.seen(keys, None if prefix is None else prefix.keys[place])
        seen_values = layout.seen(values, None if prefix is None else prefix.values[place])
        outputs = [
            self._attend_block(queries[:, :, block.start : block.stop], own_keys, own_values, block)
            for block, own_keys, own_values in zip(
                layout.blocks, seen_keys, seen_values, strict=True
            )
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend_block(
        self, queries: Tensor, keys: Tensor, values: Tensor, block: LeanBlock
    ) -> Tensor:
        """Return the mixed values of a block, (Q, H E), of queries (N, G, Q, E)."""
        num_kv, group, num_queries, width = queries.shape
        rows = queries.reshape(num_kv, group * num_queries, width)
        bias = block.window_bias if self._parts.has_window else block.bias
        scores = masked_scores(rows, keys, bias, self._parts)
        weights = torch.softmax(scores, dim=-1).to(values.dtype)
        weights = weights.view(num_kv, group * num_queries, -1)
        if len(block.spans) == 1:
            mixed = torch.bmm(weights, values)
        else:
            parts_mixed = [
                torch.bmm(weights[..., first:end], values[:, first:end]).float()
                for first, end in block.spans
            ]
            mixed = torch.stack(parts_mixed).sum(dim=0).to(values.dtype)
        mixed = mixed.view(num_kv, group, num_queries, width).permute(2, 0, 1, 3)
        return mixed.reshape(num_queries, -1)
