"""Hold a base model in 4 bits (QLoRA), and know what its weights take.

QLoRA (Dettmers et al. 2023, arXiv:2305.14314): the linear layers of the decoder are kept as NF4,
blocks of 64 weights with one scale each, and expanded to the compute dtype for every product.
Embeddings and LM head stay as they are: label words are read from the head's rows in float32.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig

from taskfit.errors import ModelError
from taskfit.models.build import build
from taskfit.models.lora_targets import READ_DIRECTLY, bypassed_layers


def require_bitsandbytes(setting: str) -> ModuleType:
    """Return the package bitsandbytes, imported only where a setting asks for it.

    Args:
        setting: The setting that needs it, for the message, such as `adapter.weights=qlora`.

    Raises:
        ModelError: If it is not installed.
    """
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ModelError(
            f"{setting} needs the package bitsandbytes, which cannot be imported ({error}). "
            "Install it with `pip install 'taskfit[qlora]'`, or leave the setting out."
        ) from error


def four_bit_config(
    config: PretrainedConfig, compute_dtype: torch.dtype, *, double_quantization: bool
) -> BitsAndBytesConfig:
    """Return what transformers needs to load a base as NF4.

    The LM head, and whatever is tied to the embeddings, stays as it is, and so do weights that the
    model reads itself.

    Args:
        config: The model's configuration.
        compute_dtype: The dtype of products; weights are expanded to it.
        double_quantization: Quantize the scales of the blocks too, to 8 bits.

    Raises:
        ModelError: If bitsandbytes is not installed.
    """
    require_bitsandbytes("adapter.weights=qlora")
    with torch.device("meta"):
        shapes = build(AutoModelForCausalLM.from_config, config)
    skipped = sorted(bypassed_layers(shapes) & READ_DIRECTLY)
    if skipped:  # names given replace the rule of transformers, which spares the head
        head = shapes.get_output_embeddings()
        skipped += [name for name, module in shapes.named_modules() if module is head]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quantization,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_storage=torch.uint8,
        llm_int8_skip_modules=skipped or None,
    )


def four_bit_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers of a model whose weights are in 4 bits, by name."""
    package = sys.modules.get("bitsandbytes")
    if package is None:  # then no module can be of its class
        return {}
    return {name: m for name, m in model.named_modules() if isinstance(m, package.nn.Linear4bit)}


def keep_differentiable(model: nn.Module) -> None:
    """Stop 4-bit layers from repacking their weights for inference on a CPU.

    Where the processor has AVX512-BF16, bitsandbytes repacks a layer's weights in place when it is
    first called without a gradient, for good. The product of repacked weights has no backward pass
    (the gradient through the base would be missing without a word), is rounded to bfloat16, and
    needs widths that are multiples of 64. Scoring comes before training, so all would be repacked.
    """
    for layer in four_bit_layers(model).values():
        layer.support_avx512bf16_for_cpu = False


def quantization_bytes(model: nn.Module) -> int:
    """Return the memory of what belongs to packed weights: scales, offsets and code tables (bytes).

    The packed weights themselves are parameters of the model and not counted here.
    """
    # By address: layers may share a code table.
    tensors: dict[int, Tensor] = {}
    for layer in four_bit_layers(model).values():
        states = [layer.weight.quant_state]
        if states[0].nested:
            states.append(states[0].state2)
            tensors[states[0].offset.data_ptr()] = states[0].offset
        for state in states:
            tensors |= {tensor.data_ptr(): tensor for tensor in (state.absmax, state.code)}
    return sum(tensor.nbytes for tensor in tensors.values())


def count_parameters(model: nn.Module) -> int:
    """Return the number of a model's parameters; of packed weights, as many as they stand for."""
    packed = [layer.weight for layer in four_bit_layers(model).values()]
    unpacked = sum(weight.quant_state.shape.numel() - weight.numel() for weight in packed)
    return sum(p.numel() for p in model.parameters()) + int(unpacked)
