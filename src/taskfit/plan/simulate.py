"""What a step would allocate, found by running the real code on tensors without contents.

The model is built from its configuration on PyTorch's meta device: shapes, no numbers. Then the
same tree model, loss and optimizer as in training run on it, and every storage that they make is
counted from its birth to its death. So the account holds for any architecture, adapter and tree,
and follows the code when that changes. A GPU is simulated by meta tensors; a CPU by fake tensors
that call themselves CPU tensors, since smaller blocks and rounded trees are chosen by device.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig, PreTrainedModel

from taskfit.methods.objective import Objective
from taskfit.models.adapters import CpuDropout, enable_gradient_checkpointing, trainable_parameters
from taskfit.models.engine import causal_engine
from taskfit.models.frozen_depth import first_trained_layer
from taskfit.models.lean import shared_weights
from taskfit.models.prefix import Prefix
from taskfit.plan.model import meta_model, prepare_weights
from taskfit.settings import AdapterSettings, TrainingSettings
from taskfit.training.optim import MasterOptimizer
from taskfit.tree import IntArray, TokenTree


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages made under it that are still alive, and their peak.

    Attributes:
        live: Bytes alive now.
        peak: Most bytes alive at once since `peak` was last set.
    """

    def __init__(self, existing: Iterable[Tensor]) -> None:
        """Start at nothing; the storages of `existing` tensors are not counted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._existing = [tensor.untyped_storage() for tensor in existing]
        self._known: dict[int, Any] = {storage._cdata: storage for storage in self._existing}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operator returns
        """Run an operator and note the storages of what it returns."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()

        def dies(_: object) -> None:
            self.live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, dies)
        self.live += size
        self.peak = max(self.peak, self.live)


@torch.library.register_fake("mkldnn::_reorder_linear_weight")  # type: ignore[untyped-decorator]
def _packed_shape(weight: Tensor, batch_size: int | None = None) -> Tensor:
    return weight.new_empty(weight.shape)


class _NoNumbers(TorchFunctionMode):
    """Reads zeros out of tensors without contents, for what a loss notes beside its gradient."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        # A fake tensor's own `tolist` asks for every `item`.
        if func in (Tensor.tolist, Tensor.item, Tensor.__float__) and _is_empty(args[0]):
            return np.zeros(args[0].shape).tolist()
        # Decoders ask whether a batch is a plain one, to leave out masks.
        if func is Tensor.__bool__ and _is_empty(args[0]):
            return True
        return func(*args, **(kwargs or {}))


def _is_empty(tensor: Tensor) -> bool:
    """Return whether a tensor has no contents."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


class _AnyFormat(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets products by groups, as mixtures of experts have them, be in any format.

    Real tensors may be; the operator's rule for shapes knows bfloat16 alone.
    """

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operator returns
        """Run an operator."""
        if func is torch.ops.aten._grouped_mm.default:
            rows, weights, *others = args
            found = func(rows.bfloat16(), weights.bfloat16(), *others, **(kwargs or {}))
            return found.to(rows.dtype)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True)
class SimulatedStep:
    """What a training step allocates beyond weights, masters and moments.

    Attributes:
        num_tokens: Tokens that the largest forward pass runs.
        kept_bytes: Kept of the forward pass for the backward pass.
        backward_bytes: Most alive in forward and backward pass, gradients of weights included.
        peak_bytes: Most alive in the whole step.
    """

    num_tokens: int
    kept_bytes: int
    backward_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class SimulatedScoring:
    """What scoring allocates beyond weights.

    Attributes:
        num_tokens: Tokens that the forward pass runs, prefix not counted.
        prefix_bytes: What is kept of the static prefix, such as keys and values.
        peak_bytes: Most alive at once, prefix included.
    """

    num_tokens: int
    prefix_bytes: int
    peak_bytes: int


class SimulatedModel:
    """A model without weights that can be trained and read without results.

    Attributes:
        count: Its parameters.
        tree: What an objective is bound to.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        adapter: AdapterSettings,
        *,
        dtype: torch.dtype,
        on_cpu: bool,
        trains: bool,
    ) -> None:
        """Build the model and its adapters as a run would.

        Args:
            config: The model's configuration.
            adapter: Which weights are trained, and how the base is held.
            dtype: Of weights and arithmetic.
            on_cpu: Simulate a CPU instead of a GPU.
            trains: False for methods that only read the model.

        Raises:
            ModelError: If transformers has no causal LM for the configuration.
        """
        self._model = meta_model(config, dtype)
        self.count = prepare_weights(self._model, adapter, dtype=dtype, trains=trains)
        _replace_dropout(self._model, adapter, on_cpu=on_cpu)
        self._mode: AbstractContextManager[Any] = contextlib.nullcontext()
        if on_cpu:
            self._mode = FakeTensorMode(allow_non_fake_inputs=True)
            with self._mode:
                _move_to_fake_cpu(self._model)
        self.tree = causal_engine(self._model, verify=False)
        first = first_trained_layer(self.tree.num_layers, adapter.trained_layers) if trains else 0
        with self._without_numbers():
            self.tree.freeze_below(first)
            if trains and adapter.weights == "lora":  # others keep the stock pass
                self.tree.prepare_training()

    @property
    def ready_bytes(self) -> int:
        """Return what frozen weights take that the training pass keeps ready."""
        return shared_weights(self._model).num_bytes if self.tree.has_training_pass else 0

    @property
    def token_bytes(self) -> int:
        """Return what the states of a token between two layers take."""
        width = int(self._model.config.get_text_config().hidden_size)
        return width * int(self._model.dtype.itemsize)

    def train_step(
        self,
        pieces: Sequence[Sequence[Any]],
        objective: Objective[Any],
        settings: TrainingSettings,
        *,
        finds_states: bool,
    ) -> SimulatedStep:
        """Simulate forward and backward passes of a step, up to collected gradients.

        Args:
            pieces: Examples of each forward pass; a second one meets the gradients of the first.
            objective: The method's loss, bound to `tree`.
            settings: Of the loop.
            finds_states: Whether what enters the first trained layer was kept; otherwise the
                frozen layers run in each pass.
        """
        if finds_states:
            self._find_states()
        if settings.gradient_checkpointing:
            enable_gradient_checkpointing(self._model)
        kept = backward = 0
        before_step = self.tree.num_tokens_run
        with self._without_numbers():
            parameters = trainable_parameters(self._model)
            # Moments are counted by formula: the 8-bit optimizer has no kernels for such tensors.
            optimizer = MasterOptimizer(
                parameters, settings.model_copy(update={"optimizer": "adamw"})
            )
            self._model.train()
            existing = [*_tensors(self._model), *optimizer.state_tensors().values()]
            with Allocations(existing) as allocations:
                for piece in pieces:
                    before = allocations.live
                    loss = objective.loss_sum(piece)
                    kept = max(kept, allocations.live - before)
                    loss.backward()  # type: ignore[no-untyped-call]
                    del loss
                    backward = max(backward, allocations.peak)
                    optimizer.collect_gradients()
                peak = allocations.peak
            optimizer.clear()
        self.tree.forget_states()
        expanded = self._expanded_bytes()
        return SimulatedStep(
            num_tokens=(self.tree.num_tokens_run - before_step) // len(pieces),
            kept_bytes=kept,
            backward_bytes=backward + expanded,
            peak_bytes=max(peak, backward + expanded),
        )

    def score(self, prefix_ids: IntArray, run: Callable[[Prefix | None], None]) -> SimulatedScoring:
        """Simulate a forward pass of scoring.

        Args:
            prefix_ids: Tokens that run once, before, (P,).
            run: Runs the pass on `tree`, given the prefix.
        """
        with self._without_numbers(), torch.no_grad():
            self._model.eval()
            with Allocations(_tensors(self._model)) as allocations:
                prefix = self.tree.encode_prefix(prefix_ids) if len(prefix_ids) else None
                prefix_bytes = allocations.live
                before = self.tree.num_tokens_run
                run(prefix)
                peak = allocations.peak
        return SimulatedScoring(
            num_tokens=self.tree.num_tokens_run - before,
            prefix_bytes=prefix_bytes,
            peak_bytes=peak + self._expanded_bytes(),
        )

    def keep(self, tree: TokenTree) -> SimulatedScoring:
        """Simulate a pass over a tree of which the frozen layers' states are kept."""
        return self.score(np.empty(0, np.int64), lambda _: self.tree.keep_tree(tree))

    @contextlib.contextmanager
    def _without_numbers(self) -> Iterator[None]:
        """Let real code run on tensors without contents."""
        with self._mode, _AnyFormat(), _NoNumbers():  # type: ignore[no-untyped-call]
            yield

    def _find_states(self) -> None:
        """Let passes find kept states of any tree."""
        width, dtype = self.token_bytes // self._model.dtype.itemsize, self._model.dtype

        def find(tree: TokenTree, keys: Sequence[bytes]) -> Tensor:
            if self.tree.device.type == "cpu":
                return torch.empty(len(tree), width, dtype=dtype)
            # Beside a GPU they lie in main memory: on the card is only what they are copied into.
            return torch.empty(1, 1, dtype=dtype, device="meta").expand(len(tree), width)

        store = self.tree.keep_states(memory_bytes=0, folder=Path())
        store.find = find  # type: ignore[method-assign]

    def _expanded_bytes(self) -> int:
        """Return the room for the largest 4-bit layer, expanded for its product."""
        return self.count.largest_packed * int(self._model.dtype.itemsize)


def _tensors(model: PreTrainedModel) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


class _FusedDropout(nn.Module):
    """Dropout as a GPU does it: one kernel, which keeps a mask of one byte an element."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements in training."""
        if not self.training or not self.probability:
            return x
        return torch.native_dropout(x, self.probability, True)[0]


def _replace_dropout(model: PreTrainedModel, settings: AdapterSettings, *, on_cpu: bool) -> None:
    """Give adapters the dropout of the device, which `add_adapter` could not see."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.lora_dropout:
                module.lora_dropout[name] = (
                    CpuDropout(settings.lora_dropout, 0)
                    if on_cpu
                    else _FusedDropout(settings.lora_dropout)
                )


def _move_to_fake_cpu(model: PreTrainedModel) -> None:
    """Replace meta parameters and buffers by fake ones; `Module.to` cannot swap such tensors."""
    made: dict[int, Tensor] = {}  # tied weights stay tied
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    made[id(tensor)] = (
                        nn.Parameter(fake, requires_grad=tensor.requires_grad)
                        if isinstance(tensor, nn.Parameter)
                        else fake
                    )
                tensors[name] = made[id(tensor)]
