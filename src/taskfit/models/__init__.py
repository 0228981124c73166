"""Load causal language models, put adapters on them, and run them over token trees."""

from taskfit.models.adapters import (
    adapters_off,
    add_adapter,
    enable_gradient_checkpointing,
    load_adapter,
    save_weights,
    trainable_parameters,
    weight_bytes,
)
from taskfit.models.attention import KeyValueCache
from taskfit.models.frozen_depth import first_trained_layer
from taskfit.models.load import (
    LoadedModel,
    dtype_reason,
    load_model,
    resolve_device,
    resolve_dtype,
)
from taskfit.models.out_of_memory import is_out_of_memory
from taskfit.models.packaged import PACKAGED_MODELS, packaged_folder
from taskfit.models.quantize import count_parameters
from taskfit.models.tree_model import TreeModel

__all__ = [
    "PACKAGED_MODELS",
    "KeyValueCache",
    "LoadedModel",
    "TreeModel",
    "adapters_off",
    "add_adapter",
    "count_parameters",
    "dtype_reason",
    "enable_gradient_checkpointing",
    "first_trained_layer",
    "is_out_of_memory",
    "load_adapter",
    "load_model",
    "packaged_folder",
    "resolve_device",
    "resolve_dtype",
    "save_weights",
    "trainable_parameters",
    "weight_bytes",
]
