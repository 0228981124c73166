"""The lean pass says what the stock decoder says, and steps aside where it knows no model."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from taskfit.models.adapters import adapters_off, add_adapter, trainable_parameters
from taskfit.models.lean import (
    LeanDecoder,
    LowerStates,
    _Layer,
    apart_from_stock,
    shared_weights,
)
from taskfit.models.tree_model import TreeModel
from taskfit.settings import AdapterSettings
from taskfit.tree import TokenTree

VOCABULARY = 61
OTHERS = ("phi", "gpt_neox", "cohere")
ADAPTERS = {
    "lora": AdapterSettings(lora_rank=2),
    "rank-stabilized": AdapterSettings(lora_rank=3, rank_stabilized=True),
    "upper half": AdapterSettings(lora_rank=2, layers="half"),
    "dora": AdapterSettings(lora_rank=2, dora=True),
}


def sequences(count: int = 6, length: int = 9) -> list[np.ndarray]:
    """Sequences that branch off one another, one of them twice."""
    generator = np.random.default_rng(count)
    stem = generator.integers(3, VOCABULARY, length)
    rows = [
        np.concatenate(
            (stem[: generator.integers(1, length)], generator.integers(3, VOCABULARY, 5))
        )
        for _ in range(count - 1)
    ]
    return [*rows, rows[0]]


def adapted(architecture: str, settings: AdapterSettings | None, *, seed: int = 3) -> TreeModel:
    """A model with an adapter that changes what it says."""
    model = TreeModel(tiny.tiny_model(architecture, VOCABULARY), verify=False)
    model.model.requires_grad_(False)
    if settings is not None:
        add_adapter(model.model, settings, seed=0)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in trainable_parameters(model.model).values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.model.eval()
    return model


@torch.no_grad()
def states(model: TreeModel, rows: list[np.ndarray], *, prefix: bool = True) -> torch.Tensor:
    """Last hidden states of all nodes, behind a prefix that the same pass has read."""
    tree = TokenTree.build(rows)
    before = model.encode_prefix(np.arange(5, 12)).cropped(6) if prefix else None
    return model.hidden(tree, np.arange(len(tree)), prefix=before)


def assert_same(model: TreeModel, rows: list[np.ndarray], *, fold: bool = True) -> None:
    for prefix in (True, False):
        stock = states(model, rows, prefix=prefix)
        model.prepare_scoring(fold=fold)
        lean = states(model, rows, prefix=prefix)
        assert model.lean.refusal is None
        assert not torch.equal(lean, stock), "the stock pass ran"
        model.lean.forget()
        assert (lean - stock).norm() < 2e-6 * stock.norm()


@pytest.mark.parametrize("architecture", [a for a in tiny.ARCHITECTURES if a not in OTHERS])
def test_the_lean_pass_says_what_the_stock_decoder_says(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(architecture, None)
    assert_same(model, sequences())
    monkeypatch.setitem(
        __import__("taskfit.models.tree_model", fromlist=["x"]).BLOCK_SIZE, "cpu", 16
    )
    assert_same(model, sequences(12, 30))


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "apart"])
@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "phi3", "gpt2", "opt"])
def test_adapters_folded_in_or_beside_say_the_same(
    architecture: str, kind: str, fold: bool
) -> None:
    assert_same(adapted(architecture, ADAPTERS[kind]), sequences(), fold=fold)


@pytest.mark.parametrize("architecture", OTHERS)
def test_models_that_it_does_not_know_keep_the_stock_pass_with_the_reason(
    architecture: str,
) -> None:
    model = adapted(architecture, None)
    stock = states(model, sequences())
    model.prepare_scoring()
    assert torch.equal(states(model, sequences()), stock)
    assert model.lean.refusal is not None
    assert model.model.config.model_type in model.lean.refusal


def _other_activation(model: TreeModel) -> None:
    for layer in model.model.model.layers:
        # The lean pass reads the activation that the layer has, not that which is computed here.
        layer.mlp.forward = lambda x: x


def _quantized(model: TreeModel) -> None:
    class Other(nn.Linear):
        pass

    layer = model.model.model.layers[1].mlp
    layer.up_proj = Other(32, 64, bias=False)


def _too_large(model: TreeModel) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_other_activation, "differ from those of the stock decoder"),
        (_quantized, "layers of the kind Other"),
        (_too_large, "GB free"),
    ],
)
def test_what_it_cannot_do_is_noticed_and_left_to_the_stock_pass(
    change: Callable[[TreeModel], None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted("llama", None)
    change(model)
    if change is _too_large:
        monkeypatch.setattr("taskfit.models.lean.free_bytes", lambda: 1000)
    stock = states(model, sequences())
    model.prepare_scoring()
    assert torch.equal(states(model, sequences()), stock)
    assert reason in str(model.lean.refusal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_16_bits_states_of_some_tokens_may_be_anything_but_not_those_of_a_branch(
    dtype: torch.dtype,
) -> None:
    # With an adapter trained at a high rate, the stock decoder in bfloat16 was wrong by its whole
    # size in one token of the small tree, and the lean pass, right to a fiftieth, was refused.
    stock = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    few = dtype == torch.float32  # where every token counts
    for wrong, is_apart in ((0, False), (2, few), (3, True), (9, True)):
        states = stock.clone()
        states[:wrong] *= -1
        assert (apart_from_stock(states, stock, dtype) is not None) == is_apart
    assert apart_from_stock(torch.full_like(stock, torch.nan), stock, dtype) is not None


def test_an_adapter_that_is_off_does_not_count() -> None:
    model = adapted("llama", ADAPTERS["lora"])
    bare = states(adapted("llama", None), sequences())
    model.prepare_scoring()
    tuned = states(model, sequences())
    with adapters_off(model.model):
        torch.testing.assert_close(states(model, sequences()), bare)
    with model.lean.untuned():
        torch.testing.assert_close(states(model, sequences()), bare)
    assert (tuned - bare).abs().max() > 0.01
    torch.testing.assert_close(states(model, sequences()), tuned)


def test_training_goes_through_the_stock_pass_and_new_weights_are_read_anew() -> None:
    model = adapted("llama", ADAPTERS["lora"])
    model.prepare_scoring()
    before = states(model, sequences())
    tree = TokenTree.build(sequences())
    hidden = model.hidden(tree, np.arange(len(tree)))
    hidden[:, :9].sum().backward()
    with torch.no_grad():
        for parameter in trainable_parameters(model.model).values():
            assert parameter.grad is not None
            parameter.add_(parameter.grad, alpha=-0.1)
    model.lean.forget()
    expected = states(model, sequences())
    model.prepare_scoring()
    found = states(model, sequences())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - before).abs().max() > 1e-3


def test_runs_over_one_base_share_what_no_adapter_touches() -> None:
    model = adapted("llama", ADAPTERS["upper half"])
    bare = LeanDecoder(model.model, None)
    shared = shared_weights(model.model).num_bytes
    tuned = LeanDecoder(model.model, "default")
    beside = LeanDecoder(model.model, "default", fold=False)
    assert shared_weights(model.model).num_bytes == shared
    assert bare.num_bytes == beside.num_bytes == 0
    assert tuned.num_bytes == shared / 2  # one of two layers


def test_layers_below_an_adapter_run_once_for_who_reads_with_it_and_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = adapted("llama", ADAPTERS["upper half"])
    bare = states(adapted("llama", None), sequences())
    model.prepare_scoring()
    states(model, sequences(3))
    with adapters_off(model.model):
        states(model, sequences(3))
    ran: list[int] = []
    run = _Layer.run
    monkeypatch.setattr(_Layer, "run", lambda *given: (ran.append(given[-1]), run(*given)))
    tuned = [states(model, rows, prefix=False) for rows in (sequences(), sequences(9))]
    assert ran == [0, 1] * 2
    with adapters_off(model.model):
        found = [states(model, rows, prefix=False) for rows in (sequences(), sequences(9))]
        assert ran == [0, 1] * 2 + [1] * 2
        torch.testing.assert_close(states(model, sequences()), bare)
    model.lean.forget()
    with adapters_off(model.model):
        expected = [states(model, rows, prefix=False) for rows in (sequences(), sequences(9))]
    for own, other, apart in zip(found, expected, tuned, strict=True):
        torch.testing.assert_close(own, other)
        assert (own - apart).abs().max() > 0.01


def test_states_below_an_adapter_stay_within_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskfit.models.lean.LOWER_BYTES", 1000)
    kept = LowerStates()
    for number in range(5):
        kept.keep(bytes([number]), 1, torch.full((10, 10), float(number)))
    assert [kept.find(bytes([number])) is not None for number in range(5)] == [False] * 3 + [
        True
    ] * 2


def test_in_bfloat16_it_is_no_further_from_float32_than_the_stock_pass() -> None:
    exact = states(adapted("llama", ADAPTERS["lora"]), sequences(40)).double()
    model = adapted("llama", ADAPTERS["lora"])
    model.model.to(torch.bfloat16)
    errors = {"stock": (states(model, sequences(40)).double() - exact).norm()}
    for fold in (True, False):
        model.prepare_scoring(fold=fold)
        errors[f"fold={fold}"] = (states(model, sequences(40)).double() - exact).norm()
        assert model.lean.refusal is None
    assert errors["fold=True"] < 1.1 * errors["stock"]
    assert errors["fold=False"] < 1.1 * errors["stock"]
    assert errors["stock"] < 0.05 * exact.norm()


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no products in bfloat16"
)
@pytest.mark.parametrize("adapter", [None, "lora"])
@pytest.mark.parametrize("architecture", ["llama", "llama long", "qwen3", "gemma2", "gpt2", "opt"])
@torch.no_grad()
def test_in_bfloat16_a_text_has_the_same_bits_alone_and_in_company(
    architecture: str, adapter: str | None
) -> None:
    architecture, _, is_long = architecture.partition(" ")
    model = adapted(architecture, None if adapter is None else ADAPTERS[adapter])
    model.model.to(torch.bfloat16)
    model.prepare_scoring()
    # Branches at depths that are multiples of nothing, and some 200 tokens: two blocks.
    stem = np.random.default_rng(1).integers(3, VOCABULARY, 7)
    rows = [np.concatenate((stem, row)) for row in sequences(24, 23)] + sequences(9, 31)
    if is_long:  # more keys than are added up in one go, for a text and for a block
        stem = np.random.default_rng(2).integers(3, VOCABULARY, 530)
        rows = [np.concatenate((stem, row)) for row in rows] + sequences(60, 8)
    tree = TokenTree.build(rows)
    together = model.hidden(tree, np.arange(len(tree)))
    assert model.lean.refusal is None
    for row, path in zip(rows, tree.paths, strict=True):
        every = np.arange(len(row))
        alone = model.hidden(TokenTree.build([row]), every)
        assert torch.equal(alone, together[path])
        before = model.encode_prefix(row[:5])
        behind = model.hidden(TokenTree.build([row[5:]]), every[:-5], prefix=before)
        assert torch.equal(behind, together[path[5:]])
