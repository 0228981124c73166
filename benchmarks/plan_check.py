"""Predicted memory against measured memory, on a CPU with the packaged model.

    python benchmarks/plan_check.py --out results/benchmarks/plan_check.json

Each configuration is one `fit` of a few steps in a process of its own, measured by the run's own
memory account (resident memory of the process, peaks included). Before it, a model of one layer is
trained in the same process, so that the libraries' own memory (code, threads, kernels made on the
spot) is not charged to the model. The prediction sees settings, the model's configuration and the
texts' token lengths, nothing measured.
"""

import argparse
import csv
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from machine import describe
from taskfit.experiments import fit
from taskfit.experiments.planner import config_of, make_plan
from taskfit.experiments.planner_cards import find_card
from taskfit.experiments.planner_tokens import real_workload
from taskfit.models import packaged_folder
from taskfit.settings import RunSettings
from taskfit.settings_file import load_settings

WEIGHTS = ("lora", "qlora", "full")
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
WORDS = ("river", "garden", "teacher", "song", "bright", "stone", "window", "letter", "market")
NUM_EXAMPLES = 40


def write_table(path: Path, *, words: int) -> None:
    """Write random texts of about as many tokens as words, with one of two labels."""
    generator = np.random.default_rng(0)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for row in range(NUM_EXAMPLES):
            text = " ".join(generator.choice(WORDS, size=words))
            writer.writerow([text, ("positive", "negative")[row % 2]])


def settings_of(case: dict[str, Any], table: Path, *, model: str) -> RunSettings:
    """Return the settings of a configuration."""
    return load_settings(
        flags={
            "data": {"train": str(table), "text": ["text"], "label": "label"},
            "model": {"name": model, "device": "cpu", "dtype": DTYPES[case["dtype"]]},
            "method": {"name": "label_words", "num_demonstrations": 2, "loss": case["loss"]},
            "adapter": {"weights": case["weights"]},
            "training": {
                "gradient_checkpointing": case["checkpointing"],
                "batch_size": case["batch_size"],
                "max_steps": 2,
                "keep": "last",
                "tensorboard": False,
            },
        }
    )


def warm_up(case: dict[str, Any], folder: Path) -> None:
    """Fit a model of one layer, so that everything is imported and running."""
    table = folder / "short.csv"
    write_table(table, words=20)
    tokenizer = AutoTokenizer.from_pretrained(packaged_folder("smollm2-135m"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    fit(settings_of(case, table, model=str(folder / "tiny")), folder / "warm")


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Fit in this process; return the memory account."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        warm_up(case, folder)
        table = folder / "long.csv"
        write_table(table, words=case["words"])
        settings = settings_of(case, table, model="smollm2-135m")
        result = fit(settings, folder / "run").result
    return {"by_stage": result.memory_by_stage, "peak": result.peak_memory_bytes}


def predict(case: dict[str, Any]) -> dict[str, Any]:
    """Predict the same run from its settings, the model's configuration and token lengths."""
    with tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / "long.csv"
        write_table(table, words=case["words"])
        settings = settings_of(case, table, model="smollm2-135m")
        config, source = config_of(settings)
        workload = real_workload(settings, config)
        assert workload is not None
        plan = make_plan(settings, find_card("cpu"), workload, config=config, source=source)
    step = plan.memory.step
    assert step is not None
    return {
        "by_stage": plan.memory.by_stage,
        "peak": plan.memory.peak_bytes,
        "tokens": step.num_tokens,
    }


def compare(case: dict[str, Any]) -> dict[str, Any]:
    """Measure and predict a configuration, each in a process of its own."""
    found = {}
    for part in ("measure", "predict"):
        command = [sys.executable, __file__, "--part", part, "--case", json.dumps(case)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[part] = json.loads(done.stdout.splitlines()[-1])
    predicted, measured = found["predict"], found["measure"]
    return {
        **case,
        "tokens": predicted["tokens"],
        "predicted_mb": round(predicted["peak"] / 1e6),
        "measured_mb": round(measured["peak"] / 1e6),
        "ratio": round(predicted["peak"] / measured["peak"], 3),
        "predicted_by_stage": predicted["by_stage"],
        "measured_by_stage": measured["by_stage"],
    }


def main() -> None:
    """Compare every configuration; print a table and store JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--words", type=int, default=50, help="words of a text")
    parser.add_argument("--part", choices=["measure", "predict"], help="one part, in this process")
    parser.add_argument("--case", help="its configuration (JSON)")
    arguments = parser.parse_args()
    if arguments.part:
        part = measure if arguments.part == "measure" else predict
        print(json.dumps(part(json.loads(arguments.case))))
        return
    rows = []
    for weights, dtype, checkpointing in itertools.product(WEIGHTS, DTYPES, (False, True)):
        case = {"weights": weights, "dtype": dtype, "checkpointing": checkpointing}
        case |= {"loss": "vocabulary", "batch_size": 8, "words": arguments.words}
        rows.append(compare(case))
        shown = ("weights", "dtype", "checkpointing", "tokens", "predicted_mb", "measured_mb")
        print(*(f"{rows[-1][key]!s:>6}" for key in (*shown, "ratio")), sep="  ", flush=True)
    result = {"machine": describe(), "model": "smollm2-135m", "configurations": rows}
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
