"""Layers below the trained ones run once: the same losses and gradients, kept or computed again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

import tiny
from taskfit.errors import SettingsError
from taskfit.models.adapters import add_adapter, save_weights
from taskfit.models.adapters import trainable_parameters as trainable
from taskfit.models.frozen_depth import first_trained_layer, sequence_keys
from taskfit.models.load import LoadedModel
from taskfit.models.tree_model import TreeModel
from taskfit.settings import AdapterSettings
from taskfit.tree import TokenTree

SEQUENCES = [[5, 6, 7, 8, 9], [5, 6, 7, 11], [5, 6, 12, 13, 14, 15], [20, 21]]


def prepared(architecture: str, adapter: AdapterSettings) -> TreeModel:
    tree = TreeModel(tiny.tiny_model(architecture, 61))
    tree.model.requires_grad_(False)
    add_adapter(tree.model, adapter, seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainable(tree.model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return tree


def loss_and_gradients(tree: TreeModel, rows: list[list[int]]) -> tuple[Tensor, dict[str, Tensor]]:
    token_tree = TokenTree.build(rows)
    ends = np.array([path[-1] for path in token_tree.paths])
    tree.model.zero_grad()
    loss = tree.logits(tree.hidden(token_tree, ends)).logsumexp(dim=-1).sum()
    loss.backward()
    found = {n: p.grad.clone() for n, p in trainable(tree.model).items() if p.grad is not None}
    return loss.detach(), found


@pytest.mark.parametrize("architecture", sorted(tiny.ARCHITECTURES))
@pytest.mark.parametrize("weights", ["lora", "full"])
def test_cut_kept_and_whole_give_the_same_loss_and_gradients(
    architecture: str, weights: str, tmp_path: Path
) -> None:
    tree = prepared(architecture, AdapterSettings.model_validate({"weights": weights, "layers": 1}))
    whole = loss_and_gradients(tree, SEQUENCES)
    tree.freeze_below(1)
    cut = loss_and_gradients(tree, SEQUENCES)
    tree.keep_states(memory_bytes=10**6, folder=tmp_path)
    # Kept from other trees than those of the steps.
    for row in SEQUENCES:
        tree.keep_tree(TokenTree.build([row]))
    before = tree.num_tokens_run
    kept = loss_and_gradients(tree, SEQUENCES)
    assert tree.num_tokens_run > before
    for loss, gradients in (cut, kept):
        torch.testing.assert_close(loss, whole[0], rtol=1e-6, atol=1e-6)
        assert gradients.keys() == whole[1].keys()
        for name, gradient in gradients.items():
            scale = float(whole[1][name].abs().max()) + 1e-6
            torch.testing.assert_close(gradient, whole[1][name], rtol=0, atol=2e-6 * scale + 1e-7)


def test_what_is_kept_is_used_and_not_computed_again(tmp_path: Path) -> None:
    tree = prepared("llama", AdapterSettings(layers=1))
    tree.freeze_below(1)
    store = tree.keep_states(memory_bytes=10**6, folder=tmp_path)
    tree.keep_tree(TokenTree.build(SEQUENCES))
    expected = loss_and_gradients(tree, SEQUENCES[:2])[0]
    # If a lower layer ran again, its broken weights would show.
    with torch.no_grad():
        tree.model.model.layers[0].mlp.down_proj.weight.mul_(float("nan"))
    torch.testing.assert_close(loss_and_gradients(tree, SEQUENCES[:2])[0], expected)
    assert store.num_bytes == len(TokenTree.build(SEQUENCES)) * 32 * 4
    assert loss_and_gradients(tree, [[5, 6, 50]])[0].isnan()


def test_past_the_budget_states_lie_in_a_file_and_are_the_same_bits(tmp_path: Path) -> None:
    tree = prepared("llama", AdapterSettings(layers=1))
    tree.freeze_below(1)
    losses = []
    for budget in (10**6, 0):
        store = tree.keep_states(memory_bytes=budget, folder=tmp_path / "states")
        tree.keep_tree(TokenTree.build(SEQUENCES))
        losses.append(loss_and_gradients(tree, SEQUENCES)[0])
    assert torch.equal(losses[0], losses[1])
    assert store.num_bytes == 0
    assert store.num_file_bytes > 0
    assert not list((tmp_path / "states").iterdir())  # the mapping holds the space, no name does


def test_a_nearly_full_disk_keeps_nothing_and_the_layers_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskfit.models.frozen_depth.DISK_RESERVE", 10**18)
    tree = prepared("llama", AdapterSettings(layers=1))
    expected = loss_and_gradients(tree, SEQUENCES)[0]
    tree.freeze_below(1)
    store = tree.keep_states(memory_bytes=0, folder=tmp_path)
    tree.keep_tree(TokenTree.build(SEQUENCES))
    assert store.is_full
    torch.testing.assert_close(loss_and_gradients(tree, SEQUENCES)[0], expected)


def test_states_behind_a_prefix_are_found_by_all_their_tokens(tmp_path: Path) -> None:
    tree = prepared("llama", AdapterSettings(layers=1))
    ids = np.array([3, 4, 5])
    rows = TokenTree.build([[7, 8], [7, 9, 10]])
    ends = np.array([path[-1] for path in rows.paths])
    with torch.no_grad():
        expected = tree.hidden(rows, ends, prefix=tree.encode_prefix(ids))
        tree.freeze_below(1)
        prefix = tree.encode_prefix(ids)
        tree.keep_states(memory_bytes=10**6, folder=tmp_path)
        tree.keep_tree(rows, prefix=prefix)
        torch.testing.assert_close(tree.hidden(rows, ends, prefix=prefix), expected)
    whole = TokenTree.build([[3, 4, 5, 7, 8], [3, 4, 5, 7, 9, 10]])
    assert sequence_keys(rows, ids) == sequence_keys(whole, np.empty(0, np.int64))


def test_dropout_of_the_model_itself_does_not_touch_frozen_layers(tmp_path: Path) -> None:
    tree = prepared("gpt2", AdapterSettings(layers=1))
    tree.freeze_below(1)
    tree.model.train()
    tree.keep_states(memory_bytes=10**6, folder=tmp_path)
    depth = tree._depth
    assert depth is not None
    with tree.keeping():
        tree.hidden(TokenTree.build(SEQUENCES), np.array([0]))
    assert depth.store is not None
    kept = depth.store._chunks[0].clone()
    tree.model.eval()
    tree.keep_states(memory_bytes=10**6, folder=tmp_path)
    tree.keep_tree(TokenTree.build(SEQUENCES))
    assert depth.store is not None
    assert torch.equal(depth.store._chunks[0], kept)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "opt", "phi3"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_adapters_of_the_top_layers_load_in_plain_peft(
    architecture: str, byte_level_tokenizer: object, tmp_path: Path
) -> None:
    tree = prepared(architecture, AdapterSettings(layers=1))
    names = list(trainable(tree.model))
    assert names
    assert all(".1." in name for name in names)
    base = tmp_path / "base"
    tiny.tiny_model(architecture, 61).save_pretrained(base)
    plain = AutoModelForCausalLM.from_pretrained(base)
    ids = torch.tensor([SEQUENCES[0]])
    # The adapter as PEFT itself writes and reads it.
    wrapped = add_adapter_of(tiny.tiny_model(architecture, 61))
    save_weights(wrapped[0], wrapped[1], byte_level_tokenizer, tmp_path / "adapter")  # type: ignore[arg-type]
    read = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = wrapped[1].eval()(ids).logits
        torch.testing.assert_close(read(ids).logits, expected)


def add_adapter_of(model: torch.nn.Module) -> tuple[torch.nn.Module, PeftModel]:
    model.requires_grad_(False)
    adapter = add_adapter(model, AdapterSettings(layers=1), seed=0)  # type: ignore[arg-type]
    assert adapter is not None
    with torch.no_grad():
        for parameter in trainable(model).values():  # type: ignore[arg-type]
            parameter.add_(0.05)
    return model, adapter


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("all", 0), ("two_thirds", 10), ("half", 15), (10, 20), (1, 29), (30, 0), (99, 0)],
)
def test_which_layer_is_the_first_in_training(layers: str | int, expected: int) -> None:
    assert first_trained_layer(30, layers) == expected


@pytest.mark.parametrize(
    ("targets", "parts"),
    [
        ("all", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("mlp", {"gate_proj", "up_proj", "down_proj"}),
        (["q_proj", "v_proj"], {"q_proj", "v_proj"}),
    ],
)
def test_targets_choose_the_linear_layers(
    loaded: LoadedModel, targets: str | list[str], parts: set[str]
) -> None:
    settings = AdapterSettings.model_validate({"targets": targets})
    add_adapter(loaded.tree.model, settings, seed=0)
    assert {name.split(".")[4] for name in trainable(loaded.tree.model)} == parts


def test_a_target_that_is_no_linear_layer_is_named_with_those_that_are(loaded: LoadedModel) -> None:
    settings = AdapterSettings.model_validate({"targets": ["q_proj", "query"]})
    with pytest.raises(SettingsError, match=r"names query; .*self_attn.q_proj"):
        add_adapter(loaded.tree.model, settings, seed=0)


def test_rank_stabilized_scaling_and_dora_are_peft_s_own(loaded: LoadedModel) -> None:
    settings = AdapterSettings(lora_rank=4, rank_stabilized=True, dora=True)
    adapter = add_adapter(loaded.tree.model, settings, seed=0)
    assert adapter is not None
    config = adapter.peft_config["default"]
    assert config.use_rslora
    assert config.use_dora
    assert any("magnitude" in name for name in trainable(loaded.tree.model))
