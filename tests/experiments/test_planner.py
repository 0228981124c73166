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
from taskfit.experiments import fit
from taskfit.experiments.planner.cards import Card, find_card
from taskfit.experiments.planner.model import meta_model, prepare_weights
from taskfit.experiments.planner.plan import Plan, make_plan
from taskfit.experiments.planner.shapes import KNOWN_SHAPES, find_config, known_config
from taskfit.experiments.planner.simulate import Allocations
from taskfit.experiments.planner.tokens import made_workload, real_workload
from taskfit.methods import LabelWordLoss
from taskfit.models import (
    TreeModel,
    add_adapter,
    count_parameters,
    enable_gradient_checkpointing,
    load_model,
    trainable_parameters,
    weight_bytes,
)
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
    training = {"batch_size": batch_size, **sections.pop("training", {})}
    settings = settings_from_dict(
        {"adapter": {"weights": weights}, "training": training, **sections}
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
def test_a_simulated_step_allocates_what_a_real_one_does(weights: str, checkpointing: bool) -> None:
    predicted = plan(
        card=find_card("cpu"),
        weights=weights,
        model={"dtype": "float32"},
        training={"gradient_checkpointing": checkpointing},
    )
    assert predicted.memory.step is not None
    model = tiny.tiny_model("llama", 480)
    model.requires_grad_(False)
    tree = TreeModel(model)
    add_adapter(model, predicted.settings.adapter, seed=0)
    if checkpointing:
        enable_gradient_checkpointing(model)
    optimizer = MasterOptimizer(trainable_parameters(model), predicted.settings.training)
    model.train()
    existing = [*model.parameters(), *model.buffers(), *optimizer.state_tensors().values()]
    [piece] = predicted.memory.epoch.heaviest
    with Allocations(existing) as allocations:
        loss = LabelWordLoss(tree, [0, 1], over="labels").loss_sum(piece)
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
        [plan(tiny_config(num_hidden_layers=n), weights=weights) for n in (2, 3, 4)],
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
        plan(config, weights="qlora", adapter={"weights": "qlora", "double_quantization": d})
        for d in (False, True)
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
    assert epoch.num_unique == 8 * (10 + 4 * 30)
    assert epoch.num_padded == 32 * 41


def test_an_adapter_costs_four_operations_a_weight_and_full_training_six() -> None:
    lora, full = plan(weights="lora"), plan(weights="full")
    count, tokens = lora.memory.count, lora.memory.epoch.num_unique
    assert lora.time.flops == (4 * count.num_body + 6 * count.num_adapter) * tokens
    assert full.time.flops == 6 * count.num_body * tokens


def test_a_method_that_only_reads_needs_no_gradients() -> None:
    reading = plan(method={"name": "in_context"})
    assert reading.memory.step is None
    assert reading.memory.peak_bytes < plan().memory.peak_bytes


def test_what_does_not_fit_names_the_first_change_that_does() -> None:
    usual = plan(batch_size=32, tokens=120)
    peak = usual.memory.peak_bytes + usual.card.reserved_bytes
    small = Card("small", peak - 1, 65, 8, 300)
    tight = plan(card=small, batch_size=32, tokens=120)
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
    longer = Example("long", {"text": examples[0].texts["text"] * 2}, "good")
    table = tiny.write_csv(tmp_path / "d.csv", [*examples, longer])
    settings = RunSettings.model_validate(
        {"data": {"train": str(table)}, "model": {"name": str(model_folder)}}
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
    ],
    ids=lambda method: method.get("loss", method["name"]),
)
def test_an_epoch_is_planned_with_the_tokens_that_a_run_trains_on(
    model_folder: Path, tmp_path: Path, method: dict[str, object]
) -> None:
    table = tiny.write_csv(tmp_path / "d.csv", tiny.toy_examples(20))
    words = {"bad": " The dog was sad", "good": " The dog was happy in the park"}
    settings = settings_from_dict(
        {
            "data": {"train": str(table), "validation_fraction": 0},
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
    run = fit(settings, tmp_path / "run", report=False)
    assert found.memory.epoch.num_unique == run.result.tokens["unique"]
