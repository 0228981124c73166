"""Decoder layers that are compiled once for all of a kind.

The compiler looks at every number and every object that a layer reads. So a compiled layer gets
tensors alone: its own keys and values of a prefix, chosen before, and the blocks of a tree as one,
whatever their number. What is left are few kinds of passes, each compiled once: in training and
without gradients, with a prefix and without, of one block and of several.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.fx.experimental._config
from torch import Tensor, nn

from taskfit.models.attention import LayerLayout, TreeLayout
from taskfit.models.compile_cache import use_compile_cache

# Kinds of passes (above), of layers with a window and without.
MOST_KINDS = 32


def compile_layers(layers: Iterable[nn.Module], *, first: int) -> None:
    """Compile layers in place; passes that record keys and values run as before.

    Args:
        layers: All layers of a decoder.
        first: The first to compile.
    """
    use_compile_cache()
    # What earlier trainings of this process compiled counts towards the same limit.
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = MOST_KINDS
    # Two lengths that are equal the first time would be held to be the same ever after.
    torch.fx.experimental._config.use_duck_shape = False
    for place, layer in enumerate(layers):
        if place >= first:
            layer._compiled_call_impl = _CompiledLayer(layer, place)


class _CompiledLayer:
    """Calls a compiled layer; stands where `nn.Module.compile` puts the compiled function."""

    def __init__(self, layer: nn.Module, place: int) -> None:
        self._layer = layer
        self._place = place
        # Hooks with it, as `nn.Module.compile` does.
        self._plain: Callable[..., object] = layer._call_impl
        self._compiled = torch.compile(self._plain, dynamic=True)

    def __call__(
        self,
        hidden_states: Tensor,
        *args: object,
        tree_layout: TreeLayout | None = None,
        **kwargs: Any,  # noqa: ANN401 - what a decoder hands its layers
    ) -> object:
        layout = tree_layout
        # Rare passes are not worth a compilation: those that record, or let states through.
        if layout is None or layout.stacked is None or "forward" in vars(self._layer):
            return self._plain(hidden_states, *args, tree_layout=layout, **kwargs)
        if torch.is_grad_enabled() and not hidden_states.requires_grad:
            # With a gradient that nobody reads, the first layer in training is like the others.
            hidden_states = hidden_states.detach().requires_grad_()
        prefix = layout.prefix
        own = LayerLayout(
            layout.stacked,
            None if prefix is None else prefix.keys[self._place],
            None if prefix is None else prefix.values[self._place],
        )
        return self._compiled(hidden_states, *args, tree_layout=own, **kwargs)
