"""Run the recurrent layers of hybrid models over token trees: their state forks with the tree.

Everything else in such a model is attention, which the tree masks, or works on single tokens. Only
recurrent layers and short convolutions read a row in order. Here they read the tree segment by
segment (`taskfit.tree.segments`), each from the state at the end of the one before, which they get
and leave as they do in generation: through what they think is transformers' cache. Gradients flow
through the states, so training shares as scoring does.

Legend: T tokens of a tree, B rows of a step, L their length, D hidden width, C channels and K
width of a convolution.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from taskfit.models.attention import TreeLayout
from taskfit.models.fork_layout import ForkLayout, State

# Kinds of models whose recurrent layers go on from a given state by several tokens, and whose other
# layers the tree serves; tried one by one. (Those of Mamba 1 begin anew with several tokens.)
FORKING_TYPES = {
    "bailing_hybrid",
    "bamba",
    "falcon_h1",
    "granitemoehybrid",
    "kimi_linear",
    "lfm2",
    "lfm2_moe",
    "lfm3",
    "mamba2",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5",
    "qwen3_5_text",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "qwen3_next",
}
# Recurrent layers fill rows up to chunks of so many tokens; delta rules are told another size by an
# argument, Mamba 2 has its own. For a few tokens behind a text that would be most of the work.
CHUNK_SIZE = 64


class StepCache:
    """One layer's state in one step, as recurrent layers of transformers ask a cache for it."""

    def __init__(self, before: State | None) -> None:
        """Begin from a state, or from nothing."""
        self._inputs = None if before is None else before.inputs
        self._recurrent = None if before is None else before.recurrent

    @property
    def state(self) -> State:
        """Return the state behind the step."""
        assert self._inputs is not None, "the layer handed its inputs over"
        return State(self._inputs, self._recurrent)

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """Return the inputs before, (B, C, K)."""
        return self._inputs

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """Return the recurrent state before, (B, ...)."""
        return self._recurrent

    def is_recording_past(self, layer_idx: int) -> bool:
        """Return whether states of earlier tokens are wanted."""
        return False

    def update_conv_state(
        self,
        conv_states: Tensor,
        layer_idx: int,
        state_idx: int = 0,
        *,
        conv_kernel_size: int,
    ) -> Tensor:
        """Keep the last inputs; return all that the convolution has to see, (B, C, K + L)."""
        seen = conv_states
        if self._inputs is not None:
            seen = torch.cat((self._inputs, conv_states), dim=-1)
        self._inputs = nn.functional.pad(seen, (conv_kernel_size, 0))[..., -conv_kernel_size:]
        return seen

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0
    ) -> Tensor:
        """Keep the recurrent state, (B, ...)."""
        self._recurrent = recurrent_states
        return recurrent_states


def recurrent_layers(decoder: nn.Module) -> list[nn.Module]:
    """Return a decoder's layers that keep a state: they convolve their inputs along the row."""
    return [
        module
        for module in decoder.modules()
        if any(isinstance(child, nn.Conv1d) for child in module.children())
    ]


def forks(config: PretrainedConfig) -> bool:
    """Return whether the recurrent layers of a model of this configuration can read trees."""
    return config.get_text_config().model_type in FORKING_TYPES


def fork_states(model: PreTrainedModel) -> None:
    """Let a model's recurrent layers read a tree where they are handed one.

    Elsewhere they are as before. A layer becomes one of a subclass of its class, which unlike a
    replaced `forward` follows it into copies of the model.
    """
    for layer in recurrent_layers(model.get_decoder()):
        if not isinstance(layer, _Forking):
            stock = type(layer)
            layer.__class__ = _CLASSES.setdefault(stock, _forking_class(stock))


class _Forking(nn.Module):
    """A recurrent layer that can read trees; mixed into classes of transformers."""


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _forking_class(stock: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of a class of recurrent layers whose objects read trees."""
    takes = inspect.signature(stock.forward).parameters
    cache_name = "cache_params" if "cache_params" in takes else "past_key_values"
    hands_chunks_on = stock.__name__.endswith(("GatedDeltaNet", "DeltaAttention"))

    def forward(
        self: nn.Module,
        hidden_states: Tensor,
        *args: object,
        tree_layout: TreeLayout | None = None,
        **kwargs: object,
    ) -> Tensor:
        if tree_layout is None or tree_layout.forks is None:
            output: Tensor = stock.forward(self, hidden_states, *args, **kwargs)
            return output

        def run(rows: Tensor, states: StepCache) -> Tensor:
            # With a cache no kernel takes the whole layer, and passes adapters over.
            options: dict[str, object] = {cache_name: states}
            size = _chunk_size(rows)
            if hands_chunks_on and size < CHUNK_SIZE:
                options["chunk_size"] = size
            with _short_chunks(self, size):
                read: Tensor = stock.forward(self, rows, **options)
            return read

        layer = int(self.layer_idx)  # type: ignore[arg-type]
        prefix, record = tree_layout.prefix, tree_layout.record
        before = None if prefix is None else prefix.states[layer]
        outputs, behind = _read_tree(run, hidden_states, tree_layout.forks, before)
        if record is not None:
            assert behind is not None, "the state behind the tree was asked for"
            record.states[layer] = behind
        return outputs

    return type(f"Forking{stock.__name__}", (_Forking, stock), {"forward": forward})


def _chunk_size(rows: Tensor) -> int:
    """Return how many tokens of rows, (B, L, D), a layer should fill a chunk with."""
    length = rows.shape[1]
    if rows.device.type != "cpu":
        return max(CHUNK_SIZE, length)  # kernels have their own sizes
    return max(8, 1 << (length - 1).bit_length())


@contextmanager
def _short_chunks(layer: nn.Module, size: int) -> Iterator[None]:
    """Let a layer that keeps the size of its chunks pad rows to no more than this meanwhile."""
    own = vars(layer)
    if "chunk_size" not in own:
        yield
        return
    whole = own["chunk_size"]
    own["chunk_size"] = min(whole, size)
    try:
        yield
    finally:
        own["chunk_size"] = whole


def _read_tree(
    run: Callable[[Tensor, StepCache], Tensor],
    hidden: Tensor,
    layout: ForkLayout,
    before: State | None,
) -> tuple[Tensor, State | None]:
    """Run a recurrent layer step by step.

    Args:
        run: Runs the layer over rows, (B, L, D), and leaves the states behind them.
        hidden: Its input, (1, T, D), perhaps with tokens behind that nobody reads.
        layout: The tree.
        before: The layer's state before the tree, of one row.

    Returns:
        Its output, as long as its input, and the state behind the last step where that is kept.
    """
    behind: list[State | None] = []
    outputs = []
    for step, nodes, rows in zip(layout.segments.steps, layout.nodes, layout.rows, strict=True):
        cells = hidden[0].index_select(0, nodes.flatten()).view(*nodes.shape, -1)  # (B, L, D)
        known = [before if source < 0 else behind[source] for source in step.sources]
        states = StepCache(State.of_rows([one for one in known if one is not None], rows))
        outputs.append(run(cells, states).flatten(0, 1))
        behind.append(states.state if step.keeps else None)
    read = torch.cat(outputs).index_select(0, layout.cells)  # (T, D)
    unread = hidden.shape[1] - len(read)
    return nn.functional.pad(read, (0, 0, 0, unread))[None], behind[-1]
