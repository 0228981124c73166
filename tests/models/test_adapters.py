import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tiny
from taskfit.errors import CheckpointError
from taskfit.models.adapters import (
    CpuDropout,
    adapters_off,
    add_adapter,
    load_adapter,
    save_weights,
    trainable_parameters,
)
from taskfit.models.load import LoadedModel
from taskfit.models.tree_model import TreeModel
from taskfit.settings import AdapterSettings
from taskfit.tree import TokenTree

ROW = [[5, 6, 7, 8, 9]]


def scores(model: TreeModel) -> torch.Tensor:
    tree = TokenTree.build(ROW)
    with torch.no_grad():
        return model.hidden(tree, tree.paths[0])


def disturb(model: TreeModel) -> None:
    """Give the adapters weights that change the output."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainable_parameters(model.model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "opt", "phi3"])
def test_a_fresh_adapter_changes_nothing_and_only_it_is_trained(architecture: str) -> None:
    model = TreeModel(tiny.tiny_model(architecture, 61))
    model.model.requires_grad_(False)
    before = scores(model)
    add_adapter(model.model, AdapterSettings(), seed=0)
    model.model.eval()
    torch.testing.assert_close(scores(model), before)
    names = list(trainable_parameters(model.model))
    assert names
    assert all("lora_" in name for name in names)


def test_adapters_start_from_the_seed_alone() -> None:
    starts = []
    for seed in (1, 1, 2):
        model = tiny.tiny_model("llama", 61)
        torch.rand(seed + 7)  # the state of the global generator must not matter
        add_adapter(model.requires_grad_(False), AdapterSettings(), seed=seed)
        starts.append(torch.cat([p.flatten() for p in trainable_parameters(model).values()]))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_full_weights_train_everything() -> None:
    model = tiny.tiny_model("llama", 61).requires_grad_(False)
    assert add_adapter(model, AdapterSettings(weights="full"), seed=0) is None
    assert len(trainable_parameters(model)) == len(list(model.parameters()))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_a_saved_adapter_loads_in_plain_peft_and_in_taskfit(
    loaded: LoadedModel, model_folder: Path, tmp_path: Path
) -> None:
    adapter = add_adapter(loaded.tree.model, AdapterSettings(lora_rank=2), seed=0)
    disturb(loaded.tree)
    loaded.tree.model.eval()
    expected = scores(loaded.tree)
    save_weights(loaded.tree.model, adapter, loaded.tokenizer, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 2

    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), tmp_path)
    ids = torch.tensor(ROW)
    with torch.no_grad():
        hidden = plain.get_base_model().get_decoder()(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)

    again = TreeModel(AutoModelForCausalLM.from_pretrained(model_folder))
    load_adapter(again.model, tmp_path)
    again.model.eval()
    torch.testing.assert_close(scores(again), expected)


def test_merging_the_adapter_gives_the_same_scores(loaded: LoadedModel) -> None:
    adapter = add_adapter(loaded.tree.model, AdapterSettings(), seed=0)
    disturb(loaded.tree)
    loaded.tree.model.eval()
    expected = scores(loaded.tree)
    merged = TreeModel(adapter.merge_and_unload())
    torch.testing.assert_close(scores(merged), expected, rtol=1e-4, atol=1e-5)


def test_a_folder_without_an_adapter_says_what_is_missing(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"adapter_config\.json and adapter_model"):
        load_adapter(loaded.tree.model, tmp_path)


def test_dropout_keeps_the_mean_and_drops_the_asked_share() -> None:
    torch.manual_seed(0)
    dropout = CpuDropout(0.3, draw=0)
    x = torch.ones(100_003)
    out = dropout(x)
    assert abs(float((out == 0).float().mean()) - 0.3) < 0.01
    assert abs(float(out.mean()) - 1) < 0.01
    assert len(out.unique()) == 2
    assert torch.equal(dropout.eval()(x), x)


def test_dropout_passes_gradients_only_where_it_kept_the_input() -> None:
    torch.manual_seed(0)
    x = torch.randn(1000, requires_grad=True)
    out = CpuDropout(0.5, draw=0)(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, (out / x).detach(), rtol=1e-5, atol=1e-6)


def test_adapters_by_name_on_one_model_compute_as_each_does_alone(tmp_path: Path) -> None:
    """Also those that touch other layers, and none at all; no pass sees what another chose."""
    wanted = {"": scores(TreeModel(tiny.tiny_model("llama", 61)))}
    for name, settings in {
        "a": AdapterSettings(lora_rank=2),
        "b": AdapterSettings(targets="mlp", layers=1, dora=True),
        "c": AdapterSettings(targets="attention", lora_alpha=64),
    }.items():
        alone = TreeModel(tiny.tiny_model("llama", 61))
        adapter = add_adapter(alone.model.requires_grad_(False), settings, seed=len(wanted))
        disturb(alone)
        alone.model.eval()
        wanted[name] = scores(alone)
        assert adapter is not None
        adapter.save_pretrained(tmp_path / name, save_embedding_layers=False)
    model, beside = tiny.tiny_model("llama", 61).requires_grad_(False), None
    for name in "abc":
        beside = load_adapter(model, tmp_path / name, name=name, beside=beside)
    model.eval()
    trees = {name: TreeModel(model, verify=False, adapter=name) for name in wanted}
    for name in ("a", "b", "", "c", "a", "", "b"):
        torch.testing.assert_close(scores(trees[name]), wanted[name])
        with adapters_off(model):
            torch.testing.assert_close(scores(trees[name]), wanted[""])
    assert not torch.allclose(wanted["a"], wanted["b"])


def test_an_adapter_beside_others_is_checked_as_the_first_is(tmp_path: Path) -> None:
    model = tiny.tiny_model("llama", 61)
    adapter = add_adapter(model.requires_grad_(False), AdapterSettings(), seed=0)
    assert adapter is not None
    adapter.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    other = tiny.tiny_model("llama", 61)
    beside = load_adapter(other, tmp_path / "a", name="first")
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    weights.pop(min(weights))
    save_file(weights, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="1 of its weights missing"):
        load_adapter(other, tmp_path / "a", name="second", beside=beside)
