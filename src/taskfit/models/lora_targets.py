"""Which linear layers get adapters, and which take none.

Some models multiply by a layer's weights themselves, instead of calling it. An adapter around it is
then passed over without a word, and a weight packed into 4 bits is read as if it were numbers.
"""

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from taskfit.errors import SettingsError
from taskfit.models.frozen_depth import SENSES, decoder_layers

# The step sizes of Mamba's layers (Mamba, Falcon Mamba, Jamba, Zamba), the coefficients of Gemma 3n
# and the router of LongCat-Flash.
READ_DIRECTLY = frozenset({"dt_proj", "correction_coefs", "classifier"})
# Parts that learn nothing from a text: an indexer only chooses what is seen, and attention to an
# encoder has none to see.
WITHOUT_GRADIENT = ("indexer", "encoder_attn")
# What PEFT refuses to adapt, since fused kernels read it where they are installed.
KERNEL_MODELS = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
KERNEL_LAYERS = frozenset({"out_proj"})

# Kinds of linear layers that give out more, or another shape (Llama 4, Phi MoE, DeepSeek 4).
MORE_THAN_PRODUCTS = ("Router", "GroupedLinear")


def linear_layers(module: nn.Module) -> list[str]:
    """Return the paths of all linear layers in a module that give out their product alone."""
    return [
        path
        for path, one in module.named_modules()
        if isinstance(one, (nn.Linear, Conv1D))
        and not type(one).__name__.endswith(MORE_THAN_PRODUCTS)
    ]


def beside_text(model: PreTrainedModel) -> str | None:
    """Return a pattern of what reads no text, for PEFT to leave out, or None."""
    found = any(sense in path for path, _ in model.named_modules() for sense in SENSES)
    return f".*({'|'.join(SENSES)}).*" if found else None


def bypassed_layers(model: PreTrainedModel) -> frozenset[str]:
    """Return the last names of a model's linear layers that take no adapter, such as `dt_proj`."""
    kernel = KERNEL_LAYERS if model.config.model_type in KERNEL_MODELS else frozenset()
    names = {path.rsplit(".", 1)[-1] for path in linear_layers(model)}
    return frozenset(names & (READ_DIRECTLY | kernel)) | _taken_for_experts(model, names)


def _taken_for_experts(model: PreTrainedModel, names: set[str]) -> frozenset[str]:
    """Return the names by which PEFT adapts experts instead, which hold their weights together.

    A shared expert has linear layers of the names that experts had before they were fused. Their
    weights would be summed with the adapter in each pass, and take no dropout.
    """
    config = LoraConfig(target_modules=sorted(names))
    convert_peft_config_for_transformers(config, model, conversions=None)
    return frozenset(names - set(config.target_modules or ()))


def target_modules(model: PreTrainedModel, targets: str | list[str]) -> list[str]:
    """Return the names of the linear layers that get adapters, as PEFT takes them.

    Args:
        model: The model, in 4 bits or not.
        targets: `all` linear layers of the decoder layers, those of `attention`, those of the `mlp`
            (all others), or names such as `q_proj`.

    Raises:
        SettingsError: If a name fits no linear layer.
    """
    found: dict[str, bool] = {}  # name -> whether it belongs to attention
    bypassed = bypassed_layers(model)
    for path in linear_layers(decoder_layers(model)):
        parts = path.split(".")[1:]  # without the number of the layer
        if parts[-1] not in bypassed and not any(part in WITHOUT_GRADIENT for part in parts):
            attends = any("attn" in part or "attention" in part for part in parts)
            found[".".join(parts[-2:])] = attends
    kind = type(model).__name__
    if isinstance(targets, str):
        chosen = {"all": (True, False), "attention": (True,), "mlp": (False,)}[targets]
        names = [name for name, attends in found.items() if attends in chosen]
        if not names:
            raise SettingsError(
                f"adapter.targets={targets}, but no linear layer of this {kind} is such a one. "
                "Use adapter.targets=all."
            )
        return names
    unknown = [name for name in targets if not any(_names(name, path) for path in found)]
    if unknown:
        others = "".join(f"; {name} takes no adapter" for name in sorted(bypassed))
        raise SettingsError(
            f"adapter.targets names {', '.join(unknown)}; the linear layers of this {kind} are "
            f"{', '.join(found)}, or say all, attention or mlp{others}."
        )
    return list(targets)


def _names(name: str, path: str) -> bool:
    return path == name or path.endswith(f".{name}")
