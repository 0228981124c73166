"""Put LoRA adapters on a model, save them in PEFT's own layout, load them again."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from taskfit.errors import CheckpointError, SettingsError, first_line
from taskfit.models.frozen_depth import decoder_layers, first_trained_layer
from taskfit.models.lora_targets import beside_text, target_modules
from taskfit.models.quantize import four_bit_layers, quantization_bytes
from taskfit.models.whole import refuse_infinite
from taskfit.settings import AdapterSettings

ADAPTER_WEIGHTS = "adapter_model.safetensors"


@torch.library.custom_op(
    "taskfit::random_bits", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def random_bits(like: Tensor, draw: int) -> Tensor:
    """Draw 16 random bits for each element of `like`, as int16 of its shape.

    One operator, so that compiled layers call it as it is and fuse only what follows. Calls on the
    same tensor are told apart by `draw`; without it the compiler would merge them into one.
    """
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64)
    # Both bounds are needed: by default the sign bit of a word is never set.
    words.random_(-(2**63), 2**63 - 1)
    return words.view(torch.int16)[: like.numel()].view(like.shape)


@random_bits.register_fake
def _random_bits_shape(like: Tensor, draw: int) -> Tensor:
    return torch.empty(like.shape, dtype=torch.int16)


class CpuDropout(nn.Module):
    """Dropout with 16 random bits an element.

    On a CPU `nn.Dropout` draws its mask one element at a time, which took a fifth of a LoRA step
    of 120 tokens; drawing 64-bit words and reading four elements from each is four times faster.
    The probability is rounded to 1/65536 and the scale follows it, so the mean stays exact.
    """

    def __init__(self, probability: float, draw: int) -> None:
        super().__init__()
        self.draw = draw
        self.threshold = round(probability * 65536)

    def forward(self, x: Tensor) -> Tensor:
        """Zero elements at random in training, and scale the rest."""
        if not self.training or not self.threshold:
            return x
        keep = random_bits(x, self.draw) >= self.threshold - 32768
        kept: Tensor = x * (keep.to(x.dtype) * (65536 / (65536 - self.threshold)))
        return kept


def add_adapter(
    model: PreTrainedModel, settings: AdapterSettings, *, seed: int
) -> PeftModel | None:
    """Make the chosen weights trainable; with LoRA, inject adapters into the model.

    Args:
        model: Changed in place.
        settings: Which weights, and the adapters' shape.
        seed: Seed of the adapters' first weights.

    Returns:
        PEFT's wrapper around the same model, or None for full fine-tuning.

    Raises:
        SettingsError: If the weights cannot be trained so in the form that they were loaded in.
    """
    _check_weights(model, settings)
    layers = decoder_layers(model)
    first = first_trained_layer(len(layers), settings.trained_layers)
    if settings.weights == "full":
        model.requires_grad_(True)
        if first:
            _freeze_all_below(model, layers, first)
        return None
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        use_rslora=settings.rank_stabilized,
        use_dora=settings.dora,
        target_modules=target_modules(model, settings.targets),
        exclude_modules=beside_text(model),
        layers_to_transform=list(range(first, len(layers))) if first else None,
        layers_pattern=_own_name(model, layers) if first else None,
        task_type="CAUSAL_LM",
        # GPT-2 keeps its weights transposed in Conv1D layers.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Adapters in the model's own dtype: the optimizer keeps float32 masters of them.
        with _peft_warnings_off():
            wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
    # Of stacked experts PEFT adapts those of all layers, whichever it was asked for.
    layers[:first].requires_grad_(False)
    _adapters_in_model_dtype(model)
    if model.device.type == "cpu" and settings.lora_dropout:
        # Numbered by the layer's last name (q_proj, k_proj, ...), so that all decoder layers look
        # the same to the compiler.
        kinds: dict[str, int] = {}
        for path, module in model.named_modules():
            if isinstance(module, LoraLayer):
                draw = kinds.setdefault(path.rsplit(".", 1)[-1], len(kinds))
                for name in module.lora_dropout:
                    module.lora_dropout[name] = CpuDropout(settings.lora_dropout, draw)
    return wrapped


def _own_name(model: PreTrainedModel, part: nn.Module) -> str:
    """Return what a part of a model is called by the module that holds it."""
    return next(str(name).rsplit(".", 1)[-1] for name, m in model.named_modules() if m is part)


def _freeze_all_below(model: PreTrainedModel, layers: nn.ModuleList, first: int) -> None:
    """Leave the layers from `first` on and the final norm trainable, and nothing else.

    Embeddings enter below the first trained layer, and the LM head is often the same weights.
    """
    model.requires_grad_(False)
    for layer in layers[first:]:
        layer.requires_grad_(True)
    inside = {id(module) for layer in layers for module in layer.modules()}
    for module in model.get_decoder().modules():
        if "Norm" in type(module).__name__ and id(module) not in inside:
            module.requires_grad_(True)


def _check_weights(model: PreTrainedModel, settings: AdapterSettings) -> None:
    in_four_bits = bool(four_bit_layers(model))
    if settings.weights == "full" and in_four_bits:
        raise SettingsError(
            "adapter.weights=full cannot train a model whose weights are in 4 bits: they have no "
            "gradient. Use adapter.weights=qlora, or load the model without quantization."
        )
    if settings.weights == "qlora" and not in_four_bits:
        raise SettingsError(
            f"adapter.weights=qlora needs a base in 4 bits, but this {type(model).__name__} is in "
            f"{str(model.dtype).removeprefix('torch.')}. Load it with "
            "`load_model(settings.model, quantization=settings.adapter)`, or use "
            "adapter.weights=lora."
        )


def _adapters_in_model_dtype(model: PreTrainedModel) -> None:
    """Cast adapters to the dtype that the model computes in.

    PEFT does so by the dtype of the weights beside them, and packed weights (uint8) have none. Its
    `prepare_model_for_kbit_training` would raise embeddings, norms and LM head to float32 as well.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.lora_A.to(model.dtype)
            module.lora_B.to(model.dtype)


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Keep only the inputs of the decoder layers in training; the rest is computed again.

    The non-reentrant kind: arguments by keyword, such as the tree, come through, and inputs need no
    gradient of their own. Dropout repeats itself, since the generator is put back. It acts in
    training mode only.

    Args:
        model: Changed in place; before or after adapters were put on it.

    Raises:
        SettingsError: If the architecture does not support it.
    """
    if not model.supports_gradient_checkpointing:
        raise SettingsError(
            f"training.gradient_checkpointing=true, but {type(model).__name__} does not support it "
            "in transformers. Leave it out, and lower training.token_budget to save memory."
        )
    with warnings.catch_warnings():
        # The new name is younger than the oldest transformers that we allow.
        warnings.filterwarnings("ignore", message="`gradient_checkpointing_enable` is deprecated")
        model.gradient_checkpointing_enable({"use_reentrant": False})


@contextlib.contextmanager
def _peft_warnings_off() -> Iterator[None]:
    """Hide what users can do nothing about.

    PEFT asks transformers by a name that is on its way out, and gives stacked experts ranks by a
    pattern that it does not find again itself.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
        yield


def trainable_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def weight_bytes(model: PreTrainedModel) -> int:
    """Return the memory that a model's weights take, as they are packed, with scales (bytes)."""
    parameters = sum(int(p.nbytes) for p in model.parameters())
    return parameters + quantization_bytes(model)


def adapter_layers(model: nn.Module) -> list[LoraLayer]:
    """Return the layers of a model that hold adapters, one or several each."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def use_adapter(layers: Sequence[LoraLayer], name: str) -> None:
    """Let a model compute with the adapter of this name alone; with none for an empty name.

    Args:
        layers: All that `adapter_layers` finds in the model.
        name: As `load_adapter` was given it.
    """
    chosen = [name] if name else []
    for layer in layers:
        # What PEFT's own methods set; these would also change what is trainable.
        if layer._active_adapter != chosen:
            layer._active_adapter = chosen


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Let a model compute as before training, where adapters alone were trained."""
    layers = adapter_layers(model)
    for layer in layers:
        # PEFT's own switch; its method of this name would also change what is trainable.
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def save_weights(
    model: PreTrainedModel,
    adapter: PeftModel | None,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> None:
    """Write the adapter in PEFT's layout, or the whole model, with its tokenizer (safetensors)."""
    if adapter is not None:
        # Embeddings are never trained; asked to decide, PEFT looks for the base on the hub.
        adapter.save_pretrained(folder, save_embedding_layers=False)
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_adapter(
    model: PreTrainedModel,
    folder: Path,
    *,
    name: str = "default",
    beside: PeftModel | None = None,
) -> PeftModel:
    """Put a saved LoRA adapter on a model for prediction.

    Args:
        model: The model.
        folder: Of the adapter.
        name: What the adapter is called; no other on the model may be called so.
        beside: What an earlier call returned for the same model: its adapters stay.

    Raises:
        CheckpointError: If the folder holds no adapter that fits the model.
    """
    _check_adapter_files(folder)
    try:
        with _peft_warnings_off():
            # Of keys that are missing it only warns; they are checked below.
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            if beside is None:
                wrapped = PeftModel.from_pretrained(
                    model, folder, adapter_name=name, autocast_adapter_dtype=False
                )
            else:
                wrapped = beside
                beside.load_adapter(
                    str(folder),
                    name,
                    torch_device=str(model.device),
                    autocast_adapter_dtype=False,
                )
    except RuntimeError as error:
        raise CheckpointError(
            f"The adapter in {folder} does not fit {type(model).__name__}: {error}"
        ) from error
    _check_adapter(wrapped, folder / ADAPTER_WEIGHTS, name=name)
    _adapters_in_model_dtype(model)
    return wrapped


def fill_adapter(adapter: PeftModel, folder: Path) -> None:
    """Give an adapter in training the weights of a saved one of the same shape.

    Raises:
        CheckpointError: If the folder holds no adapter of this shape.
        NotFiniteError: If some of its weights are not finite.
    """
    _check_adapter_files(folder)
    try:
        set_peft_model_state_dict(adapter, load_file(folder / ADAPTER_WEIGHTS))
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"The adapter in {folder} does not fit the one to train: {first_line(error)}"
        ) from error
    _check_adapter(adapter, folder / ADAPTER_WEIGHTS)


def _check_adapter_files(folder: Path) -> None:
    """Raise `CheckpointError` unless a folder holds an adapter."""
    missing = [n for n in ("adapter_config.json", ADAPTER_WEIGHTS) if not (folder / n).is_file()]
    if missing:
        raise CheckpointError(f"{folder} holds no adapter: {' and '.join(missing)} missing.")


def _check_adapter(adapter: PeftModel, path: Path, *, name: str = "default") -> None:
    """Raise unless a file holds all weights of an adapter, no others, and all are finite.

    PEFT starts what is missing anew, and leaves out what it does not know.

    Raises:
        CheckpointError: Naming the weights.
        NotFiniteError: Naming the weights.
    """
    own = get_peft_model_state_dict(adapter, adapter_name=name, save_embedding_layers=False)
    with safe_open(path, "pt") as file:
        stored = set(file.keys())
    problems = [
        f"{len(found):,} {what}, such as {min(found)}"
        for found, what in (
            (own.keys() - stored, "of its weights missing"),
            (stored - own.keys(), "that no layer of this base takes"),
        )
        if found
    ]
    if problems:
        raise CheckpointError(
            f"{path} does not fit {type(adapter.get_base_model()).__name__} as it is loaded: "
            f"{'; '.join(problems)}. The file was changed, or the base is not the one that the "
            "adapter was trained on."
        )
    refuse_infinite(own, str(path))
