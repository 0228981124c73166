"""A model whose weights, gradients and optimizer are divided over processes: FSDP2.

PyTorch's `fully_shard` (Zhao et al. 2023, arXiv:2304.11277, in its per-parameter form) cuts every
parameter along its first dimension. Each decoder layer is gathered when it runs and dropped after;
what is not a layer (embeddings, norms, LM head) is gathered once a pass. The methods call decoder
and head of the model themselves and read the head's rows, so the root of FSDP is a module whose
forward pass is whatever is to be run: within it, everything but the layers is whole.
"""

import copy
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from taskfit.errors import SettingsError
from taskfit.models.frozen_depth import decoder_layers
from taskfit.training.distributed import is_main, num_processes, rank

T = TypeVar("T")


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is divided over processes."""
    return isinstance(tensor, DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, the same memory; all of it if it is not divided."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of_whole(whole: Tensor, *, like: Tensor) -> Tensor:
    """Return this process's part of a whole tensor that is divided as `like` is."""
    if not is_sharded(like):
        return whole
    # FSDP2's rule: equal pieces of the first dimension, the last ones shorter or empty.
    pieces = whole.chunk(num_processes(), dim=0)
    return pieces[rank()] if rank() < len(pieces) else whole[:0]


def whole_on_main(part: Tensor, *, like: Tensor) -> Tensor:
    """Put a tensor together from its parts; all processes call it, the main one gets it (CPU).

    Args:
        part: This process's part.
        like: A parameter that is divided in the same way.

    Returns:
        The whole tensor; an empty one in the other processes.
    """
    whole = _whole(part, like=like)
    return whole.cpu() if is_main() else whole.new_empty(0)


def _whole(part: Tensor, *, like: Tensor) -> Tensor:
    assert isinstance(like, DTensor)
    divided = DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
    return divided.full_tensor()


class ShardedModel(nn.Module):
    """A model in training, divided over all processes of the run.

    All processes must run the same number of forward passes through it, as each gathers weights.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Divide a model that every process holds whole.

        Args:
            model: Changed in place until `restore`; its parameters are replaced.

        Raises:
            SettingsError: If it has no list of layers.
        """
        super().__init__()
        self.model = model
        self._layers = _layers(model)
        # In a plain list, so that they are no part of this module.
        self._originals = [[_without_weights(layer, model)] for layer in self._layers]
        mesh = init_device_mesh(model.device.type, (num_processes(),))
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
        for layer in self._layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        fully_shard(self, mesh=mesh, mp_policy=policy, reshard_after_forward=False)

    def forward(self, action: Callable[[], T]) -> T:
        """Run something that reads the model; layers are gathered one at a time."""
        return action()

    def evaluate(self, action: Callable[[], T]) -> T:
        """Run something without gradients; all weights are gathered first.

        So processes need not run the same number of forward passes in it.
        """
        layers = [m for m in self._layers if isinstance(m, FSDPModule)]
        modules = [m for m in (self, *layers) if isinstance(m, FSDPModule)]

        def gathered() -> T:
            for module in modules:
                module.unshard()
            return action()

        for layer in layers:
            layer.set_reshard_after_forward(False, recurse=False)
        try:
            with torch.no_grad():
                result: T = self(gathered)
        finally:
            for module in modules:
                module.reshard()
            for layer in layers:
                layer.set_reshard_after_forward(True, recurse=False)
        return result

    def parameters_like(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Return parameters by name, those of the model as they are now that it is divided."""
        own = dict(self.model.named_parameters())
        return {name: own.get(name, p) for name, p in parameters.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Make the model what it was, plain and whole in every process, with the weights of now."""
        wholes: dict[int, nn.Parameter] = {}

        def whole(p: nn.Parameter) -> nn.Parameter:
            if id(p) not in wholes:
                wholes[id(p)] = nn.Parameter(
                    _whole(local_part(p), like=p), requires_grad=p.requires_grad
                )
            return wholes[id(p)]

        for index, ((original,), layer) in enumerate(
            zip(self._originals, list(self._layers), strict=True)
        ):
            for name, p in layer.named_parameters(remove_duplicate=False):
                _put(original, name, whole(p))
            original.train(layer.training)
            self._layers[index] = original
        for name, p in self.model.named_parameters(remove_duplicate=False):
            if is_sharded(p):
                _put(self.model, name, whole(p))


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    if not any(isinstance(m, nn.ModuleList) for m in model.modules()):
        raise SettingsError(
            f"training.sharding=full: {type(model).__name__} has no list of layers that could be "
            "gathered one at a time. Use training.sharding=none."
        )
    return decoder_layers(model)


def _without_weights(layer: nn.Module, model: PreTrainedModel) -> nn.Module:
    """Return a copy of a layer that shares the model's settings and has no memory for weights."""
    config = model.config
    memo: dict[int, object] = {id(c): c for c in (config, config.get_text_config())}
    for p in layer.parameters():
        memo[id(p)] = nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad)
    return copy.deepcopy(layer, memo)


def _put(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, parameter)
