"""A decoder's training pass on a CPU, in few and large operators with a backward pass of their own.

The stock decoders with PEFT's layers inside run some 54,000 small operators a step, and the matrix
products are less than half of its time. Here a layer is two functions, attention and MLP, each with
a hand-written gradient: layers of one input are one product, so are their adapters, under one
dropout mask; frozen weights are laid out for the processor once, for the pass and for its gradient;
what is cheap is computed again instead of kept. States between layers stay in float32.

Adapters (LoRA) are what is trained. The parts of a model are those that `lean_layers.py` reads;
whatever is not known there, or has dropout of its own, keeps the stock pass.

Legend: T tokens, D hidden width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from taskfit.models.attention import TreeLayout
from taskfit.models.frozen_depth import decoder_layers
from taskfit.models.lean import check_memory, shared_weights
from taskfit.models.lean_attention import signed_angles
from taskfit.models.lean_layers import LayerParts, Norm, read_decoder
from taskfit.models.lean_weights import NotLeanError, Weights, active_adapter, adapted_layer
from taskfit.models.trained_attention import Kept, Pair, attend, attend_back, norm_back
from taskfit.models.trained_products import TrainedProduct, draw_masks

# Numbers of a model's configuration that drop something in training, whatever a family calls it.
OWN_DROPOUT = (
    "activation_dropout",
    "attention_dropout",
    "attn_pdrop",
    "dropout",
    "embd_pdrop",
    "hidden_dropout",
    "layerdrop",
    "resid_pdrop",
)


class LeanTraining:
    """A model's decoder with a LoRA adapter in training.

    The adapter's parameters are read anew at each pass; what is frozen is made ready once.

    Attributes:
        dtype: The model's number format.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Read a model and make its frozen weights ready.

        Args:
            model: With its adapter on it; nothing in it changes.

        Raises:
            NotLeanError: If the model, its adapter or its dropout is not known here, or memory does
                not suffice.
        """
        _refuse_own_dropout(model)
        self._parts = read_decoder(model)
        check_memory(model, copies=2)
        self._model = model
        self.dtype: torch.dtype = model.dtype
        self._stock_layer = decoder_layers(model.get_decoder())[0]
        self._adapted = adapted_layer(model)
        if self._adapted is None:
            raise NotLeanError("it has no adapter")
        weights = shared_weights(model)
        name = active_adapter(self._adapted)
        self._layers = [_Layer(one, name, weights) for one in self._parts.layers]

    def end(self) -> None:
        """Give back what only training needs."""
        shared_weights(self._model).drop_transposed()

    def enter(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Return what enters the first layer, (T, D) in float32."""
        with torch.no_grad():
            return self._parts.embed(ids, positions)[0].float()

    def run(
        self, x: Tensor, positions: Tensor, layout: TreeLayout, layers: slice, *, drops: bool
    ) -> Tensor:
        """Run some of the layers.

        Args:
            x: What enters the first of them, (T, D) in float32.
            positions: (1, T).
            layout: The tree.
            layers: Which.
            drops: Whether adapters drop numbers of their inputs.

        Returns:
            What leaves the last of them, (T, D) in float32.
        """
        angles = signed_angles(self._parts.angles(x[None, :1].to(self.dtype), positions))
        is_off = active_adapter(self._adapted) is None
        first = self._stock_layer
        again = isinstance(first, GradientCheckpointingLayer) and first.gradient_checkpointing
        again = again and torch.is_grad_enabled()
        for place, one in list(enumerate(self._layers))[layers]:
            kind = one.parts.kind
            own = None if kind is None else angles[kind]
            of = Pass(own, layout, place, drops=drops and not is_off, is_off=is_off)
            x = checkpoint(one, x, of, use_reentrant=False) if again else one(x, of)
        return x

    def leave(self, x: Tensor) -> Tensor:
        """Return the last hidden states in the model's number format, (T, D)."""
        parts = self._parts
        states = (x if parts.final is None else parts.final(x)).to(self.dtype)
        return states if parts.project_out is None else parts.project_out(states)

    @property
    def drops(self) -> bool:
        """Return whether adapters drop numbers of their inputs."""
        return bool(self._model.training)


@dataclass(frozen=True, slots=True)
class TrainingPasses:
    """The passes of a decoder over one tree, in one part or two.

    Attributes:
        decoder: The decoder.
        ids: Token ids, (1, T).
        positions: Of each token in its own sequence, (1, T).
        layout: The tree's masks in float32, prefix and record.
        first: Index of the first layer in training.
    """

    decoder: LeanTraining
    ids: Tensor
    positions: Tensor
    layout: TreeLayout
    first: int

    def whole(self) -> Tensor:
        """Return the last hidden states, (T, D)."""
        x = self.decoder.enter(self.ids, self.positions)
        return self._rest(x, slice(None))

    @torch.no_grad()
    def lower(self) -> Tensor:
        """Return what enters the first layer in training, without dropout, (T, D)."""
        x = self.decoder.enter(self.ids, self.positions)
        lower = slice(self.first)
        x = self.decoder.run(x, self.positions, self.layout, lower, drops=False)
        # What is kept of texts has the model's number format, so what is not kept has it, too.
        return x.to(self.decoder.dtype)

    def upper(self, states: Tensor) -> Tensor:
        """Return the last hidden states, (T, D), of what enters the first layer in training.

        Args:
            states: Of all tokens, or of all but those that fill the tree up, (at most T, D).
        """
        x = torch.zeros(self.ids.shape[1], states.shape[1])
        x[: len(states)] = states
        return self._rest(x, slice(self.first, None))

    def _rest(self, x: Tensor, layers: slice) -> Tensor:
        one = self.decoder
        return one.leave(one.run(x, self.positions, self.layout, layers, drops=one.drops))


@dataclass(frozen=True, slots=True)
class Pass:
    """What a layer needs to know of the pass that it is part of.

    Attributes:
        angles: Of its kind, or None.
        layout: The tree.
        place: The layer's number.
        drops: Whether adapters drop numbers of their inputs.
        is_off: Whether the model computes without its adapter.
    """

    angles: Pair | None
    layout: TreeLayout
    place: int
    drops: bool
    is_off: bool


class _Layer:
    """One layer."""

    def __init__(self, parts: LayerParts, adapter: str | None, weights: Weights) -> None:
        def product(*modules: nn.Module) -> TrainedProduct:
            return TrainedProduct(modules, adapter, weights)

        self.parts = parts
        self.attention = (product(*parts.queries_keys_values), product(parts.mixed))
        self.mlp = (product(*parts.entering), product(parts.leaving))

    def __call__(self, x: Tensor, of: Pass) -> Tensor:
        """Return the states behind the layer, (T, D) in float32."""
        masks = draw_masks(len(x), (*self.attention, *self.mlp)) if of.drops else [None] * 4
        for half, products, own in (
            (_Attention, self.attention, masks[:2]),
            (_Mlp, self.mlp, masks[2:]),
        ):
            parameters = [] if of.is_off else [p for one in products for p in one.parameters]
            x = half.apply(x, self, of, own, *parameters)  # type: ignore[no-untyped-call]
        return x


class _Attention(Function):
    """States to states with what the attention says added, (T, D) in float32."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        layer: _Layer,
        of: Pass,
        masks: Sequence[Tensor | None],
        *parameters: Tensor,
    ) -> Tensor:
        """Run the half layer."""
        parts = layer.parts
        entering, leaving = layer.attention
        count = 0 if of.is_off else len(entering.parameters)
        into = parts.norms[0](x).to(entering.dtype)
        flat, first = entering.forward(into, parameters[:count], masks[0])
        mixed, kept = attend(flat, of.angles, of.layout, parts, of.place)
        added, second = leaving.forward(mixed, parameters[count:], masks[1])
        ctx.layer, ctx.of, ctx.counts = layer, of, (len(first), len(second))
        raw = None if parts.norms[1] is None else added
        ctx.save_for_backward(x, flat, kept.raw, mixed, raw, *masks, *first, *second, *kept.weights)
        return _add(x, added, parts.norms[1], parts.residual_factor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
        """Return the gradients of states and parameters."""
        x, flat, heads, mixed, raw, mask, last_mask, *rest = ctx.saved_tensors
        first, rest = rest[: ctx.counts[0]], rest[ctx.counts[0] :]
        second, weights = rest[: ctx.counts[1]], rest[ctx.counts[1] :]
        layer, of, asks = ctx.layer, ctx.of, ctx.needs_input_grad[0]
        parts = layer.parts
        entering, leaving = layer.attention
        of_added = _added_back(grad, raw, parts.norms[1], parts.residual_factor, flat.dtype)
        goes_on = asks or bool(first)
        of_mixed, upper = leaving.backward(of_added, mixed, last_mask, second, asks_inputs=goes_on)
        if not goes_on:
            return None, None, None, None, *upper
        kept = Kept(flat, heads, tuple(weights))
        of_flat = attend_back(of_mixed, kept, of.angles, of.layout, parts, of.place)
        into = parts.norms[0](x).to(flat.dtype)
        of_into, lower = entering.backward(of_flat, into, mask, first, asks_inputs=asks)
        below = grad + norm_back(parts.norms[0], of_into, x) if asks else None
        return below, None, None, None, *lower, *upper


class _Mlp(Function):
    """States to states with what the MLP says added, (T, D) in float32."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        layer: _Layer,
        of: Pass,
        masks: Sequence[Tensor | None],
        *parameters: Tensor,
    ) -> Tensor:
        """Run the half layer."""
        parts = layer.parts
        entering, leaving = layer.mlp
        count = 0 if of.is_off else len(entering.parameters)
        into = parts.norms[2](x).to(entering.dtype)
        entered, first = entering.forward(into, parameters[:count], masks[0])
        added, second = leaving.forward(parts.activated(entered), parameters[count:], masks[1])
        ctx.layer, ctx.count = layer, len(first)
        raw = None if parts.norms[3] is None else added
        ctx.save_for_backward(x, entered, raw, *masks, *first, *second)
        return _add(x, added, parts.norms[3], parts.residual_factor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
        """Return the gradients of states and parameters."""
        x, entered, raw, mask, last_mask, *rest = ctx.saved_tensors
        first, second = rest[: ctx.count], rest[ctx.count :]
        layer, asks = ctx.layer, ctx.needs_input_grad[0]
        parts = layer.parts
        entering, leaving = layer.mlp
        of_added = _added_back(grad, raw, parts.norms[3], parts.residual_factor, entered.dtype)
        goes_on = asks or bool(first)
        activated, back = _activation_back(entered, parts)
        of_activated, upper = leaving.backward(
            of_added, activated, last_mask, second, asks_inputs=goes_on
        )
        if not goes_on:
            return None, None, None, None, *upper
        into = parts.norms[2](x).to(entered.dtype)
        of_into, lower = entering.backward(back(of_activated), into, mask, first, asks_inputs=asks)
        below = grad + norm_back(parts.norms[2], of_into, x) if asks else None
        return below, None, None, None, *lower, *upper


def _add(x: Tensor, added: Tensor, behind: Norm | None, factor: float) -> Tensor:
    return torch.add(x, added if behind is None else behind(added.float()), alpha=factor)


def _added_back(
    grad: Tensor, raw: Tensor | None, behind: Norm | None, factor: float, dtype: torch.dtype
) -> Tensor:
    """Return the gradient of what was added, in the number format of products."""
    of = grad if factor == 1 else grad * factor
    if behind is not None and raw is not None:
        of = norm_back(behind, of, raw.float())
    return of.to(dtype)


def _activation_back(
    entered: Tensor, parts: LayerParts
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return what left the activation, and what turns its gradient into that of what entered."""
    gate, rest = entered.chunk(2, dim=-1) if parts.is_gated else (entered, None)
    if rest is not None and type(parts.activation) is nn.SiLU:
        return _silu_back(entered, gate, rest)
    with torch.enable_grad():
        source = gate.detach().requires_grad_()
        value = parts.activation(source)
    plain = value.detach()

    def back(grad: Tensor) -> Tensor:
        of_value = grad if rest is None else grad * rest
        (of_gate,) = torch.autograd.grad(value, source, of_value)
        return of_gate if rest is None else torch.cat((of_gate, grad * plain), dim=-1)

    return plain if rest is None else plain * rest, back


def _silu_back(
    entered: Tensor, gate: Tensor, rest: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Do what `_activation_back` does for the activation that most models have, in fewer steps."""
    plain = nn.functional.silu(gate)

    def back(grad: Tensor) -> Tensor:
        found = torch.empty_like(entered)
        of_gate, of_rest = found.chunk(2, dim=-1)
        torch.mul(grad, plain, out=of_rest)
        torch.ops.aten.silu_backward.grad_input(grad * rest, gate, grad_input=of_gate)
        return found

    return plain * rest, back


def _refuse_own_dropout(model: PreTrainedModel) -> None:
    settings = model.config.get_text_config().to_dict()
    found = [name for name in OWN_DROPOUT if settings.get(name)]
    if found:
        raise NotLeanError(f"it has dropout of its own ({', '.join(found)})")
