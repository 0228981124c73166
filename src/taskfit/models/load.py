"""Find and load a causal language model: hub id, local folder or packaged model."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from taskfit.errors import ModelError, SettingsError, TaskfitError
from taskfit.models.causal_model import CausalModel
from taskfit.models.engine import causal_engine
from taskfit.models.identity import model_folder, weight_files
from taskfit.models.multimodal import know_multimodal
from taskfit.models.out_of_memory import is_out_of_memory
from taskfit.models.packaged import PACKAGED_MODELS, explain_failure, locate_model, readable
from taskfit.models.quantize import four_bit_config, four_bit_layers, keep_differentiable
from taskfit.models.served import padded_note
from taskfit.models.whole import check_files_finite, load_whole
from taskfit.settings import AdapterSettings, ModelSettings
from taskfit.settings_base import check_device

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to read token trees, with its tokenizer.

    Attributes:
        tree: The model.
        tokenizer: A fast tokenizer with a pad token.
        name: As the user gave it.
        revision: Branch, tag or commit of a hub model.
        note: What people should know about its files, or None.
    """

    tree: CausalModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str | None
    note: str | None = None

    @property
    def notes(self) -> list[str]:
        """Return what people should know about its files, and about what runs it."""
        refusal = self.tree.refusal
        padded = None if refusal is None else padded_note(refusal)
        return [note for note in (self.note, padded) if note is not None]

    @property
    def computes(self) -> dict[str, str]:
        """Return on what it computes and in which numbers, such as `cpu` and `bfloat16`."""
        device, dtype = self.tree.model.device, self.tree.model.dtype
        place = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {"device": place, "dtype": str(dtype).removeprefix("torch.")}


def under_torchrun() -> bool:
    """Return whether this is one of several processes of a run, as `torchrun` starts them."""
    environment = os.environ
    return int(environment.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in environment


def resolve_device(name: str) -> torch.device:
    """Return the device for a setting; `auto` takes a GPU where there is one.

    Under `torchrun`, `auto` and `cuda` are the GPU of this process.

    Raises:
        SettingsError: If the device is not there, or several processes would share it.
    """
    check_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and under_torchrun():
        name = _own_gpu(name)
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"model.device is {name!r}, but PyTorch sees {torch.cuda.device_count()} CUDA devices. "
            "Use model.device=auto."
        )
    return device


def _own_gpu(name: str) -> str:
    """Return the name of this process's GPU among those of its machine."""
    found, index = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if name != "cuda" and processes > 1:
        raise SettingsError(
            f"model.device is {name!r}, but torchrun started {processes} processes here, and each "
            "needs a GPU of its own. Use model.device=auto."
        )
    if name == "cuda" and index >= found:
        raise SettingsError(
            f"torchrun started {processes} processes here, but PyTorch sees {found} CUDA devices. "
            f"Start with --nproc-per-node {max(1, found)}, or use model.device=cpu."
        )
    return f"cuda:{index}" if name == "cuda" else name


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the number format for a setting.

    `auto` is bfloat16 where the device computes in it; else float16 on a GPU (with loss scaling in
    training) and float32 on a CPU, where float16 is slower than float32.
    """
    if name != "auto":
        return DTYPES[name]
    if _computes_in_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def dtype_reason(name: str, device: torch.device) -> str:
    """Say for the screen which number format `resolve_dtype` takes, and why."""
    dtype = resolve_dtype(name, device)
    label = next(key for key, value in DTYPES.items() if value == dtype)
    if dtype == torch.float16:
        label += " with loss scaling"
    if name != "auto":
        return f"{label}: model.dtype={name}"
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    if dtype == torch.bfloat16:
        return f"{label}: {place} computes in it"
    return f"{label}: {place} has no bfloat16"


def _computes_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(False))
    flags = torch.cpu.get_capabilities()
    return any(flags.get(flag) for flag in ("amx_bf16", "avx512_bf16", "arm_bf16"))


def load_model(
    settings: ModelSettings, *, quantization: AdapterSettings | None = None
) -> LoadedModel:
    """Load the model and tokenizer that the settings name.

    Args:
        settings: Which model, in which number format, on which device.
        quantization: With `weights=qlora` the linear layers of the decoder are loaded as NF4, which
            computes in the model's number format. None, or other weights: nothing is quantized.

    Raises:
        ModelError: If they cannot be found or loaded, the files do not hold the whole model or
            numbers that are not finite, no engine can run them, or bitsandbytes is needed and
            missing.
    """
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    options: dict[str, Any] = {}
    folder, name, revision = locate_model(settings.name), settings.name, settings.revision
    try:
        folder, revision = readable(folder, revision)
        config = AutoConfig.from_pretrained(folder, revision=revision)
        know_multimodal(config)
        if quantization is not None and quantization.weights == "qlora":
            options["quantization_config"] = four_bit_config(
                config, dtype, double_quantization=quantization.double_quantization
            )
            # Quantized on arrival, so that the device never holds the model in 16 bits.
            options["device_map"] = {"": device}
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision)
        model, names = load_whole(
            AutoModelForCausalLM.from_pretrained,
            folder,
            name,
            revision=revision,
            dtype=dtype,
            **options,
        )
        if options:  # packing hides what is not finite
            check_files_finite(weight_files(model_folder(name, revision, located=folder)), name)
    except TaskfitError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise explain_failure(
            settings.name, folder, error, kind="model", packaged=PACKAGED_MODELS
        ) from error
    check_tokenizer(tokenizer, model, settings.name)
    if tokenizer.pad_token is None:
        # Trees are never padded; this is for those who use the saved model elsewhere.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if model.config.to_dict().get("pad_token_id") is None:  # not every family has it
        model.config.pad_token_id = tokenizer.pad_token_id
    if options and not four_bit_layers(model):
        raise ModelError(
            f"{type(model).__name__} has no linear layer that can be held in 4 bits. Use "
            "adapter.weights=lora."
        )
    keep_differentiable(model)
    model.requires_grad_(False)
    if not options:
        model.to(device)
    model.eval()
    return LoadedModel(causal_engine(model), tokenizer, name, settings.revision, names.note)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str) -> None:
    """Raise `ModelError` if a tokenizer is not a fast one, or not that of the model."""
    if not tokenizer.is_fast:
        raise ModelError(
            f"{name} has no fast tokenizer (tokenizer.json); its character offsets are needed to "
            "cut prompts from completions. Convert it with transformers' convert_slow_tokenizer."
        )
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        raise ModelError(
            f"The tokenizer of {name} has {len(tokenizer)} tokens, its model only "
            f"{model.get_input_embeddings().weight.shape[0]} embeddings: they are not a pair."
        )
