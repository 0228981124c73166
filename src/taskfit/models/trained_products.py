"""Linear layers of one input with adapters in training: their product, its gradient, its dropout.

Legend: T tokens, I inputs, O outputs, R rank of the adapters together.
"""

from collections.abc import Sequence

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from taskfit.models.adapters import CpuDropout
from taskfit.models.lean_weights import NotLeanError, Weights, joined_bias, read_layer

Parameters = Sequence[Tensor]


class TrainedProduct:
    """Linear layers that read the same input, as one product, with what an adapter adds to them.

    What is frozen is held as it was; the adapter's matrices are handed in at each pass, A and B of
    one layer after the other.

    Attributes:
        width: Numbers of an input, I.
        dtype: Of inputs and outputs.
        parameters: The adapter's matrices, in the order in which passes take them.
        threshold: Of 65,536 inputs of the adapter so many are dropped in training.
    """

    def __init__(self, modules: Sequence[nn.Module], adapter: str | None, weights: Weights) -> None:
        """Join layers.

        Args:
            modules: In the order of their outputs.
            adapter: The one in training.
            weights: Of their model.

        Raises:
            NotLeanError: If a layer or its adapter is of another kind.
        """
        layers = [read_layer(module, None) for module in modules]
        self._weight, self._bias = weights.joined(layers), joined_bias(layers)
        self.dtype = layers[0].weight.dtype
        self._back = weights.transposed(layers)
        self._packed = weights.packs
        self.width = layers[0].weight.shape[1]
        self._num_outputs = sum(layer.weight.shape[0] for layer in layers)
        self.parameters: list[Tensor] = []
        # Of each adapter: its first and last rank, its first and last output.
        self._places: list[tuple[slice, slice]] = []
        self._factor, self.threshold = 1.0, 0
        self._read_adapters(modules, [len(layer.weight) for layer in layers], adapter)

    def _read_adapters(
        self, modules: Sequence[nn.Module], sizes: Sequence[int], adapter: str | None
    ) -> None:
        kinds = set()
        rank = output = 0
        for module, size in zip(modules, sizes, strict=True):
            if isinstance(module, LoraLayer) and adapter in module.lora_A:
                down, up = module.lora_A[adapter], module.lora_B[adapter]
                if type(down) is not nn.Linear or up.bias is not None or module.use_dora[adapter]:
                    raise NotLeanError("its adapter is more than a product of two matrices")
                kinds.add((module.scaling[adapter], _threshold(module.lora_dropout[adapter])))
                own = len(down.weight)
                self._places.append((slice(rank, rank + own), slice(output, output + size)))
                self.parameters += [down.weight, up.weight]
                rank += own
            output += size
        if len(kinds) > 1:
            raise NotLeanError("adapters of one input differ in scale or dropout")
        for scaling, self.threshold in kinds:
            self._factor = scaling

    def forward(
        self, x: Tensor, parameters: Parameters, mask: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Apply the layers.

        Args:
            x: Rows, (T, I).
            parameters: As the attribute; none: the adapter is off.
            mask: See `draw_masks`; None: nothing is dropped.

        Returns:
            (T, O), and what the gradient needs: where the adapter is on, what its first matrices
            say, (T, R), and all of them side by side, (R, I) and (R, O).
        """
        y = self._apply(x, self._weight, self._bias)
        if not parameters:
            return y, []
        down, up = self._joined(parameters)
        inner = torch.mm(masked(x, mask), down.t()).mul_(self._scale(mask))
        return y.addmm_(inner, up), [inner, down, up]

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        mask: Tensor | None,
        kept: Sequence[Tensor],
        *,
        asks_inputs: bool,
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Return the gradients of the input, (T, I), if asked for, and of the parameters.

        Args:
            grad: Of the output, (T, O).
            x: As in the pass.
            mask: The same.
            kept: What the pass returned for it.
            asks_inputs: Whether something below is in training.
        """
        below = self._apply(grad, self._back, None) if asks_inputs else None
        if not kept:
            return below, []
        inner, down, up = kept
        of_inner = torch.mm(grad, up.t()).mul_(self._scale(mask))  # (T, R)
        of_down = torch.mm(of_inner.t(), masked(x, mask))  # (R, I)
        of_up = torch.mm(inner.t(), grad)  # (R, O)
        found = []
        for ranks, outputs in self._places:
            found += [of_down[ranks], of_up[ranks, outputs].t()]
        if below is not None:
            if mask is None:
                below.addmm_(of_inner, down)
            else:
                below.add_(masked(torch.mm(of_inner, down), mask))
        return below, found

    def _scale(self, mask: Tensor | None) -> float:
        # Where some inputs are dropped, the others count for more.
        return self._factor * (1.0 if mask is None else 65536 / (65536 - self.threshold))

    def _joined(self, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """Return all A below each other, (R, I), and every B at its place, (R, O)."""
        if self._places[0][1] == slice(0, self._num_outputs):
            return parameters[0], parameters[1].t()
        down = torch.cat(list(parameters[::2]))
        up = down.new_zeros(len(down), self._num_outputs)
        for (ranks, outputs), own in zip(self._places, parameters[1::2], strict=True):
            up[ranks, outputs] = own.t()
        return down, up

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._packed:
            return nn.functional.linear(x, weight, bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y


def _threshold(dropout: nn.Module) -> int:
    if isinstance(dropout, nn.Identity):
        return 0
    if isinstance(dropout, CpuDropout):
        return dropout.threshold
    raise NotLeanError(f"its adapter has dropout of the kind {type(dropout).__name__}")


def draw_masks(num_rows: int, products: Sequence[TrainedProduct]) -> list[Tensor | None]:
    """Draw which inputs of adapters are dropped: 8 random bits an input, those of a layer at once.

    A mask is -1, of which all bits are set, where a number stays, and 0 where it is dropped; so
    dropping is one operation on bits. The scale belongs to the products.

    Args:
        num_rows: T.
        products: Of one layer.

    Returns:
        For each product that drops something a mask, int8, (T, I), else None.
    """
    sizes = [num_rows * one.width if one.threshold else 0 for one in products]
    if not any(sizes):
        return [None] * len(products)
    # Seeded by torch's generator, which the loop seeds for each step; several times as fast.
    seed = int(torch.empty((), dtype=torch.int64).random_().item())
    words = np.random.SFC64(seed).random_raw(-(-sum(sizes) // 8))
    bits = torch.from_numpy(words.view(np.int8))[: sum(sizes)]
    return [
        _keeping(own, one.threshold, seed).view(num_rows, -1) if one.threshold else None
        for own, one in zip(torch.split(bits, sizes), products, strict=True)
    ]


def _keeping(bits: Tensor, threshold: int, seed: int) -> Tensor:
    """Return 0 for a share of numbers of 8 bits that is threshold / 65,536 in the mean, else -1.

    What 256 parts cannot express is decided for all of them: a little more is dropped, or less.
    """
    parts, rest = divmod(threshold, 256)
    first = 128 - parts - (seed % 256 < rest)
    return bits.clamp(first - 1, first).sub_(first)


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return x with what a mask drops set to zero, not scaled, (T, I)."""
    if mask is None:
        return x
    bits = torch.int16 if x.itemsize == 2 else torch.int32
    kept: Tensor = (x.view(bits) & mask.to(bits)).view(x.dtype)
    return kept
