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
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from machine import describe
from taskfit.experiments import fit
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
                "max_steps": 3,
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


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
