"""A base in 4 bits is served, trained and counted rightly; checkpointing changes no gradient."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import tiny
from taskfit.errors import ModelError, SettingsError
from taskfit.models.adapters import (
    CpuDropout,
    add_adapter,
    enable_gradient_checkpointing,
    load_adapter,
    save_weights,
    trainable_parameters,
    weight_bytes,
)
from taskfit.models.frozen_depth import decoder_layers
from taskfit.models.load import LoadedModel, dtype_reason, load_model, resolve_dtype
from taskfit.models.quantize import count_parameters, four_bit_layers, require_bitsandbytes
from taskfit.models.tree_model import TreeModel
from taskfit.settings import AdapterSettings, ModelSettings
from taskfit.tree import TokenTree

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed (pip install 'taskfit[qlora]')",
)
QLORA = AdapterSettings(weights="qlora", lora_rank=4, lora_dropout=0.0)
# Untied head; transposed layers and tied head; two norms and a cap; projections of the embeddings.
ARCHITECTURES = ["llama", "gpt2", "gemma2", "opt"]
Loader = Callable[..., LoadedModel]


@pytest.fixture
def load(tmp_path: Path, byte_level_tokenizer: PreTrainedTokenizerFast) -> Loader:
    """Load a tiny model of an architecture from disk, in 4 bits unless told otherwise."""

    def load_tiny(
        architecture: str = "llama",
        settings: AdapterSettings | None = QLORA,
        dtype: str = "float32",
    ) -> LoadedModel:
        folder = tmp_path / architecture
        if not folder.is_dir():
            model = tiny.tiny_model(architecture, len(byte_level_tokenizer))
            model.save_pretrained(folder)
            byte_level_tokenizer.save_pretrained(folder)
        named = ModelSettings(name=str(folder), dtype=dtype, device="cpu")  # type: ignore[arg-type]
        return load_model(named, quantization=settings)

    return load_tiny


def random_rows() -> list[np.ndarray]:
    """Four sequences over one stem."""
    generator = np.random.default_rng(0)
    stem, *tails = (generator.integers(3, 400, n) for n in (6, 5, 3, 7, 1))
    return [np.concatenate((stem, tail)) for tail in tails]


def disturb(model: PreTrainedModel) -> None:
    """Give the adapters weights that change the output and have gradients everywhere."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def gradients(model: PreTrainedModel, scores: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    targets = torch.arange(len(scores)) + 5
    torch.nn.functional.cross_entropy(scores.float(), targets, reduction="sum").backward()
    return {n: p.grad.clone() for n, p in trainable_parameters(model).items() if p.grad is not None}


def tree_gradients(trees: TreeModel) -> dict[str, torch.Tensor]:
    tree = TokenTree.build(random_rows())
    leaves = np.array([path[-1] for path in tree.paths])
    return gradients(trees.model, trees.logits(trees.hidden(tree, leaves)))


def padded_gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    rows = random_rows()
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.from_numpy(row)
        mask[i, : len(row)] = 1
    logits = model(input_ids=ids, attention_mask=mask).logits
    return gradients(model, logits[torch.arange(len(rows)), [len(row) - 1 for row in rows]])


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert ours
    scale = max(float(g.abs().max()) for g in theirs.values())
    assert scale > 1e-3
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=2e-5 * scale, msg=name)


def dequantized(loaded: LoadedModel, plain: LoadedModel) -> LoadedModel:
    """Put what the 4-bit weights stand for into the same model without quantization."""
    import bitsandbytes

    with torch.no_grad():
        for name, layer in four_bit_layers(loaded.tree.model).items():
            weight = bitsandbytes.functional.dequantize_4bit(
                layer.weight.data, layer.weight.quant_state
            )
            target = plain.tree.model.get_submodule(name)
            is_transposed = not isinstance(target, torch.nn.Linear)
            target.weight.copy_(weight.T if is_transposed else weight)
    return plain


@needs_bitsandbytes
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gpt_neox", "phi3"])
def test_decoder_layers_are_in_4_bits_and_head_and_embeddings_are_not(
    load: Loader, architecture: str
) -> None:
    loaded = load(architecture)
    model = loaded.tree.model
    layers = four_bit_layers(model)
    assert all(layer.weight.dtype == torch.uint8 for layer in layers.values())
    assert {layer.weight.quant_type for layer in layers.values()} == {"nf4"}
    plain = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in layers
    ]
    assert len(plain) == 1
    assert model.get_submodule(plain[0]) is model.get_output_embeddings()
    assert model.get_output_embeddings().weight.dtype == torch.float32
    assert model.get_input_embeddings().weight.dtype == torch.float32


@needs_bitsandbytes
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("double_quantization", [True, False])
def test_scores_equal_plain_passes_of_the_weights_that_the_4_bits_stand_for(
    load: Loader, architecture: str, double_quantization: bool
) -> None:
    settings = QLORA.model_copy(update={"double_quantization": double_quantization})
    loaded = load(architecture, settings)
    reference = dequantized(loaded, load(architecture, None))
    rows = random_rows()
    tree = TokenTree.build(rows)
    with torch.no_grad():
        ours = loaded.tree.logits(loaded.tree.hidden(tree, np.arange(len(tree))))
        with reference.tree.plain_attention() as plain:
            for row, path in zip(rows, tree.paths, strict=True):
                theirs = plain(torch.from_numpy(row)[None]).logits[0].float()
                torch.testing.assert_close(ours[path], theirs, rtol=1e-4, atol=1e-4)


@needs_bitsandbytes
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_through_4_bits_equal_those_of_padded_plain_passes(
    load: Loader, architecture: str
) -> None:
    loaded = load(architecture)
    reference = dequantized(loaded, load(architecture, None))
    for model in (loaded.tree.model, reference.tree.model):
        weights = "qlora" if model is loaded.tree.model else "lora"
        add_adapter(model, QLORA.model_copy(update={"weights": weights}), seed=0)
        disturb(model)
        model.eval()  # GPT-2 and OPT have dropout of their own
    loaded.tree.encode_prefix(random_rows()[0])  # scoring must not change the layers
    ours = tree_gradients(loaded.tree)
    with loaded.tree.plain_attention() as plain:
        assert_same(ours, padded_gradients(plain))
    with reference.tree.plain_attention() as plain:
        assert_same(ours, padded_gradients(plain))


@needs_bitsandbytes
def test_adapters_on_4_bits_compute_in_the_models_dtype_and_start_as_on_16_bits(
    load: Loader,
) -> None:
    models = []
    for weights, quantization in (("qlora", QLORA), ("lora", None)):
        model = load("llama", quantization, "bfloat16").tree.model
        settings = AdapterSettings(weights=weights, lora_rank=4, lora_dropout=0.05, layers="all")
        add_adapter(model, settings, seed=0)
        assert sum(isinstance(module, CpuDropout) for module in model.modules()) == 14
        models.append(trainable_parameters(model))
    assert models[0].keys() == models[1].keys()
    for name, parameter in models[0].items():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, models[1][name])


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_of_a_4_bit_base_is_saved_and_loaded(
    load: Loader, tmp_path: Path, dtype: str
) -> None:
    loaded = load("llama", QLORA, dtype)
    adapter = add_adapter(loaded.tree.model, QLORA, seed=0)
    disturb(loaded.tree.model)
    save_weights(loaded.tree.model, adapter, loaded.tokenizer, tmp_path / "adapter")
    again = load("llama", QLORA, dtype)
    load_adapter(again.tree.model, tmp_path / "adapter")
    tree = TokenTree.build(random_rows())
    nodes = np.arange(len(tree))
    with torch.no_grad():
        expected, found = (
            x.tree.hidden(tree, nodes) for x in (loaded, again) if x.tree.model.eval()
        )
    assert torch.equal(found, expected)


@needs_bitsandbytes
def test_packed_weights_count_as_what_they_take_and_what_they_stand_for(load: Loader) -> None:
    plain, single, double = (
        load("llama", settings).tree.model
        for settings in (None, QLORA.model_copy(update={"double_quantization": False}), QLORA)
    )
    assert count_parameters(single) == count_parameters(double) == count_parameters(plain)
    num_packed = sum(
        layer.in_features * layer.out_features for layer in four_bit_layers(single).values()
    )
    num_layers = len(four_bit_layers(single))
    # Half a byte a weight, a float32 scale for 64 of them, and 16 code values a layer at most.
    packed = num_packed // 2 + num_packed // 64 * 4
    saved = weight_bytes(plain) - weight_bytes(single)
    assert 0 <= 4 * num_packed - packed - saved <= num_layers * 16 * 4
    # One byte for a scale, instead of four; one float32 for 256 of them, and code tables.
    scales = sum(
        layer.weight.quant_state.absmax.nbytes for layer in four_bit_layers(double).values()
    )
    assert scales == num_packed // 64


@needs_bitsandbytes
def test_weights_in_4_bits_are_not_trained_whole_and_qlora_needs_them(load: Loader) -> None:
    with pytest.raises(SettingsError, match=r"full cannot train .* 4 bits.*Use adapter\.weights"):
        add_adapter(load().tree.model, AdapterSettings(weights="full"), seed=0)
    with pytest.raises(SettingsError, match=r"needs a base in 4 bits.*LlamaForCausalLM is in floa"):
        add_adapter(load("llama", None).tree.model, QLORA, seed=0)


def test_a_missing_bitsandbytes_says_what_to_install(
    load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match=r"weights=qlora needs .*pip install 'taskfit\[qlora\]'"):
        load()
    with pytest.raises(ModelError, match="optimizer=adamw8bit needs the package bitsandbytes"):
        require_bitsandbytes("training.optimizer=adamw8bit")


def checkpointing_gradients(
    model: PreTrainedModel, dropout: float, weights: str, *, after: bool
) -> dict[str, torch.Tensor]:
    trees = TreeModel(model.requires_grad_(False))
    settings = AdapterSettings(weights=weights, lora_rank=4, lora_dropout=dropout, layers="all")
    add_adapter(model, settings, seed=0)
    disturb(model)
    model.train()
    layer = decoder_layers(model)[0]
    calls: list[int] = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    attention = next(m for n, m in layer.named_modules() if n.endswith(("attn", "attention")))
    attention.register_forward_hook(lambda *_: calls.append(2))
    if after:
        enable_gradient_checkpointing(model)
    torch.manual_seed(11)
    found = tree_gradients(trees)
    # Checkpointing must be at work: attention runs again in the backward pass.
    assert calls.count(2) == (2 if after else 1)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("weights", "dropout"), [("lora", 0.0), ("lora", 0.3), ("full", 0.0)])
def test_gradient_checkpointing_changes_no_gradient(
    architecture: str, weights: str, dropout: float
) -> None:
    without, with_it = (
        checkpointing_gradients(
            tiny.tiny_model(architecture, 480), dropout, weights, after=checkpointed
        )
        for checkpointed in (False, True)
    )
    assert_same(with_it, without)


@needs_bitsandbytes
def test_gradient_checkpointing_changes_no_gradient_through_4_bits(load: Loader) -> None:
    found = []
    for checkpointed in (False, True):
        loaded = load()
        add_adapter(loaded.tree.model, QLORA.model_copy(update={"lora_dropout": 0.3}), seed=0)
        disturb(loaded.tree.model)
        if checkpointed:
            enable_gradient_checkpointing(loaded.tree.model)
        loaded.tree.model.train()
        torch.manual_seed(11)
        found.append(tree_gradients(loaded.tree))
    assert_same(found[1], found[0])


def test_a_gpu_without_bfloat16_computes_in_float16_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda _: False)
    assert resolve_dtype("auto", cuda) == torch.float16
    assert dtype_reason("auto", cuda) == "float16 with loss scaling: Tesla T4 has no bfloat16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda _: True)
    assert resolve_dtype("auto", cuda) == torch.bfloat16
    assert dtype_reason("auto", cuda) == "bfloat16: Tesla T4 computes in it"
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert dtype_reason("auto", cpu) == "float32: this CPU has no bfloat16"
    assert dtype_reason("float16", cpu) == "float16 with loss scaling: model.dtype=float16"
