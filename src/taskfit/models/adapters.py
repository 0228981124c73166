"""Put LoRA adapters on a model, save them in PEFT's own layout, load them again."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from taskfit.errors import CheckpointError
from taskfit.settings import AdapterSettings


class CpuDropout(nn.Module):
    """Dropout with 16 random bits an element.

    On a CPU `nn.Dropout` draws its mask one element at a time, which took a fifth of a LoRA step
    of 120 tokens; drawing 64-bit words and reading four elements from each is four times faster.
    The probability is rounded to 1/65536 and the scale follows it, so the mean stays exact.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.threshold = round(probability * 65536)

    def forward(self, x: Tensor) -> Tensor:
        """Zero elements at random in training, and scale the rest."""
        if not self.training or not self.threshold:
            return x
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64)
        # Both bounds are needed: by default the sign bit of a word is never set.
        bits = words.random_(-(2**63), 2**63 - 1).view(torch.int16)[: x.numel()]
        mask = (bits >= self.threshold - 32768).view(x.shape).to(x.dtype)
        return x * mask.mul_(65536 / (65536 - self.threshold))


def add_adapter(
    model: PreTrainedModel, settings: AdapterSettings, *, seed: int, fast_dropout: bool
) -> PeftModel | None:
    """Make the chosen weights trainable; with LoRA, inject adapters into the model.

    Args:
        model: Changed in place.
        settings: Which weights, and the adapters' shape.
        seed: Seed of the adapters' first weights.
        fast_dropout: Replace PEFT's dropout by `CpuDropout` (not inside compiled layers).

    Returns:
        PEFT's wrapper around the same model, or None for full fine-tuning.
    """
    if settings.weights == "full":
        model.requires_grad_(True)
        return None
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        # GPT-2 keeps its weights transposed in Conv1D layers.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Adapters in the model's own dtype: the optimizer keeps float32 masters of them.
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
    if fast_dropout:
        for module in model.modules():
            if isinstance(module, LoraLayer):
                for name in module.lora_dropout:
                    module.lora_dropout[name] = CpuDropout(settings.lora_dropout)
    return wrapped  # type: ignore[no-any-return]


def trainable_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_weights(
    model: PreTrainedModel,
    adapter: PeftModel | None,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> None:
    """Write the adapter in PEFT's layout, or the whole model, with its tokenizer (safetensors)."""
    if adapter is not None:
        adapter.save_pretrained(folder)
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Put a saved LoRA adapter on a model for prediction.

    Raises:
        CheckpointError: If the folder holds no adapter that fits the model.
    """
    missing = [
        name
        for name in ("adapter_config.json", "adapter_model.safetensors")
        if not (folder / name).is_file()
    ]
    if missing:
        raise CheckpointError(f"{folder} holds no adapter: {' and '.join(missing)} missing.")
    try:
        return PeftModel.from_pretrained(  # type: ignore[no-any-return]
            model, folder, autocast_adapter_dtype=False
        )
    except RuntimeError as error:
        raise CheckpointError(
            f"The adapter in {folder} does not fit {type(model).__name__}: {error}"
        ) from error
