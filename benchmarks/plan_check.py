"""Predicted memory against measured memory, on a CPU with the packaged model.

    python benchmarks/plan_check.py --out results/benchmarks/plan_check.json
    python benchmarks/plan_check.py --methods sft,dpo --instructions rows.json --preferences p.json

Each configuration takes two optimizer steps in a process of its own, measured by the memory account
that a run uses (resident memory of the process, peaks included). Before, a model of one layer does
the same there, so that the libraries' own memory (code, threads, kernels made on the spot) is not
charged to the model. The prediction is made from the settings, the model's configuration and the
token counts alone. The rows of sft and dpo are real ones, from --instructions and --preferences,
as many as one step takes. With --mapped every configuration is also measured with each tensor
mapped by itself (MALLOC_MMAP_THRESHOLD_), where resident memory is what lives in tensors and
nothing else; the difference is what glibc's heap leaves unused between tensors.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from machine import describe
from taskfit.methods.scoring import token_log_probs
from taskfit.methods.sft import sequence_log_probs
from taskfit.models.adapters import add_adapter, enable_gradient_checkpointing, trainable_parameters
from taskfit.models.frozen_depth import first_trained_layer
from taskfit.models.load import LoadedModel, load_model
from taskfit.models.tree_model import TreeModel
from taskfit.plan.cards import find_card
from taskfit.plan.plan import make_plan
from taskfit.plan.shapes import find_config
from taskfit.plan.tokens import LabelWorkload, Workload, made_workload
from taskfit.plan.tuning import RowWorkload, made_rows, real_rows, texts_of
from taskfit.runs.tuning.data import prepare_tuning
from taskfit.runs.tuning.model import TunedModel
from taskfit.settings import RunSettings
from taskfit.settings_file import load_settings
from taskfit.training.memory import MemoryAccount
from taskfit.training.optim import MasterOptimizer

WEIGHTS = ("lora", "qlora", "full")
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
DTYPES_OF_TORCH = {"bfloat16": torch.bfloat16, "float32": torch.float32}
BATCH, TOKENS, SHARED = 8, 60, 20
ROWS = 24  # of sft and dpo in a step
STEPS = 2
METHODS = ("label_words", "sft", "dpo")


def settings_of(case: dict[str, Any]) -> RunSettings:
    """Return the settings of a configuration."""
    method = case.get("method", "label_words")
    flags: dict[str, Any] = {
        "model": {"device": "cpu", "dtype": DTYPES[case["dtype"]]},
        "method": {"name": method},
        # Measurements from before there was a choice of layers trained all.
        "adapter": {"weights": case["weights"], "layers": case.get("layers", "all")},
        "training": {
            "epochs": STEPS,
            "gradient_checkpointing": case["checkpointing"],
            "batch_size": BATCH if method == "label_words" else ROWS,
        },
    }
    if method == "label_words":
        flags["method"]["loss"] = "vocabulary"
    else:
        # As many rows as a step takes, so that every step is the heaviest.
        flags["data"] = {"train": case["data"], "num_train": ROWS}
    return load_settings(flags=flags).resolved()


def made_of(settings: RunSettings) -> Workload:
    """Return a batch that needs no tokenizer; prompts have a shared start."""
    if settings.method.name == "label_words":
        return made_workload(tokens=TOKENS, shared=SHARED, examples=BATCH, batch_size=BATCH)
    return made_rows(settings, tokens=TOKENS, answer_tokens=TOKENS, shared=SHARED, examples=BATCH)


def batch_of(settings: RunSettings, loaded: LoadedModel) -> Workload:
    """Return the batch that is trained on; rows are encoded as a run does it."""
    if settings.method.name == "label_words":
        return made_of(settings)
    items, _ = TunedModel(settings, loaded).encode(prepare_tuning(settings).train)
    return RowWorkload(items, len(items), "measured")


def score(tree: TreeModel, workload: Workload) -> None:
    """Score the batch as a run does before its first step."""
    if isinstance(workload, LabelWorkload):
        with torch.no_grad():
            prefix = tree.encode_prefix(workload.prefix_ids)
            token_log_probs(tree, workload.items, [[0, 1]] * BATCH, prefix=prefix)
        return
    sequence_log_probs(tree, texts_of(workload.items))


def steps(
    tree: TreeModel, settings: RunSettings, account: MemoryAccount, workload: Workload
) -> None:
    """Score the batch, then train on it, as a run does; close the account's stages."""
    score(tree, workload)
    account.stage("forward")
    add_adapter(tree.model, settings.adapter, seed=0)
    tree.freeze_below(first_trained_layer(tree.num_layers, settings.adapter.trained_layers))
    tree.prepare_training()
    if settings.training.gradient_checkpointing:
        enable_gradient_checkpointing(tree.model)
    account.stage("adapter")
    optimizer = MasterOptimizer(trainable_parameters(tree.model), settings.training)
    objective = workload.objective(tree, settings)
    if tree.first_trained:
        tree.keep_states(memory_bytes=10**9, folder=Path("states"))
        for fixed in objective.fixed_trees(workload.items, 2048):
            tree.keep_tree(fixed.tree, prefix=fixed.prefix)
    tree.model.train()
    for _ in range(STEPS):
        for piece in objective.plan(workload.items, 2048):
            loss = objective.loss_sum([workload.items[i] for i in piece]) / BATCH
            loss.backward()
            del loss
            optimizer.collect_gradients()
        optimizer.clip(1.0)
        optimizer.step(1e-4)
    account.stage("training")


def warm_up(settings: RunSettings) -> None:
    """Run a model of one layer, so that everything is imported and running."""
    config = LlamaConfig(
        vocab_size=2000,  # token ids of made examples count upwards
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=DTYPES_OF_TORCH[settings.model.dtype])
    held = "lora" if settings.adapter.weights == "qlora" else settings.adapter.weights
    adapter = settings.adapter.model_copy(update={"weights": held})
    model.requires_grad_(False)
    tree = TreeModel(model.eval(), verify=False)
    settings = settings.model_copy(update={"adapter": adapter})
    steps(tree, settings, MemoryAccount(model.device), made_of(settings))
    if settings.adapter.weights == "qlora":
        import bitsandbytes  # noqa: F401 - its code is not the model's memory


def measure(case: dict[str, Any]) -> dict[str, int]:
    """Take a few steps in this process; return the memory account."""
    settings = settings_of(case)
    warm_up(settings)
    account = MemoryAccount(torch.device("cpu"))
    loaded = load_model(settings.model, quantization=settings.adapter)
    account.stage("model")
    steps(loaded.tree, settings, account, batch_of(settings, loaded))
    return account.by_stage


def predict(case: dict[str, Any]) -> dict[str, Any]:
    """Predict the same from settings, configuration and token counts."""
    settings = settings_of(case)
    config, source = find_config(settings.model.name, revision=settings.model.revision)
    rows = None if settings.method.name == "label_words" else real_rows(settings, config)
    workload = rows or made_of(settings)
    plan = make_plan(settings, find_card("cpu"), workload, config=config, source=source)
    step = plan.memory.step
    assert step is not None
    host = plan.memory.host
    return {
        "by_stage": plan.memory.by_stage,
        "peak": plan.memory.peak_bytes,
        "tensors": max(
            plan.memory.tensor_bytes + host.resident_bytes,
            plan.memory.count.weight_bytes + host.loading_bytes,
        ),
        "tokens": step.num_tokens,
    }


def measured_apart(case: dict[str, Any], **environment: str) -> dict[str, int]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    variables = {**os.environ, **environment}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=variables)
    answer: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return answer


def compare(case: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Put the prediction of a configuration beside what was measured of it.

    Args:
        case: The configuration.
        found: Memory by stage, under `measured`, and under `mapped` if that was measured too.
    """
    predicted = predict(case)
    peak = sum(found["measured"].values())
    row = {
        **case,
        "tokens": predicted["tokens"],
        "predicted_mb": round(predicted["peak"] / 1e6),
        "measured_mb": round(peak / 1e6),
        "ratio": round(predicted["peak"] / peak, 3),
        "predicted": predicted["by_stage"],
        **found,
    }
    if "mapped" in found:
        alone = sum(found["mapped"].values())
        row["predicted_tensors_mb"] = round(predicted["tensors"] / 1e6)
        row["measured_mapped_mb"] = round(alone / 1e6)
        row["ratio_mapped"] = round(predicted["tensors"] / alone, 3)
    return row


def cases(methods: Sequence[str], data: Mapping[str, str | None]) -> list[dict[str, Any]]:
    """Return the configurations.

    Args:
        methods: Which methods.
        data: The file of rows by method, for sft and dpo.
    """
    found: list[dict[str, Any]] = [
        {"weights": weights, "dtype": dtype, "checkpointing": checkpointing}
        for weights, dtype, checkpointing in itertools.product(WEIGHTS, DTYPES, (False, True))
        if "label_words" in methods
    ]
    found += [
        {"weights": "lora", "dtype": dtype, "checkpointing": False, "layers": "half"}
        for dtype in DTYPES
        if "label_words" in methods
    ]
    return found + [
        {"method": method, "data": path, "weights": "lora", "dtype": dtype, "checkpointing": False}
        for method, path in data.items()
        for dtype in DTYPES
        if method in methods and path is not None
    ]


def main() -> None:
    """Compare every configuration; print a table and store JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--mapped", action="store_true", help="also with tensors mapped singly")
    parser.add_argument("--again", type=Path, help="predict against measurements in this file")
    parser.add_argument("--methods", default=",".join(METHODS), help="which of these")
    parser.add_argument("--instructions", help="rows for sft; without them it is left out")
    parser.add_argument("--preferences", help="pairs for dpo; without them it is left out")
    parser.add_argument("--case", help="measure this configuration (JSON) in this process")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(json.loads(arguments.case))))
        return
    before = json.loads(arguments.again.read_text()) if arguments.again else None
    rows: list[dict[str, Any]] = []
    data = {"sft": arguments.instructions, "dpo": arguments.preferences}
    chosen = cases(arguments.methods.split(","), data)
    for case in before["configurations"] if before else chosen:
        if before:
            found = {key: case[key] for key in ("measured", "mapped") if key in case}
            keys = ("method", "weights", "dtype", "checkpointing", "layers")
            case = {key: case[key] for key in keys if key in case}
            if "method" in case:
                case["data"] = data[case["method"]]
        else:
            found = {"measured": measured_apart(case)}
            if arguments.mapped:
                found["mapped"] = measured_apart(case, MALLOC_MMAP_THRESHOLD_="65536")
        # Where the rows lie on this machine is nobody else's matter.
        rows.append({k: v for k, v in compare(case, found).items() if k != "data"})
        numbers = [value for value in rows[-1].values() if not isinstance(value, dict)]
        print(*(f"{value!s:>6}" for value in numbers), sep="  ", flush=True)
        machine = before["machine"] if before else describe()
        result = {"machine": machine, "model": "smollm2-135m", "configurations": rows}
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
