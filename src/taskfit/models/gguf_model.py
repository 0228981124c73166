"""A GGUF file of the Llama architecture as a model folder: weights, configuration, tokenizer.

The package `gguf` reads the file and expands its blocks of packed weights; the folder is what
`save_pretrained` writes. What a file says that is not known here is an error, never a guess.

Legend: H heads, D hidden width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from taskfit.errors import ModelError, first_line
from taskfit.models.build import build

ARCHITECTURE = "llama"
# Keys of the architecture, and what config.json calls them.
SHAPE = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
# Keys that must agree with these; a file need not have them.
HEAD_WIDTHS = ("attention.key_length", "attention.value_length", "rope.dimension_count")
SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
TOKENIZER = (
    *("model", "pre", "tokens", "token_type", "merges", "add_bos_token", "add_space_prefix"),
    *(f"{name}_token_id" for name in SPECIAL),
)
# Ways to split text that GPT-2's stands for. SmolLM's cuts digits off first, which only matters
# for spaces and line ends in front of one; runs of earlier versions were made without.
PRE = ("gpt-2", "smollm")
Kind = gguf.TokenType
KINDS = (Kind.NORMAL, Kind.CONTROL, Kind.USER_DEFINED, Kind.UNUSED)


def convert_gguf(path: Path, target: Path) -> None:
    """Write a GGUF file as a model folder, with weights in bfloat16.

    Args:
        path: The file.
        target: An empty folder.

    Raises:
        ModelError: If it is damaged, or says something that is not known here.
    """
    try:
        reader = gguf.GGUFReader(path)
        said = {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise _refusal(path, f"cannot be read as GGUF: {first_line(error)}") from error
    _check_known(path, said)
    config = _config(path, said, tied=all(t.name != "output.weight" for t in reader.tensors))
    with torch.device("meta"):
        model = build(AutoModelForCausalLM.from_config, config, dtype=torch.bfloat16)
    _fill(path, model, reader.tensors)
    tokenizer = _tokenizer(path, said)
    transformers_logging.disable_progress_bar()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def gguf_names(model: PreTrainedModel) -> dict[str, str]:
    """Return what GGUF calls each weight of a model of the Llama architecture.

    A head that is tied to the embeddings has no place in a file.

    Raises:
        ModelError: If a weight has no name there.
    """
    config = model.config.get_text_config()
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    names = {}
    for key in model.state_dict():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = known.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(f"The weight {key} has no place in a GGUF file of Llama.")
        names[key] = name
    return names


def heads_of(key: str, model: PreTrainedModel) -> int | None:
    """Return how many heads the rows of a weight belong to; None: GGUF keeps their order."""
    config = model.config.get_text_config()
    found = {".q_proj.": config.num_attention_heads, ".k_proj.": config.num_key_value_heads}
    return next((int(heads) for part, heads in found.items() if part in key), None)


def interleaved(weights: Tensor, num_heads: int) -> Tensor:
    """Reorder the rows of queries or keys for rotary positions as llama.cpp has them.

    Transformers rotates row i of a head with row i + half; llama.cpp neighbours 2i and 2i + 1.

    Args:
        weights: (H x width, ...).
        num_heads: H.
    """
    return _swapped(weights, (num_heads, 2, -1))


def in_halves(weights: Tensor, num_heads: int) -> Tensor:
    """Undo `interleaved`.

    Args:
        weights: (H x width, ...).
        num_heads: H.
    """
    return _swapped(weights, (num_heads, weights.shape[0] // num_heads // 2, 2))


def _swapped(weights: Tensor, rows: tuple[int, int, int]) -> Tensor:
    return weights.reshape(*rows, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def _check_known(path: Path, said: Mapping[str, Any]) -> None:
    """Raise if a file is of another kind, or says what is not read here."""
    for key, allowed in (
        ("general.architecture", (ARCHITECTURE,)),
        ("tokenizer.ggml.model", ("gpt2",)),
        ("tokenizer.ggml.pre", PRE),
    ):
        if said.get(key) not in allowed:
            known = " or ".join(map(repr, allowed))
            raise _refusal(path, f"has {key} {said.get(key)!r}; only {known} is known here")
    known_keys = {
        "tokenizer.chat_template",
        *(f"{ARCHITECTURE}.{key}" for key in (*SHAPE, *HEAD_WIDTHS, "vocab_size")),
        *(f"tokenizer.ggml.{key}" for key in TOKENIZER),
    }
    # What stands under these is about the file.
    others = {key for key in said if not key.startswith(("GGUF.", "general."))} - known_keys
    if others:
        raise _refusal(path, f"says {', '.join(sorted(others))}, which is not known here")
    needed = {f"{ARCHITECTURE}.{key}" for key in SHAPE}
    needed |= {f"tokenizer.ggml.{key}" for key in ("tokens", "token_type", "merges")}
    if missing := sorted(needed - set(said)):
        raise _refusal(path, f"does not say {', '.join(missing)}")
    if said.get("tokenizer.ggml.add_space_prefix"):
        raise _refusal(path, "puts a space before texts, which is not known here")


def _config(path: Path, said: Mapping[str, Any], *, tied: bool) -> LlamaConfig:
    shape = {name: said[f"{ARCHITECTURE}.{key}"] for key, name in SHAPE.items()}
    width = said.get(
        f"{ARCHITECTURE}.{HEAD_WIDTHS[0]}", shape["hidden_size"] // shape["num_attention_heads"]
    )
    tokens = len(said["tokenizer.ggml.tokens"])
    agree = {f"{ARCHITECTURE}.{key}": width for key in HEAD_WIDTHS}
    agree[f"{ARCHITECTURE}.vocab_size"] = tokens
    for key, value in agree.items():
        if said.get(key, value) != value:
            raise _refusal(path, f"has {key} {said[key]}, where {value} is expected")
    rope = {"rope_type": "default", "rope_theta": shape.pop("rope_theta")}
    ids = {
        f"{name}_token_id": said.get(f"tokenizer.ggml.{key}_token_id")
        for key, name in SPECIAL.items()
    }
    return LlamaConfig(
        **shape,
        **ids,
        head_dim=width,
        vocab_size=tokens,
        rope_parameters=rope,
        tie_word_embeddings=tied,
        # Runs of earlier versions know the packaged model with it.
        _model_name_or_path=said.get("general.name"),
    )


def _fill(path: Path, model: PreTrainedModel, tensors: Sequence[Any]) -> None:
    """Put a file's numbers in the place of those of a model on the meta device."""
    own, found = model.state_dict(), {tensor.name: tensor for tensor in tensors}
    names = gguf_names(model)
    if missing := sorted(set(names.values()) - set(found)):
        raise _refusal(path, f"lacks the weights {', '.join(missing[:4])}")
    if unknown := sorted(set(found) - set(names.values())):
        raise _refusal(path, f"holds the weights {', '.join(unknown[:4])}, not known here")
    state = {}
    for key, name in names.items():
        try:
            numbers = gguf.quants.dequantize(found[name].data, found[name].tensor_type)
        except NotImplementedError as error:
            kind = found[name].tensor_type.name
            raise _refusal(path, f"holds {name} as {kind}, which gguf cannot expand") from error
        weights = torch.from_numpy(np.require(numbers, requirements="W"))
        if weights.shape != own[key].shape:
            shapes = f"{list(weights.shape)}, where {list(own[key].shape)} is expected"
            raise _refusal(path, f"holds {name} in the shape {shapes}")
        if (heads := heads_of(key, model)) is not None:
            weights = in_halves(weights, heads)
        state[key] = weights.to(torch.bfloat16).contiguous()
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()


def _tokenizer(path: Path, said: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Return the byte-level BPE tokenizer that a file describes."""
    tokens = said["tokenizer.ggml.tokens"]
    kinds = said["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in said["tokenizer.ggml.merges"]]
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    for token, kind in zip(tokens, kinds, strict=True):
        if kind not in KINDS:
            raise _refusal(path, f"has the token {token!r} of kind {kind}, which is not known here")
        if kind == Kind.NORMAL and not set(token) <= alphabet:
            raise _refusal(path, f"has the token {token!r}, which is not written in bytes")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise _refusal(path, "has a token twice")
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix=""
        )
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    for kind, special in ((Kind.CONTROL, True), (Kind.USER_DEFINED, False)):
        added = [token for token, its in zip(tokens, kinds, strict=True) if its == kind]
        backend.add_tokens([AddedToken(t, normalized=False, special=special) for t in added])
    ids = {name: said.get(f"tokenizer.ggml.{key}_token_id") for key, name in SPECIAL.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=said.get("tokenizer.chat_template"),
        add_bos_token=bool(said.get("tokenizer.ggml.add_bos_token")),
        **{f"{name}_token": tokens[index] for name, index in ids.items() if index is not None},
    )


def _refusal(path: Path, found: str) -> ModelError:
    return ModelError(
        f"{path.name} {found}. taskfit reads GGUF files of its packaged models alone; elsewhere "
        "give a model folder with safetensors."
    )
