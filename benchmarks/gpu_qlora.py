"""A part of benchmarks/gpu.py: a step of QLoRA on an 8B-shaped model, against the recipe.

The prompts have the lengths of CoLA's in the published two-demonstration prompt (SmolLM2's
tokenizer): 52 tokens that all share, then a text, and one token of the label. Ours is the loop of
`taskfit fit`. The recipe pads to the longest text of the set and computes scores of the whole
vocabulary at every position; `prepared` is the recipe with what QLoRA's authors do beside it
(all that is not in 4 bits in float32, gradient checkpointing). 14.7 GB were published for it.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import prepare_model_for_kbit_training

import sft
from gpu_bench import Bench, llama, random_four_bit_model, small_tokenizer
from peer_recipe import PeerRecipe
from taskfit.methods.adapted import AdaptedModel
from taskfit.methods.label_words import LabelWordLoss
from taskfit.models.load import LoadedModel
from taskfit.models.tree_model import TreeModel
from taskfit.plan.cards import find_card
from taskfit.plan.plan import make_plan
from taskfit.plan.shapes import known_config
from taskfit.plan.tokens import LabelWorkload
from taskfit.settings import RunSettings
from taskfit.settings_file import settings_from_dict
from taskfit.tasks import EncodedExample
from taskfit.training.loop import TOKEN_BUDGET
from taskfit.training.memory import MemoryAccount

PUBLISHED_GB = 14.7
BATCH, SHARED, LONGEST = 8, 52, 99  # examples a step; tokens of a prompt with its label
# Of 8,549 training texts of CoLA, how many add so many tokens to the shared ones: from 4 on.
LENGTHS = (5, 97, 286, 608, 968, 1165, 1152, 948, 839, 612, 419, 335, 254, 158, 149, 124, 84, 74)
LENGTHS += (73, 70, 29, 26, 22, 15, 11, 5, 7, 5, 5)
FIRST_LENGTH = 4
WARMUP = 2


def measures(bench: Bench) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the measures of this part, by name."""
    shape = llama(bench) if bench.tiny else known_config("llama-3-8b")

    @functools.cache
    def base() -> LoadedModel:
        model = random_four_bit_model(shape, bench, torch.bfloat16)
        return LoadedModel(TreeModel(model), small_tokenizer(), "random", None)

    yield "ours", lambda: ours(bench, base(), shape)
    yield "recipe", lambda: recipe(bench, base())
    yield "ours_two_thirds", lambda: ours(bench, base(), shape, layers="two_thirds")
    yield "ours_checkpointing", lambda: ours(bench, base(), shape, checkpointing=True)
    # Last, since it changes the model.
    yield "recipe_prepared", lambda: recipe(bench, base(), prepared=True)


def examples(bench: Bench) -> list[EncodedExample]:
    """Return prompts of CoLA's lengths, of random tokens; the first has the longest text."""
    generator = np.random.default_rng(0)
    draws = np.arange(FIRST_LENGTH, FIRST_LENGTH + len(LENGTHS))
    shares = np.array(LENGTHS) / sum(LENGTHS)
    num = BATCH * (WARMUP + bench.pick(10, 2))
    own = generator.choice(draws, num, p=shares)
    own[0] = LONGEST - SHARED
    start, highest = generator.integers(3, 500, SHARED), 500
    words = (np.array([7]), np.array([11]))
    return [
        EncodedExample(
            id=f"example {i}",
            # The last of a row is the label word.
            prompt_ids=np.concatenate((start, generator.integers(3, highest, size - 1))),
            completions=words,
            label_index=i % 2,
            num_tokens_cut=0,
            target=np.eye(2)[i % 2],
        )
        for i, size in enumerate(own.tolist())
    ]


def settings_of(*, layers: str, checkpointing: bool) -> RunSettings:
    """Return the settings of the recipe, as a run has them."""
    training: dict[str, Any] = {"learning_rate": 5e-4, "batch_size": BATCH, "epochs": 1}
    training |= {"keep": "last", "save_every_steps": 10**6, "tensorboard": False}
    return settings_from_dict(
        {
            "method": {"name": "label_words", "loss": "vocabulary"},
            "model": {"name": "random", "dtype": "bfloat16"},
            "training": training | {"gradient_checkpointing": checkpointing},
            "adapter": {"weights": "qlora", "layers": layers, "lora_dropout": 0.05},
        }
    ).resolved()


def ours(
    bench: Bench,
    base: LoadedModel,
    shape: Any,  # noqa: ANN401 - a configuration of transformers
    *,
    layers: str = "all",
    checkpointing: bool = False,
) -> dict[str, Any]:
    """Train by our loop; set the memory beside what the planner foretells."""
    items = examples(bench)
    settings = settings_of(layers=layers, checkpointing=checkpointing)
    account = MemoryAccount(bench.device)
    weights = account.current()
    adapted = AdaptedModel(base, settings)
    adapted.make_trainable()
    steps: list[Mapping[str, Any]] = []

    def show(record: Mapping[str, Any]) -> None:
        if record["kind"] == "step":
            steps.append(record)

    loss = LabelWordLoss(base.tree, [0, 1], over="vocabulary")
    keeping = time.perf_counter()
    if base.tree.first_trained:
        base.tree.keep_states(memory_bytes=10**10, folder=Path("states"))
        for fixed in loss.fixed_trees(items, TOKEN_BUDGET):
            base.tree.keep_tree(fixed.tree, prefix=fixed.prefix)
    bench.wait()
    keeping = time.perf_counter() - keeping
    sft.train_items(adapted, loss, items, settings, show=show)
    peak = account.peak()
    if checkpointing:
        base.tree.model.gradient_checkpointing_disable()
    adapted.release()
    ends = [record["seconds"] for record in steps]
    seconds = np.diff([0.0, *ends])[WARMUP:]
    plan = make_plan(
        settings,
        find_card("h200"),
        LabelWorkload(items, len(items), "CoLA's lengths", [0, 1], SHARED),
        config=shape,
        source="made here",
    )
    foretold = plan.memory.peak_bytes
    return {
        "step_seconds": round(float(statistics.median(seconds)), 4),
        "keeping_seconds": round(keeping, 3),
        "tokens_per_step": float(np.mean([record["tokens"] for record in steps])),
        "losses": [round(record["loss"], 4) for record in steps],
        "weights_gb": round(weights / 1e9, 3),
        "peak_gb": round(peak / 1e9, 3),
        "published_gb": PUBLISHED_GB,
        "planned_peak_gb": round(foretold / 1e9, 3),
        "planned_to_measured": round(foretold / peak, 3),
        "planned_step_seconds": round(plan.time.seconds / len(steps), 4),
    }


def recipe(bench: Bench, base: LoadedModel, *, prepared: bool = False) -> dict[str, Any]:
    """Train as the published recipe does."""
    items = examples(bench)
    items = [items[i] for i in sft.training_order(len(items), 0)]  # that of our loop
    rows = [np.concatenate((i.prompt_ids, i.completions[i.label_index or 0])) for i in items]
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    account = MemoryAccount(bench.device)
    with base.tree.plain_attention() as model:
        if prepared:
            model = prepare_model_for_kbit_training(
                model, gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        peer = PeerRecipe.over(model, length=LONGEST, total_steps=len(batches))
        seconds, losses = [], []
        for batch in batches:
            started = time.perf_counter()
            losses.append(round(peer.step(batch), 4))
            bench.wait()
            seconds.append(time.perf_counter() - started)
        peak = account.peak()
        peer.model.unload()
    return {
        "step_seconds": round(statistics.median(seconds[WARMUP:]), 4),
        "tokens_per_step": BATCH * LONGEST,
        "losses": losses,
        "peak_gb": round(peak / 1e9, 3),
        "published_gb": PUBLISHED_GB,
    }
