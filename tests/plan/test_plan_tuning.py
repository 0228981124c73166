"""A plan of sft and dpo runs their own losses, on rows as long as those that will be learned."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, PretrainedConfig

import tiny
from taskfit.errors import PromptError, SettingsError
from taskfit.methods.sft import tokens_to_run
from taskfit.models.adapters import add_adapter, enable_gradient_checkpointing, trainable_parameters
from taskfit.models.load import load_model
from taskfit.models.tree_model import TreeModel
from taskfit.plan.cards import Card, find_card
from taskfit.plan.plan import Plan, make_plan
from taskfit.plan.simulate import Allocations
from taskfit.plan.tuning import made_rows, real_rows
from taskfit.runs.tuning.data import prepare_tuning
from taskfit.runs.tuning.model import TunedModel
from taskfit.settings import RunSettings
from taskfit.settings_file import settings_from_dict
from taskfit.training.optim import MasterOptimizer
from taskfit.tree import TokenTree

T4, CPU = find_card("t4"), find_card("cpu")
VOCABULARY = 1000


def tiny_config(**changed: int) -> PretrainedConfig:
    name, settings = tiny.ARCHITECTURES["llama"]
    config: PretrainedConfig = getattr(transformers, name)(
        **{"vocab_size": VOCABULARY, **settings, "max_position_embeddings": 512, **changed}
    )
    return config


def settings_of(method: str, weights: str = "lora", **sections: Any) -> RunSettings:
    # In so small a model a usual pass of scoring would be larger than a step.
    training = {"batch_size": 4, "score_token_budget": 150, **sections.pop("training", {})}
    return settings_from_dict(
        {
            "method": {"name": method},
            "adapter": {"weights": weights, **sections.pop("adapter", {})},
            "training": training,
            "model": {"dtype": "float32", **sections.pop("model", {})},
            **sections,
        },
        asked={},  # of what follows a method takes what it reads
    )


def plan(
    method: str,
    *,
    card: Card = T4,
    prompt: int = 40,
    answer: int = 20,
    shared: int = 10,
    config: PretrainedConfig | None = None,
    **sections: Any,
) -> Plan:
    settings = settings_of(method, **sections)
    rows = made_rows(settings, tokens=prompt, answer_tokens=answer, shared=shared, examples=32)
    return make_plan(settings, card, rows, config=config or tiny_config(), source="test")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("weights", ["lora", "full"])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_simulated_step_allocates_what_a_real_one_does(
    method: str, weights: str, checkpointing: bool
) -> None:
    # More nodes than one slice of the LM head, so that slices are seen too.
    predicted = plan(
        method,
        card=CPU,
        weights=weights,
        prompt=30,
        answer=60,
        training={"gradient_checkpointing": checkpointing},
    )
    step = predicted.memory.step
    assert step is not None
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(tiny_config())
    model.requires_grad_(False)
    tree = TreeModel(model.eval())
    add_adapter(model, predicted.settings.adapter, seed=0)
    tree.prepare_training()
    if checkpointing:
        enable_gradient_checkpointing(model)
    optimizer = MasterOptimizer(trainable_parameters(model), predicted.settings.training)
    model.train()
    objective = predicted.workload.objective(tree, predicted.settings)
    existing = [*model.parameters(), *model.buffers(), *optimizer.state_tensors().values()]
    [piece] = predicted.memory.epoch.heaviest
    before = tree.num_tokens_run
    with Allocations(existing) as allocations:
        loss = objective.loss_sum(piece)
        kept = allocations.live
        loss.backward()
        optimizer.collect_gradients()
    assert step.num_tokens == tree.num_tokens_run - before
    assert step.kept_bytes == pytest.approx(kept, rel=0.02)
    assert step.peak_bytes == pytest.approx(allocations.peak, rel=0.05)


@pytest.mark.parametrize("weights", ["full", "lora"])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_more_learned_tokens_need_more_memory_and_time(method: str, weights: str) -> None:
    # Rows of the same length, of which more and more is learned.
    plans = [
        plan(method, weights=weights, prompt=60 - answer, answer=answer) for answer in (10, 25, 40)
    ]
    read = [p.memory.epoch.num_read for p in plans]
    assert read[0] < read[1] < read[2]
    flops = [p.time.flops for p in plans]
    assert flops[0] < flops[1] < flops[2]
    steps = [p.memory.step.backward_bytes for p in plans if p.memory.step is not None]
    assert steps[0] < steps[1] < steps[2]
    peaks = [p.memory.peak_bytes for p in plans]
    assert peaks[0] <= peaks[1] <= peaks[2]


def test_a_larger_vocabulary_needs_more_at_the_nodes_that_are_read() -> None:
    def working_space(vocabulary: int, answer: int) -> int:
        found = plan("sft", prompt=15, answer=answer, config=tiny_config(vocab_size=vocabulary))
        assert found.memory.step is not None
        return found.memory.step.backward_bytes

    few, many = (working_space(20_000, n) - working_space(1000, n) for n in (2, 20))
    # 8 and 80 nodes, for each at least the scores and their gradient in float32.
    assert few > 8 * 19_000 * 8
    assert many > 80 * 19_000 * 8


@pytest.mark.parametrize("weights", ["full", "lora", "qlora"])
def test_a_pair_runs_its_prompt_once(weights: str) -> None:
    row, pair = (plan(m, weights=weights, prompt=100, answer=20) for m in ("sft", "dpo"))
    # 10 tokens of all prompts are shared, the last of an answer predicts nothing.
    assert row.memory.epoch.num_run == 8 * (10 + 4 * (90 + 19))
    assert pair.memory.epoch.num_run == 8 * (10 + 4 * (90 + 2 * 19))
    # One node predicts the first token of both answers.
    assert row.memory.epoch.num_read == 32 * 20
    assert pair.memory.epoch.num_read == 32 * (2 * 20 - 1)
    assert pair.memory.epoch.num_padded == 2 * row.memory.epoch.num_padded
    assert row.memory.step is not None
    assert pair.memory.step is not None
    assert row.memory.step.kept_bytes < pair.memory.step.kept_bytes
    assert pair.memory.step.kept_bytes < 1.4 * row.memory.step.kept_bytes
    assert pair.time.flops < 1.5 * row.time.flops


def test_only_preferences_are_scored_before_training_forward_alone() -> None:
    row, pair = (plan(method) for method in ("sft", "dpo"))
    assert row.time.before_flops == row.time.before_seconds == 0
    # Forward is half of forward and backward with a frozen base; there is no adapter yet.
    adapter = 6 * pair.memory.count.num_adapter * pair.memory.epoch.num_run
    assert 2 * pair.time.before_flops + adapter == pair.time.flops


def test_the_reference_and_frozen_layers_both_run_once_before_training() -> None:
    row, pair = (
        plan(method, adapter={"layers": 1}, training={"epochs": 2}) for method in ("sft", "dpo")
    )
    usual = plan("dpo", training={"epochs": 2})
    for found in (row, pair):
        frozen, count = found.memory.frozen, found.memory.count
        assert frozen.num_before > 0
        own = 2 * count.num_frozen * frozen.num_before
        reference = usual.time.before_flops if found is pair else 0
        assert found.time.before_flops == own + reference
    assert pair.time.flops < usual.time.flops


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_checkpointing_needs_less_memory_and_more_time(method: str) -> None:
    config = tiny_config(num_hidden_layers=6)
    without, with_it = (
        plan(method, config=config, training={"gradient_checkpointing": on}) for on in (False, True)
    )
    assert with_it.memory.peak_bytes < without.memory.peak_bytes
    assert with_it.time.flops > without.time.flops


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_what_does_not_fit_comes_with_a_change_that_does(method: str) -> None:
    usual = plan(method, prompt=100, answer=30, training={"batch_size": 16})
    small = Card("small", usual.needed_bytes - 1, 65, 8, 300)
    tight = plan(method, prompt=100, answer=30, training={"batch_size": 16}, card=small)
    assert tight.remedy is not None
    assert tight.remedy[0] == "--set training.gradient_checkpointing=true"
    assert tight.remedy[1] <= small.memory_bytes


def test_made_rows_that_contradict_themselves_are_refused() -> None:
    for numbers in ({"prompt": 10, "shared": 10}, {"answer": 0}):
        with pytest.raises(SettingsError, match="at least one"):
            plan("sft", **numbers)


def test_knn_has_a_plan_only_where_the_language_model_measures_similarity() -> None:
    rows = made_rows(settings_of("sft"), tokens=9, answer_tokens=9, shared=0, examples=9)
    with pytest.raises(SettingsError, match=r"knn needs no causal.*retriever=minilm.*=model"):
        make_plan(settings_of("knn"), T4, rows, config=tiny_config(), source="test")


SAID = [
    {"instruction": f"Say {'word ' * (i % 7 + 1)}", "output": "yes no " * (i % 5 + 1)}
    for i in range(30)
]
PAIRS = [{**row, "chosen": row["output"], "rejected": "maybe " * 4} for row in SAID]


@pytest.mark.parametrize(("method", "rows"), [("sft", SAID), ("dpo", PAIRS)])
def test_real_rows_are_those_that_a_run_would_encode(
    model_folder: Path, tmp_path: Path, method: str, rows: list[dict[str, str]]
) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    settings = settings_of(
        method,
        model={"name": str(model_folder), "device": "cpu"},
        data={"train": str(tmp_path / "rows.json"), "validation_fraction": 0.2},
        tuning={"chat_template": "headings"},
    )
    config = AutoConfig.from_pretrained(model_folder)
    workload = real_rows(settings, config)
    assert workload is not None
    train = prepare_tuning(settings).train
    expected, _ = TunedModel(settings, load_model(settings.model)).encode(train)
    assert workload.num_examples == len(expected) == len(train)
    assert [item.id for item in workload.items] == [item.id for item in expected]
    assert [item.num_tokens for item in workload.items] == [item.num_tokens for item in expected]
    found = make_plan(settings, CPU, workload, config=config, source="test")
    texts: list[Any] = list(expected)
    if method == "dpo":
        texts = [text for pair in texts for text in (pair.chosen, pair.rejected)]
    most = sum(len(tokens_to_run(text)) for text in texts)
    least = len(TokenTree.build([tokens_to_run(text) for text in texts]))
    assert least <= found.memory.epoch.num_run <= most
    assert found.memory.epoch.num_read <= sum(text.num_learned for text in texts)


def test_rows_that_a_run_refuses_are_refused(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(SAID))
    settings = settings_of(
        "sft", model={"name": str(model_folder)}, data={"train": str(tmp_path / "rows.json")}
    )
    with pytest.raises(PromptError, match=r"no chat template.*tuning\.chat_template"):
        real_rows(settings, AutoConfig.from_pretrained(model_folder))
