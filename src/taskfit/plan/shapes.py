"""The configuration of a model to plan for: from a file, a folder, the hub, or known by name."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskfit.data import cache_folder
from taskfit.data.hub import why_not_at_hand
from taskfit.errors import ModelError, first_line
from taskfit.models.packaged import PACKAGED_MODELS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Shapes of well-known models, as their config.json states them, so that a plan needs no network:
# type, vocabulary, hidden and intermediate width, layers, query and key-value heads, longest
# sequence, whether the LM head is the embedding.
_SHAPES: dict[str, tuple[str, int, int, int, int, int, int, int, bool]] = {
    "smollm2-135m": ("llama", 49152, 576, 1536, 30, 9, 3, 8192, True),
    "smollm2-360m": ("llama", 49152, 960, 2560, 32, 15, 5, 8192, True),
    "smollm2-1.7b": ("llama", 49152, 2048, 8192, 24, 32, 32, 8192, True),
    "tinyllama-1.1b": ("llama", 32000, 2048, 5632, 22, 32, 4, 2048, False),
    "llama-2-7b": ("llama", 32000, 4096, 11008, 32, 32, 32, 4096, False),
    "llama-2-13b": ("llama", 32000, 5120, 13824, 40, 40, 40, 4096, False),
    "llama-3-8b": ("llama", 128256, 4096, 14336, 32, 32, 8, 8192, False),
    "llama-3-70b": ("llama", 128256, 8192, 28672, 80, 64, 8, 8192, False),
    "mistral-7b": ("mistral", 32768, 4096, 14336, 32, 32, 8, 32768, False),
    "qwen2.5-0.5b": ("qwen2", 151936, 896, 4864, 24, 14, 2, 32768, True),
    "qwen2.5-1.5b": ("qwen2", 151936, 1536, 8960, 28, 12, 2, 32768, True),
    "qwen2.5-7b": ("qwen2", 152064, 3584, 18944, 28, 28, 4, 32768, False),
    "qwen2.5-14b": ("qwen2", 152064, 5120, 13824, 48, 40, 8, 32768, False),
}
KNOWN_SHAPES = tuple(_SHAPES)
# Hub ids of models of these shapes, but for their endings.
_HUB_IDS = {
    "huggingfacetb/smollm2-135m": "smollm2-135m",
    "huggingfacetb/smollm2-360m": "smollm2-360m",
    "huggingfacetb/smollm2-1.7b": "smollm2-1.7b",
    "tinyllama/tinyllama-1.1b-chat-v1.0": "tinyllama-1.1b",
    "tinyllama/tinyllama-1.1b-intermediate-step-1431k-3t": "tinyllama-1.1b",
    "meta-llama/llama-2-7b": "llama-2-7b",
    "meta-llama/llama-2-13b": "llama-2-13b",
    "meta-llama/meta-llama-3-8b": "llama-3-8b",
    "meta-llama/meta-llama-3-70b": "llama-3-70b",
    "mistralai/mistral-7b-v0.3": "mistral-7b",
    "mistralai/mistral-7b-instruct-v0.3": "mistral-7b",
    "qwen/qwen2.5-0.5b": "qwen2.5-0.5b",
    "qwen/qwen2.5-1.5b": "qwen2.5-1.5b",
    "qwen/qwen2.5-7b": "qwen2.5-7b",
    "qwen/qwen2.5-14b": "qwen2.5-14b",
}
_ENDINGS = ("-hf", "-chat", "-instruct")


def known_shape(name: str) -> str | None:
    """Return which of the shapes known here a model has, by its own name or its hub id."""
    name = name.lower()
    if name in _SHAPES:
        return name
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return _HUB_IDS.get(name)


def known_config(name: str) -> "PretrainedConfig":
    """Return the configuration of a well-known shape."""
    from transformers import AutoConfig

    kind, vocabulary, hidden, intermediate, layers, heads, kv_heads, longest, tied = _SHAPES[name]
    extra: dict[str, Any] = {"sliding_window": None} if kind == "mistral" else {}
    return AutoConfig.for_model(
        kind,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=longest,
        tie_word_embeddings=tied,
        **extra,
    )


def find_config(
    name: str, *, revision: str | None = None, file: Path | None = None
) -> "tuple[PretrainedConfig, str]":
    """Return a model's configuration, and where it is from; weights are never fetched.

    Args:
        name: A known shape, a packaged model, a folder, or a hub id.
        revision: Branch, tag or commit of a hub model.
        file: A config.json that is taken instead.

    Raises:
        ModelError: If there is none.
    """
    if file is not None:
        return _from_file(file), str(file)
    folder, shape = tokenizer_folder(name), known_shape(name)
    if shape == name.lower() and folder is None:
        return known_config(shape), "known shape"
    if folder is None and refuse_out_of_reach(name) is not None and shape is not None:
        return known_config(shape), f"known shape {shape}, as the hub is out of reach"

    from transformers import AutoConfig

    source = folder or name
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        if shape is not None and folder is None:
            return known_config(shape), f"known shape {shape}, as the hub did not give it"
        raise ModelError(
            f"The configuration of {name!r} cannot be had: {first_line(error)} {_what_to_do()}"
        ) from error
    return config, source


def refuse_out_of_reach(name: str) -> str | None:
    """Return why a hub id cannot be asked for where its shape is known; None: it can, or need not.

    Nothing large is imported for it.

    Raises:
        ModelError: If there is no such folder, or the hub does not answer and the shape is not
            known.
    """
    shape = known_shape(name)
    if shape == name.lower() or tokenizer_folder(name) is not None or name in PACKAGED_MODELS:
        return None
    if name.startswith((".", "/", "~")):
        raise ModelError(f"There is no folder {name} with a config.json. {_what_to_do()}")
    reason = why_not_at_hand(name, kind="model")
    if reason is not None and shape is None:
        raise ModelError(f"The configuration of {name!r} cannot be had: {reason}. {_what_to_do()}")
    return reason


def tokenizer_folder(name: str) -> str | None:
    """Return the folder of a local model, or of a packaged one that was unpacked before."""
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return str(folder)
    packaged = cache_folder() / "models" / name
    if name in PACKAGED_MODELS and (packaged / "config.json").is_file():
        return str(packaged)
    return None


def _from_file(file: Path) -> "PretrainedConfig":
    from transformers import AutoConfig

    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        kind = values.pop("model_type")
        return AutoConfig.for_model(kind, **values)
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"--config-file {file} is not a model's config.json with a model_type that "
            f"transformers knows ({type(error).__name__}: {str(error)[:200]}). Give the file that "
            "lies beside the model's weights."
        ) from error


def _what_to_do() -> str:
    return (
        "Check the spelling and the network; or give a folder that holds config.json, "
        f"--config-file config.json, or one of the shapes known here, also by their hub ids: "
        f"{', '.join(KNOWN_SHAPES)}."
    )
