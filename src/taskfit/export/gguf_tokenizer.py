"""A fast tokenizer as GGUF metadata, as llama.cpp reads it."""

import json
from dataclasses import dataclass
from typing import Any

import gguf
from transformers import PreTrainedTokenizerBase

from taskfit.errors import ModelError

Kind = gguf.TokenType
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """What GGUF says about a tokenizer.

    Attributes:
        model: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
        pre: How text is split before merges; llama.cpp's name.
        tokens: By id; places without a token are filled.
        kinds: By id.
        merges: In order of rank; None where scores serve.
        scores: By id; None where merges serve.
        add_start: Whether a start token stands before every text.
        add_space: Whether a space is put before every text.
    """

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str] | None
    scores: list[float] | None
    add_start: bool
    add_space: bool


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> GgufVocabulary:
    """Return a tokenizer's vocabulary for GGUF.

    Args:
        tokenizer: A fast tokenizer.
        num_rows: Rows of the model's embeddings; ids beyond the vocabulary are marked unused.

    Raises:
        ModelError: If it is no BPE, or splits text in a way that has no name here.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model = spec["model"]
    if model["type"] != "BPE":
        raise _unserved(f"a {model['type']} tokenizer")
    byte_level = _mentions(spec["pre_tokenizer"], "ByteLevel")
    tokens = [f"[PAD{index}]" for index in range(num_rows)]
    kinds: list[int] = [Kind.UNUSED] * num_rows
    for token, index in model["vocab"].items():
        tokens[index], kinds[index] = token, Kind.NORMAL
    for added in spec["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = Kind.CONTROL if added["special"] else Kind.USER_DEFINED
    if model["byte_fallback"]:
        for byte in range(256):
            if (index := model["vocab"].get(f"<0x{byte:02X}>")) is not None:
                kinds[index] = Kind.BYTE
    pairs = [m.split(" ") if isinstance(m, str) else list(m) for m in model["merges"]]
    unknown = tokenizer.unk_token_id
    if not byte_level and unknown is not None:
        kinds[unknown] = Kind.UNKNOWN
    start = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return GgufVocabulary(
        model="gpt2" if byte_level else "llama",
        pre=_split_name(spec["pre_tokenizer"]) if byte_level else "default",
        tokens=tokens,
        kinds=kinds,
        merges=[" ".join(pair) for pair in pairs] if byte_level else None,
        scores=None if byte_level else _scores(tokens, pairs),
        add_start=start,
        add_space=not byte_level and _adds_space(spec),
    )


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """Return scores whose order is that of the merges, as SentencePiece's BPE has them."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    last = len(merges)
    return [-float(ranks.get(token, last + index)) for index, token in enumerate(tokens)]


def _split_name(pre_tokenizer: dict[str, Any]) -> str:
    """Return llama.cpp's name of a way to split text, found by what it does."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    described = tuple(_step(step) for step in steps)
    names = {
        ("bytes by words",): "gpt-2",
        ("digits", "bytes by words"): "smollm",
        (LLAMA_3_SPLIT, "bytes"): "llama-bpe",
        (QWEN_2_SPLIT, "bytes"): "qwen2",
    }
    if described not in names:
        raise _unserved(
            "a tokenizer that splits text in another way than GPT-2, SmolLM, Llama 3 and Qwen 2"
        )
    return names[described]


def _step(step: dict[str, Any]) -> str:
    kind = step["type"]
    if kind == "ByteLevel":
        if step["add_prefix_space"]:
            return "bytes with a space in front"
        return "bytes by words" if step["use_regex"] else "bytes"
    if kind == "Digits" and step["individual_digits"]:
        return "digits"
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return str(step["pattern"].get("Regex"))
    return str(kind)


def _mentions(part: dict[str, Any] | None, kind: str) -> bool:
    return part is not None and f'"{kind}"' in json.dumps(part)


def _adds_space(spec: dict[str, Any]) -> bool:
    pre = spec["pre_tokenizer"] or {}
    if pre.get("type") == "Metaspace":
        return bool(pre.get("prepend_scheme", "always") != "never")
    return _mentions(spec["normalizer"], "Prepend")


def _unserved(what: str) -> ModelError:
    return ModelError(
        f"--gguf without llama.cpp does not know {what}. Put llama.cpp's convert_hf_to_gguf.py on "
        "PATH, or its folder into the environment variable LLAMA_CPP; or use --merge."
    )
