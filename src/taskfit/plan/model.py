"""A model from its configuration alone: parameters without contents, and what they will take."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from taskfit.errors import ModelError
from taskfit.models.adapters import add_adapter, trainable_parameters
from taskfit.models.build import build
from taskfit.models.frozen_depth import decoder_layers, first_trained_layer
from taskfit.models.multimodal import know_multimodal
from taskfit.settings import AdapterSettings

# NF4 as bitsandbytes stores it: blocks of 64 weights share a float32 scale; with double
# quantization scales have 8 bits, and 256 of them share a float32 scale (arXiv:2305.14314,
# section 3).
NF4_BLOCK = 64
SCALE_BLOCK = 256
NF4_CODE_BYTES = 16 * 4
SCALE_CODE_BYTES = 256 * 4
OFFSET_BYTES = 4


@dataclass(frozen=True, slots=True)
class ModelCount:
    """A model's parameters and what they take.

    Attributes:
        num_parameters: All of the base, tied ones once.
        num_body: Those of linear layers but the LM head: two operations a token each.
        num_frozen: Of these, those of layers below the trained ones.
        num_head: Those of the LM head (also if tied to the embeddings).
        num_adapter: Those of adapters.
        num_trainable: Those that are trained.
        base_bytes: Of weights in the compute dtype.
        packed_bytes: Of weights in 4 bits; 0 if there are none.
        scale_bytes: Of the scales and code tables of weights in 4 bits.
        adapter_bytes: Of adapters in the compute dtype.
        master_bytes: Of float32 masters.
        largest_packed: Weights of the largest layer in 4 bits.
        num_packed: Weights in 4 bits.
    """

    num_parameters: int
    num_body: int
    num_frozen: int
    num_head: int
    num_adapter: int
    num_trainable: int
    base_bytes: int
    packed_bytes: int
    scale_bytes: int
    adapter_bytes: int
    master_bytes: int
    largest_packed: int
    num_packed: int

    @property
    def weight_bytes(self) -> int:
        """Return what the base takes."""
        return self.base_bytes + self.packed_bytes + self.scale_bytes


def meta_model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Build a causal LM on the meta device: names, shapes and formats, no numbers.

    Raises:
        ModelError: If transformers has no causal LM for the configuration.
    """
    try:
        with torch.device("meta"):
            # A copy, since transformers writes the dtype into the configuration.
            own = copy.deepcopy(config)
            know_multimodal(own)
            model: PreTrainedModel = build(AutoModelForCausalLM.from_config, own, dtype=dtype)
    except (ValueError, ImportError, AttributeError, TypeError, KeyError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"No causal language model can be built from this configuration (model type "
            f"{config.model_type}): {first_line} Give a decoder-only model such as Llama, Mistral, "
            "Qwen, Gemma, Phi, GPT-2, GPT-NeoX or OPT."
        ) from error
    model.requires_grad_(False)
    return model


def prepare_weights(
    model: PreTrainedModel, adapter: AdapterSettings, *, dtype: torch.dtype, trains: bool
) -> ModelCount:
    """Choose the trainable weights of a meta model as a run would, and count everything.

    Args:
        model: Changed in place: adapters are put on it. A base in 4 bits keeps its shapes.
        adapter: Which weights are trained, and how the base is held.
        dtype: Of weights and arithmetic.
        trains: False for methods that only read the model.
    """
    base = {id(p): p for p in model.parameters()}
    packed = four_bit_sizes(model) if adapter.weights == "qlora" else []
    head = model.get_output_embeddings().weight.numel()
    body = _body_parameters(model)
    layers = decoder_layers(model)
    first = first_trained_layer(len(layers), adapter.trained_layers) if trains else 0
    frozen = sum(p.numel() for p in layers[:first].parameters() if p.dim() > 1)
    if trains:
        # The layers are looked at as if they were in 16 bits: NF4 needs real numbers.
        held = "full" if adapter.weights == "full" else "lora"
        with torch.device("meta"):
            add_adapter(model, adapter.model_copy(update={"weights": held}), seed=0)
    trainable = list(trainable_parameters(model).values())
    adapters = [p for p in trainable if id(p) not in base]
    return ModelCount(
        num_parameters=sum(p.numel() for p in base.values()),
        num_body=body,
        num_frozen=frozen,
        num_head=head,
        num_adapter=sum(p.numel() for p in adapters),
        num_trainable=sum(p.numel() for p in trainable),
        base_bytes=sum(p.nbytes for p in base.values()) - sum(packed) * dtype.itemsize,
        packed_bytes=sum(-(-n // 2) for n in packed),
        scale_bytes=sum(
            nf4_scale_bytes(n, double_quantization=adapter.double_quantization) for n in packed
        ),
        adapter_bytes=sum(p.nbytes for p in adapters),
        master_bytes=sum(4 * p.numel() for p in trainable if p.dtype != torch.float32),
        largest_packed=max(packed, default=0),
        num_packed=sum(packed),
    )


def four_bit_sizes(model: PreTrainedModel) -> list[int]:
    """Return the number of weights of each layer that QLoRA packs: all linear ones but the head."""
    head = model.get_output_embeddings()
    return [
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    ]


def nf4_scale_bytes(num_weights: int, *, double_quantization: bool) -> int:
    """Return what belongs to the packed weights of one layer: scales, offset, code tables."""
    num_scales = -(-num_weights // NF4_BLOCK)
    if not double_quantization:
        return num_scales * 4 + NF4_CODE_BYTES
    nested = -(-num_scales // SCALE_BLOCK) * 4 + SCALE_CODE_BYTES + OFFSET_BYTES
    return num_scales + nested + NF4_CODE_BYTES


def _body_parameters(model: PreTrainedModel) -> int:
    """Return the weights that every token is multiplied with: no embeddings, no LM head."""
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    looked_up.add(id(model.get_output_embeddings().weight))
    return sum(p.numel() for p in model.parameters() if p.dim() > 1 and id(p) not in looked_up)
