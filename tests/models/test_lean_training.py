"""The training pass for the CPU says and learns what the stock decoder does."""

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from taskfit.models.adapters import (
    adapters_off,
    add_adapter,
    enable_gradient_checkpointing,
    trainable_parameters,
)
from taskfit.models.frozen_depth import first_trained_layer
from taskfit.models.trained_products import draw_masks, masked
from taskfit.models.tree_model import TreeModel
from taskfit.settings import AdapterSettings
from taskfit.tree import TokenTree

VOCABULARY = 61
OTHERS = ("phi", "gpt_neox", "cohere")
KNOWN = [name for name in tiny.ARCHITECTURES if name not in OTHERS]


def rows(count: int = 6, length: int = 9) -> list[np.ndarray]:
    """Sequences that branch off one another, one of them twice."""
    generator = np.random.default_rng(count)
    stem = generator.integers(3, VOCABULARY, length)
    tails = [generator.integers(3, VOCABULARY, 5) for _ in range(count - 1)]
    found = [np.concatenate((stem[: generator.integers(1, length)], tail)) for tail in tails]
    return [*found, found[0]]


def adapted(
    architecture: str, *, dropout: float = 0.0, dtype: torch.dtype = torch.float32, **how: object
) -> TreeModel:
    """A model with an adapter that changes what it says, and without dropout of its own."""
    model = tiny.tiny_model(architecture, VOCABULARY).to(dtype)
    for name in ("attn_pdrop", "resid_pdrop", "embd_pdrop", "dropout"):
        if name in model.config.to_dict():
            setattr(model.config, name, 0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if "dropout" in vars(module):
            module.dropout = 0.0
    tree = TreeModel(model, verify=False)
    model.requires_grad_(False)
    settings = AdapterSettings.model_validate({"lora_rank": 2, "lora_dropout": dropout, **how})
    add_adapter(model, settings, seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    tree.freeze_below(first_trained_layer(tree.num_layers, settings.trained_layers))
    return tree


def learned(model: TreeModel, *, seed: int = 0, prefix: bool = False) -> dict[str, Tensor]:
    """States of all nodes and the gradients of a loss over them."""
    before = None
    if prefix:
        before = model.encode_prefix(np.arange(5, 12)).cropped(6)
    tree = TokenTree.build(rows())
    model.model.train()
    torch.manual_seed(seed)
    states = model.hidden(tree, np.arange(len(tree)), prefix=before)
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    parameters = trainable_parameters(model.model)
    (states.float() * weights).sum().backward()
    found = {name: p.grad.float().clone() for name, p in parameters.items() if p.grad is not None}
    assert set(parameters) - set(found) <= {"lm_head.weight"}
    for parameter in parameters.values():
        parameter.grad = None
    return {"states": states.detach().float(), **found}


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest number of its tensor."""
    return max(
        float((ours[key] - theirs[key]).abs().max() / (theirs[key].abs().max() + 1e-9))
        for key in theirs
    )


@pytest.mark.parametrize("prefix", [False, True], ids=["from the start", "behind a prefix"])
@pytest.mark.parametrize("layers", ["all", 1])
@pytest.mark.parametrize("architecture", KNOWN)
def test_states_and_gradients_are_those_of_the_stock_decoder(
    architecture: str, layers: object, *, prefix: bool
) -> None:
    model = adapted(architecture, layers=layers)
    theirs = learned(model, prefix=prefix)
    model.prepare_training()
    assert model.has_training_pass, model.lean.refusal
    assert distance(learned(model, prefix=prefix), theirs) < 2e-4
    model.end_training()
    assert not model.has_training_pass


@pytest.mark.parametrize("targets", ["attention", "mlp", ["q_proj", "down_proj"]])
def test_layers_without_an_adapter_hand_gradients_on(targets: object) -> None:
    model = adapted("gemma2", targets=targets)
    theirs = learned(model)
    model.prepare_training()
    assert distance(learned(model), theirs) < 2e-4


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3"])
def test_a_tree_cut_into_blocks_has_the_same_gradients(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(architecture)
    model.prepare_training()
    whole = learned(model, prefix=True)
    monkeypatch.setitem(tree_model_settings(), "cpu", 5)
    assert distance(learned(model, prefix=True), whole) < 2e-4


def tree_model_settings() -> dict[str, int]:
    """Queries in one block of attention, by device."""
    from taskfit.models import tree_model

    return tree_model.BLOCK_SIZE


def test_recomputed_layers_have_the_same_gradients_with_dropout() -> None:
    model = adapted("llama", dropout=0.3)
    model.prepare_training()
    kept = learned(model)
    enable_gradient_checkpointing(model.model)
    assert distance(learned(model), kept) == 0


def test_dropout_follows_the_seed_and_is_off_in_evaluation() -> None:
    model = adapted("llama", dropout=0.3)
    model.prepare_training()
    first = learned(model, seed=1)
    assert distance(learned(model, seed=1), first) == 0
    assert distance(learned(model, seed=2), first) > 1e-2
    tree = TokenTree.build(rows())
    nodes = np.arange(len(tree))
    with torch.no_grad(), model.evaluating():
        once, again = model.hidden(tree, nodes), model.hidden(tree, nodes)
        model.end_training()
        stock = model.hidden(tree, nodes)
    assert torch.equal(once, again)
    assert float((once - stock).abs().max()) < 1e-4


def test_masks_drop_the_share_that_was_asked_for_and_keep_the_mean() -> None:
    model = adapted("llama", dropout=0.2)
    model.prepare_training()
    (product, *_) = model._trained._layers[0].attention
    torch.manual_seed(0)
    (mask,) = draw_masks(2000, [product])
    assert mask is not None
    x = torch.ones(mask.shape)
    kept = masked(x, mask)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert float(kept.mean()) == pytest.approx(0.8, abs=0.01)
    means = [float(masked(x[:50], draw_masks(50, [product])[0]).mean()) for _ in range(400)]
    assert np.mean(means) == pytest.approx(0.8, abs=0.001)
    # Rows and columns alike: nothing is dropped by its place.
    assert float(kept.mean(dim=0).std()) < 0.02
    once = product.forward(x, product.parameters, mask)[0]
    plain = product.forward(x, product.parameters, None)[0]
    assert torch.allclose(once.mean(dim=0), plain[0], atol=0.05)
    halves = masked(x.bfloat16(), mask)
    assert torch.equal(halves.float(), kept)


def test_without_its_adapter_the_pass_is_the_model_before_training() -> None:
    model = adapted("llama")
    tree = TokenTree.build(rows())
    nodes = np.arange(len(tree))
    with torch.no_grad(), adapters_off(model.model), model.evaluating():
        bare = model.hidden(tree, nodes)
        model.prepare_training()
        assert float((model.hidden(tree, nodes) - bare).abs().max()) < 1e-4


def test_in_bfloat16_gradients_are_as_near_to_float32_as_those_of_the_stock_decoder() -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bfloat16")
    judge = learned(adapted("llama"))
    model = adapted("llama", dtype=torch.bfloat16)
    stock = learned(model)
    model.prepare_training()
    assert model.has_training_pass, model.lean.refusal
    ours = learned(model)

    def error(found: dict[str, Tensor]) -> float:
        return sum(float((found[k] - judge[k]).norm() / judge[k].norm()) for k in judge)

    assert error(ours) < 1.3 * error(stock)


@pytest.mark.parametrize(
    ("architecture", "how", "reason"),
    [
        ("phi", {}, "not known"),
        ("llama", {"dora": True}, "more than a product"),
        ("llama", {"weights": "full"}, "no adapter"),
    ],
)
def test_what_it_does_not_know_keeps_the_stock_decoder(
    architecture: str, how: dict[str, object], reason: str
) -> None:
    model = adapted(architecture, **how)
    theirs = learned(model)
    model.prepare_training()
    assert not model.has_training_pass
    assert reason in str(model.lean.refusal)
    assert distance(learned(model), theirs) == 0


def test_a_model_with_dropout_of_its_own_keeps_the_stock_decoder() -> None:
    model = TreeModel(tiny.tiny_model("gpt2", VOCABULARY), verify=False)
    add_adapter(model.model, AdapterSettings(), seed=0)
    model.prepare_training()
    assert not model.has_training_pass
    assert "dropout" in str(model.lean.refusal)
