"""Linear layers of a decoder made ready for scoring: joined, adapters folded in, packed once.

Legend: T tokens, I inputs, O outputs, R rank of the adapters side by side.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

# oneDNN lays weights out for about so many rows; more or fewer work as well.
PACKED_FOR = 64


class NotLeanError(Exception):
    """Something about a model that the lean pass does not know; the message says what."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """What an adapter adds to a layer: x A^T B^T.

    Attributes:
        down: A, (R, I).
        up: B with its factor in it, (O, R).
        magnitude: With DoRA the length of each row of the sum, (O,).
    """

    down: Tensor
    up: Tensor
    magnitude: Tensor | None


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer.

    Attributes:
        weight: (O, I); a view of the model's own.
        bias: (O,) or None.
        adapted: What the adapter adds, or None.
    """

    weight: Tensor
    bias: Tensor | None
    adapted: Adapted | None

    @property
    def merged(self) -> Tensor:
        """Return the weight with the adapter in it, summed in float32, rounded once, (O, I)."""
        if self.adapted is None:
            return self.weight
        total = self.weight.float() + self.adapted.up.float() @ self.adapted.down.float()
        if self.adapted.magnitude is not None:
            lengths = self.adapted.magnitude.float() / total.norm(dim=1)
            total = total * lengths[:, None]
        return total.to(self.weight.dtype)


def read_layer(module: Any, adapter: str | None) -> Layer:  # noqa: ANN401 - PEFT's or not
    """Return what a module of transformers or PEFT computes.

    Args:
        module: A linear layer, or one with adapters on it.
        adapter: The adapter that counts; None: none.

    Raises:
        NotLeanError: If it is of another kind, such as one in 4 bits.
    """
    adapted = None
    if isinstance(module, LoraLayer):
        if adapter is not None and adapter in module.lora_A:
            adapted = _read_adapter(module, adapter)
        module = module.get_base_layer()
    if type(module) is nn.Linear:
        return Layer(module.weight.detach(), _detached(module.bias), adapted)
    if type(module) is Conv1D:
        return Layer(module.weight.detach().t(), _detached(module.bias), adapted)
    raise NotLeanError(f"it has layers of the kind {type(module).__name__}")


def _read_adapter(module: LoraLayer, name: str) -> Adapted:
    down, up = module.lora_A[name], module.lora_B[name]
    if type(down) is not nn.Linear or up.bias is not None:
        raise NotLeanError("its adapter is more than a product of two matrices")
    magnitude = None
    if module.use_dora[name]:
        magnitude = module.lora_magnitude_vector[name].weight.detach().flatten()
    scaled = up.weight.detach().float() * module.scaling[name]
    return Adapted(down.weight.detach(), scaled.to(up.weight.dtype), magnitude)


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()


def packs_weights(dtype: torch.dtype) -> bool:
    """Return whether weights of a number format are laid out for oneDNN.

    In bfloat16 that always helps. In float32 products are MKL's, which knows Intel's processors: on
    AMD's (Zen 5) it reaches 105 GFLOP/s on one core, and oneDNN 245.
    """
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 and torch._C._has_mkldnn and _is_amd()


@cache
def _is_amd() -> bool:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else platform.processor()
    return "AuthenticAMD" in text


class Weights:
    """Joined and packed weights of one base model, shared by all who read it.

    Weights that an adapter is folded into are not kept here: they are their reader's own.

    Attributes:
        num_bytes: Memory of what is kept here.
    """

    def __init__(self, *, packs: bool) -> None:
        """Keep nothing yet.

        Args:
            packs: Whether weights are laid out for oneDNN; see `packs_weights`.
        """
        self.packs = packs
        self._kept: dict[tuple[int, ...], Tensor] = {}

    @property
    def num_bytes(self) -> int:
        """Return the bytes that are kept."""
        # A packed tensor has as many numbers as it had before.
        return sum(one.numel() * one.element_size() for one in self._kept.values())

    def joined(self, layers: Sequence[Layer]) -> Tensor:
        """Return the weights of layers side by side, without adapters; made once."""
        key = _places(layers)
        if key not in self._kept:
            self._kept[key] = self.ready([layer.weight for layer in layers])
        return self._kept[key]

    def transposed(self, layers: Sequence[Layer]) -> Tensor:
        """Return what `joined` does for the gradient of the input, (I, O); made once."""
        if not self.packs:
            return self.joined(layers).t()
        key = (0, *_places(layers))
        if key not in self._kept:
            whole = torch.cat([layer.weight for layer in layers])
            self._kept[key] = self.ready([whole.t()])
        return self._kept[key]

    def drop_transposed(self) -> None:
        """Give back what only gradients need."""
        self._kept = {key: one for key, one in self._kept.items() if key[0] != 0}

    def ready(self, weights: Sequence[Tensor]) -> Tensor:
        """Return weights below each other as one matrix, packed where that helps, (O, I)."""
        whole = weights[0] if len(weights) == 1 else torch.cat(list(weights))
        if not self.packs:
            return whole.contiguous()
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(whole.contiguous(), PACKED_FOR)
        return packed


def _places(layers: Sequence[Layer]) -> tuple[int, ...]:
    """Return where the weights of layers are in memory; tensors without contents have one, too."""
    storages = [
        (one.weight.untyped_storage()._cdata, one.weight.storage_offset()) for one in layers
    ]
    return tuple(int(number) for pair in storages for number in pair)


class Product:
    """Linear layers that read the same input, as one product: (T, I) to (T, O).

    Attributes:
        dtype: Number format of input and output.
        is_adapted: Whether an adapter changes one of the layers.
        num_bytes: Memory that this product alone needs, beside the model's and what is shared.
    """

    def __init__(self, layers: Sequence[Layer], weights: Weights, *, fold: bool) -> None:
        """Join layers.

        Args:
            layers: In the order of their outputs.
            weights: Of their model.
            fold: Whether adapters go into copies of the weights; else they are applied beside
                them, but for DoRA, which rests on the sum of both.
        """
        adapted = [layer for layer in layers if layer.adapted is not None]
        sums = fold or any(layer.adapted.magnitude is not None for layer in adapted)  # type: ignore[union-attr]
        self._packed = weights.packs
        self.dtype = layers[0].weight.dtype
        self.num_bytes, self.is_adapted = 0, bool(adapted)
        if adapted and sums:
            self._weight = weights.ready([layer.merged for layer in layers])
            self.num_bytes = self._weight.numel() * self._weight.element_size()
        else:
            self._weight = weights.joined(layers)
        self._bias = joined_bias(layers)
        self._down: Tensor | None = None
        if adapted and not sums:
            down, self._up = _side_by_side(layers)
            self._down = weights.ready([down])

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the layers to rows, (T, I); return a tensor of its own, (T, O)."""
        y = self._apply(x, self._weight, self._bias)
        return y if self._down is None else y.addmm_(self._apply(x, self._down, None), self._up)

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._packed:
            return nn.functional.linear(x, weight, bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y


def joined_bias(layers: Sequence[Layer]) -> Tensor | None:
    """Return the biases of layers side by side, (O,), or None where none has one."""
    if all(layer.bias is None for layer in layers):
        return None
    parts = [
        layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias
        for layer in layers
    ]
    return torch.cat(parts)


def _side_by_side(layers: Sequence[Layer]) -> tuple[Tensor, Tensor]:
    """Return the adapters of layers as one: all A below each other, (R, I), every B at its place.

    The second is transposed, (R, O), as products take it.
    """
    down = torch.cat([layer.adapted.down for layer in layers if layer.adapted is not None])
    up = down.new_zeros(len(down), sum(layer.weight.shape[0] for layer in layers))
    rank = place = 0
    for layer in layers:
        num_outputs = layer.weight.shape[0]
        if layer.adapted is not None:
            own = layer.adapted.up.shape[1]
            up[rank : rank + own, place : place + num_outputs] = layer.adapted.up.t()
            rank += own
        place += num_outputs
    return down, up


def adapted_layer(model: nn.Module) -> LoraLayer | None:
    """Return a layer with adapters on it, or None where a model has none."""
    return next((one for one in model.modules() if isinstance(one, LoraLayer)), None)


def active_adapter(layer: LoraLayer | None) -> str | None:
    """Return the name of the adapter that counts; None: none is there, or all are off.

    Args:
        layer: One that `adapted_layer` found; which adapters are on is the same in all.

    Raises:
        NotLeanError: If several are on at once.
    """
    if layer is None or layer.disable_adapters:
        return None
    names = layer.active_adapters
    if len(names) > 1:
        raise NotLeanError("several adapters are on at once")
    return names[0] if names else None
