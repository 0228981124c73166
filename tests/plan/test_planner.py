"""A plan counts as the real model counts, and needs more of what is more."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, PretrainedConfig

import tiny
from taskfit.data import Example
from taskfit.errors import ModelError, SettingsError
from taskfit.methods.label_words import LabelWordLoss
from taskfit.models.adapters import (
    add_adapter,
    enable_gradient_checkpointing,
    trainable_parameters,
    weight_bytes,
)
from taskfit.models.frozen_depth import StateStore
from taskfit.models.load import load_model
from taskfit.models.quantize import count_parameters
from taskfit.models.tree_model import TreeModel
from taskfit.plan.cards import Card, find_card
from taskfit.plan.model import meta_model, prepare_weights
from taskfit.plan.plan import Plan, make_plan
from taskfit.plan.shapes import KNOWN_SHAPES, find_config, known_config
from taskfit.plan.simulate import Allocations
from taskfit.plan.tokens import made_workload, real_workload
from taskfit.runs.fit import fit
from taskfit.settings import AdapterSettings, ModelSettings, RunSettings
from taskfit.settings_file import settings_from_dict
from taskfit.training.optim import MasterOptimizer

T4 = find_card("t4")


def tiny_config(architecture: str = "llama", **changed: int) -> PretrainedConfig:
    name, settings = tiny.ARCHITECTURES[architecture]
    return getattr(transformers, name)(vocab_size=480, **{**settings, **changed})


def plan(
    config: PretrainedConfig | None = None,
    *,
    card: Card = T4,
    tokens: int = 40,
    batch_size: int = 4,
    weights: str = "lora",
    **sections: dict[str, object],
) -> Plan:
    training = {"batch_size": batch_size, "epochs": 1, **sections.pop("training", {})}
    adapter = {"weights": weights, **sections.pop("adapter", {})}
    method = {"name": "label_words", **sections.pop("method", {})}
    # As the settings of a run, of which a method takes what it reads.
    settings = settings_from_dict(
        {"adapter": adapter, "training": training, "method": method, **sections},
        asked={"method": method},
    )
    workload = made_workload(tokens=tokens, shared=10, examples=32, batch_size=batch_size)
    return make_plan(settings, card, workload, config=config or tiny_config(), source="test")


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_parameters_are_those_of_the_real_model(architecture: str) -> None:
    real = tiny.tiny_model(architecture, 480)
    real.requires_grad_(False)
    adapter = AdapterSettings(lora_rank=3)
    base, base_bytes = count_parameters(real), weight_bytes(real)
    add_adapter(real, adapter, seed=0)
    model = meta_model(tiny_config(architecture), torch.float32)
    count = prepare_weights(model, adapter, dtype=torch.float32, trains=True)
    assert count.num_parameters == base
    assert count.weight_bytes == base_bytes
    assert count.num_trainable == sum(p.numel() for p in trainable_parameters(real).values())


@pytest.mark.parametrize("double", [True, False])
def test_a_base_in_four_bits_takes_what_bitsandbytes_takes(
    model_folder: Path, double: bool
) -> None:
    pytest.importorskip("bitsandbytes")
    adapter = AdapterSettings(weights="qlora", double_quantization=double)
    settings = ModelSettings(name=str(model_folder), dtype="float32", device="cpu")
    real = load_model(settings, quantization=adapter).tree.model
    config = AutoConfig.from_pretrained(model_folder)
    count = prepare_weights(
        meta_model(config, torch.float32), adapter, dtype=torch.float32, trains=True
    )
    # Layers may share one code table.
    assert count.weight_bytes == pytest.approx(weight_bytes(real), rel=0.1)
    assert count.num_parameters == count_parameters(real)


@pytest.mark.parametrize("weights", ["lora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("layers", "epochs"), [("all", 1), (1, 1), (1, 3)])
def test_a_simulated_step_allocates_what_a_real_one_does(
    weights: str, checkpointing: bool, layers: str | int, epochs: int, tmp_path: Path
) -> None:
    predicted = plan(
        card=find_card("cpu"),
        weights=weights,
        model={"dtype": "float32"},
        adapter={"layers": layers},
        training={"gradient_checkpointing": checkpointing, "epochs": epochs},
    )
    assert predicted.memory.step is not None
    model = tiny.tiny_model("llama", 480)
    model.requires_grad_(False)
    tree = TreeModel(model)
    add_adapter(model, predicted.settings.adapter, seed=0)
    objective = LabelWordLoss(tree, [0, 1], over="labels")
    tree.freeze_below(0 if layers == "all" else 1)
    tree.prepare_training()
    if checkpointing:
        enable_gradient_checkpointing(model)
    optimizer = MasterOptimizer(trainable_parameters(model), predicted.settings.training)
    [piece] = predicted.memory.epoch.heaviest
    if epochs > 1:
        tree.keep_states(memory_bytes=10**9, folder=tmp_path)
        for fixed in objective.fixed_trees(piece, 2048):
            tree.keep_tree(fixed.tree)
    model.train()
    existing = [*model.parameters(), *model.buffers(), *optimizer.state_tensors().values()]
    with Allocations(existing) as allocations:
        loss = objective.loss_sum(piece)
        kept = allocations.live
        loss.backward()
        optimizer.collect_gradients()
    assert predicted.memory.step.kept_bytes == pytest.approx(kept, rel=0.02)
    assert predicted.memory.step.peak_bytes == pytest.approx(allocations.peak, rel=0.05)


@pytest.mark.parametrize("weights", ["full", "lora", "qlora"])
def test_memory_grows_with_batch_tokens_and_layers(weights: str) -> None:
    # Below the size at which attention is cut into blocks, which saves more than tokens add.
    cases: list[list[Plan]] = [
        [plan(weights=weights, tokens=50, batch_size=size) for size in (8, 16, 32)],
        [plan(weights=weights, tokens=tokens, batch_size=32) for tokens in (30, 35, 40)],
        [plan(tiny_config(num_hidden_layers=n), weights=weights) for n in (2, 4, 6)],
    ]
    for plans in cases:
        steps = [p.memory.step.backward_bytes for p in plans if p.memory.step is not None]
        assert steps[0] < steps[1] < steps[2]
        peaks = [p.memory.peak_bytes for p in plans]
        assert peaks[0] <= peaks[1] <= peaks[2]


def test_qlora_needs_less_than_lora_and_lora_less_than_full() -> None:
    config = tiny_config(hidden_size=256, intermediate_size=512)
    four, sixteen, full = (
        plan(config, weights=weights, batch_size=1).memory.peak_bytes
        for weights in ("qlora", "lora", "full")
    )
    assert four < sixteen < full


def test_double_quantization_needs_less() -> None:
    config = tiny_config(hidden_size=256, intermediate_size=512)
    single, double = (
        plan(config, weights="qlora", adapter={"double_quantization": d}) for d in (False, True)
    )
    assert double.memory.count.scale_bytes < single.memory.count.scale_bytes


@pytest.mark.parametrize("weights", ["full", "lora", "qlora"])
@pytest.mark.parametrize("card", ["t4", "cpu"])
def test_checkpointing_never_needs_more_memory_and_always_more_time(
    weights: str, card: str
) -> None:
    without, with_it = (
        plan(
            card=find_card(card),
            weights=weights,
            training={"gradient_checkpointing": on},
        )
        for on in (False, True)
    )
    assert with_it.memory.peak_bytes <= without.memory.peak_bytes
    assert with_it.time.flops > without.time.flops


def test_moments_in_8_bits_need_less() -> None:
    usual = plan(weights="full").memory.moment_bytes
    assert plan(weights="full", training={"optimizer": "adamw8bit"}).memory.moment_bytes < usual / 3


def test_shared_tokens_run_once_and_padded_ones_in_every_row() -> None:
    epoch = plan(tokens=40, batch_size=4).memory.epoch
    # 32 examples in 8 steps: 10 shared and 30 own tokens; the label word stands in padded rows.
    assert epoch.num_run == 8 * (10 + 4 * 30)
    assert epoch.num_padded == 32 * 41


def test_an_adapter_costs_four_operations_a_weight_and_full_training_six() -> None:
    lora, full = (plan(weights=w, adapter={"layers": "all"}) for w in ("lora", "full"))
    count, tokens = lora.memory.count, lora.memory.epoch.num_run
    assert lora.time.flops == (4 * count.num_body + 6 * count.num_adapter) * tokens
    assert full.time.flops == 6 * count.num_body * tokens


def test_a_method_that_only_reads_needs_no_gradients() -> None:
    reading = plan(method={"name": "in_context"})
    assert reading.memory.step is None
    assert reading.memory.peak_bytes < plan().memory.peak_bytes


def test_what_does_not_fit_names_the_first_change_that_does() -> None:
    settings = {"batch_size": 32, "tokens": 120, "adapter": {"layers": "all"}}
    usual = plan(**settings)
    peak = usual.memory.peak_bytes + usual.card.reserved_bytes
    small = Card("small", peak - 1, 65, 8, 300)
    tight = plan(**settings, card=small)
    assert not tight.fits
    assert tight.remedy is not None
    change, needed = tight.remedy
    assert change == "--set training.gradient_checkpointing=true"
    assert needed < peak


def test_nothing_helps_on_a_card_without_room() -> None:
    none = plan(card=Card("none", 2**29 + 1000, 65, 8, 300))
    assert not none.fits
    assert none.remedy is None


def test_methods_without_a_language_model_have_no_plan() -> None:
    with pytest.raises(SettingsError, match="tfidf needs no causal language model"):
        plan(method={"name": "tfidf"})


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-3-8b", 8.030), ("qwen2.5-7b", 7.616), ("mistral-7b", 7.248), ("smollm2-135m", 0.1345)],
)
def test_known_shapes_have_the_published_number_of_parameters(name: str, billions: float) -> None:
    model = meta_model(known_config(name), torch.bfloat16)
    assert count_parameters(model) / 1e9 == pytest.approx(billions, abs=0.0005)


def test_every_known_shape_can_be_built() -> None:
    sizes = [count_parameters(meta_model(known_config(n), torch.bfloat16)) for n in KNOWN_SHAPES]
    assert min(sizes) > 1e8


def test_a_config_file_is_as_good_as_the_model(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny_config().to_dict()))
    config, source = find_config("whatever", file=path)
    assert source == str(path)
    assert config.hidden_size == 32
    path.write_text("{}")
    with pytest.raises(ModelError, match=r"config\.json with a model_type"):
        find_config("whatever", file=path)


def test_real_texts_are_measured_by_the_model_s_tokenizer(
    model_folder: Path, tmp_path: Path
) -> None:
    examples = tiny.toy_examples(40)
    longer = [
        Example(f"long {i}", {"text": example.texts["text"] * 2}, example.label)
        for i, example in enumerate(examples[:20])
    ]
    table = tiny.write_csv(tmp_path / "d.csv", [*examples, *longer])
    settings = RunSettings.model_validate(
        {
            "data": {"train": str(table)},
            "model": {"name": str(model_folder)},
            "method": {"name": "label_words"},
        }
    )
    workload = real_workload(settings, tiny_config())
    assert workload is not None
    lengths = {len(item.prompt_ids) for item in workload.items}
    assert len(lengths) > 1
    assert 0 < workload.prefix_length < min(lengths)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "label_words", "loss": "labels"},
        {"name": "label_words", "loss": "vocabulary"},
        {"name": "label_words", "loss": "branches"},
        {"name": "label_text"},
        {"name": "head"},
        {"name": "head", "prompt": False},
    ],
    ids=lambda method: "-".join(map(str, method.values())),
)
def test_an_epoch_is_planned_with_the_tokens_that_a_run_trains_on(
    model_folder: Path, tmp_path: Path, method: dict[str, object]
) -> None:
    table = tiny.write_csv(tmp_path / "d.csv", tiny.toy_examples(20))
    words = {"bad": " The dog was sad", "good": " The dog was happy in the park"}
    settings = settings_from_dict(
        {
            "data": {"train": str(table), "validation_fraction": 0, "test_fraction": 0},
            "task": {"label_words": words},
            "model": {"name": str(model_folder), "dtype": "float32"},
            "method": {**method, "num_demonstrations": 1},
            "training": {"epochs": 1, "batch_size": 8, "tensorboard": False},
        }
    ).resolved()
    config = AutoConfig.from_pretrained(model_folder)
    workload = real_workload(settings, config)
    assert workload is not None
    found = make_plan(settings, find_card("cpu"), workload, config=config, source="test")
    run = fit(settings, tmp_path / "run", baselines=False)
    assert found.memory.epoch.num_run == run.result.tokens["unique"]


@pytest.mark.parametrize("card", ["t4", "cpu"])
@pytest.mark.parametrize("weights", ["lora", "full", "qlora"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_half_the_layers_need_less_memory_and_time_than_all(
    card: str, weights: str, epochs: int
) -> None:
    config = tiny_config(num_hidden_layers=4)
    every, half = (
        plan(
            config,
            card=find_card(card),
            weights=weights,
            batch_size=16,
            model={"dtype": "float32"},
            adapter={"layers": layers},
            training={"epochs": epochs, "score_token_budget": 100, "token_budget": 500},
        )
        for layers in ("all", "half")
    )
    assert every.memory.step is not None
    assert half.memory.step is not None
    assert half.memory.step.kept_bytes < 0.6 * every.memory.step.kept_bytes
    assert half.memory.step.backward_bytes < every.memory.step.backward_bytes
    assert half.memory.tensor_bytes < every.memory.tensor_bytes
    assert half.memory.peak_bytes <= every.memory.peak_bytes
    assert half.time.flops < every.time.flops
    assert half.time.padded_flops < every.time.padded_flops


def test_frozen_layers_run_once_for_several_epochs_else_in_each_step() -> None:
    again, once, not_kept = (
        plan(adapter={"layers": "half", **adapter}, training={"epochs": epochs})
        for adapter, epochs in (({}, 1), ({}, 3), ({"cache_gigabytes": None}, 3))
    )
    count, tokens = again.memory.count, again.memory.epoch.num_run
    upper = (4 * (count.num_body - count.num_frozen) + 6 * count.num_adapter) * tokens
    assert 2 * count.num_frozen == pytest.approx(count.num_body, rel=0.01)
    assert once.time.flops == upper
    assert again.time.flops == not_kept.time.flops == upper + 2 * count.num_frozen * tokens
    frozen = once.memory.frozen
    # All examples are in one tree, where 10 tokens are shared.
    assert frozen.num_before == frozen.num_kept == 10 + 32 * 30
    assert once.time.before_flops == 2 * count.num_frozen * frozen.num_before
    for other in (again, not_kept):
        assert other.time.before_flops == other.memory.frozen.num_kept == 0


def test_kept_states_lie_in_the_memory_of_a_cpu_and_beside_that_of_a_gpu() -> None:
    parts = {"model": {"dtype": "float32"}, "training": {"epochs": 3}}
    for card in ("cpu", "t4"):
        kept, none = (
            plan(card=find_card(card), adapter={"cache_gigabytes": gigabytes}, **parts).memory
            for gigabytes in (1.0, 0.0)
        )
        num_bytes = kept.frozen.num_kept * 32 * 4
        assert (kept.frozen.memory_bytes, kept.frozen.file_bytes) == (num_bytes, 0)
        assert (none.frozen.memory_bytes, none.frozen.file_bytes) == (0, num_bytes)
        in_memory = num_bytes if card == "cpu" else 0
        assert kept.host.states_bytes == in_memory
        assert kept.tensor_bytes == none.tensor_bytes


@pytest.mark.parametrize(
    "method",
    [
        {"name": "label_words", "loss": "labels"},
        {"name": "label_words", "loss": "vocabulary"},
        {"name": "label_words", "loss": "branches"},
        {"name": "head"},
        {"name": "head", "prompt": False},
    ],
    ids=lambda method: "-".join(map(str, method.values())),
)
@pytest.mark.parametrize("validation", [0.0, 0.3])
def test_planned_states_are_those_that_a_run_keeps(
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: dict[str, object],
    validation: float,
) -> None:
    stores: list[StateStore] = []
    keep_states = TreeModel.keep_states

    def noted(tree: TreeModel, *, memory_bytes: int, folder: Path) -> StateStore:
        stores.append(keep_states(tree, memory_bytes=memory_bytes, folder=folder))
        return stores[-1]

    table = tiny.write_csv(tmp_path / "d.csv", tiny.toy_examples(40))
    words = {"bad": " The dog was sad", "good": " The dog was happy in the park"}
    settings = settings_from_dict(
        {
            "data": {"train": str(table), "validation_fraction": validation, "test_fraction": 0},
            "task": {"label_words": words},
            "model": {"name": str(model_folder), "dtype": "float32", "device": "cpu"},
            "method": method,
            "adapter": {"layers": 1},
            "training": {
                "epochs": 2,
                "batch_size": 8,
                "token_budget": 200,
                "score_token_budget": 150,
                "tensorboard": False,
            },
        }
    )
    config = AutoConfig.from_pretrained(model_folder)
    workload = real_workload(settings, config)
    assert workload is not None
    found = make_plan(settings, find_card("cpu"), workload, config=config, source="test")
    monkeypatch.setattr(TreeModel, "keep_states", noted)
    fit(settings, tmp_path / "run", baselines=False)
    [store] = stores
    assert found.memory.frozen.num_layers == 2
    assert found.memory.frozen.memory_bytes == store.num_bytes > 0
    assert (found.memory.frozen.num_kept > found.memory.frozen.num_before) == (validation > 0)


def test_what_auto_stands_for_is_planned_in_numbers() -> None:
    settings = settings_from_dict({})
    workload = made_workload(tokens=40, shared=10, examples=32, batch_size=16)
    found = make_plan(settings, T4, workload, config=tiny_config(), source="test")
    assert found.settings.method.name != "auto"
    assert isinstance(found.settings.training.epochs, float)
    assert isinstance(found.settings.training.batch_size, int)
