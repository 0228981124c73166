"""Seconds of an optimizer step of the CoLA recipe, by how many layers are trained.

    python benchmarks/frozen_depth.py --out results/benchmarks/frozen_depth.json

Contenders take their steps in turn on the same batches, so that other work meets all. `kept` means
that what the layers below give out has been computed before, as in every epoch but the first pass.
Needs TASKFIT_DATA with CoLA.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch

from machine import describe
from recipe import BATCH, encode, timed
from taskfit.methods.label_words import LabelWordLoss
from taskfit.models.adapters import add_adapter, trainable_parameters
from taskfit.models.frozen_depth import first_trained_layer
from taskfit.models.load import load_model
from taskfit.settings import AdapterSettings, ModelSettings, TrainingSettings
from taskfit.tasks import EncodedExample
from taskfit.training.optim import MasterOptimizer

# Name -> layers in training, dropout of the adapters, whether states are kept.
CONTENDERS: dict[str, tuple[int | str, float, bool]] = {
    "all layers, dropout .05": ("all", 0.05, False),
    "all layers": ("all", 0.0, False),
    "upper half": ("half", 0.0, False),
    "upper half, kept": ("half", 0.0, True),
    "top third, kept": (10, 0.0, True),
}
RATE = 5e-4


class Contender:
    """A model with adapters on some of its layers."""

    def __init__(self, name: str, items: list[EncodedExample], folder: Path) -> None:
        """Load a model, and run what can be run once."""
        layers, dropout, keeps = CONTENDERS[name]
        self.tree = load_model(ModelSettings(dtype="bfloat16")).tree
        settings = AdapterSettings.model_validate({"layers": layers, "lora_dropout": dropout})
        add_adapter(self.tree.model, settings, seed=0)
        self.tree.freeze_below(first_trained_layer(self.tree.num_layers, layers))
        self.tree.prepare_training()
        self.loss = LabelWordLoss(self.tree, [0, 1], over="vocabulary")
        self.optimizer = MasterOptimizer(
            trainable_parameters(self.tree.model), TrainingSettings(learning_rate=RATE)
        )
        if keeps:
            self.tree.keep_states(memory_bytes=10**9, folder=folder)
            for fixed in self.loss.fixed_trees(items, 2048):
                self.tree.keep_tree(fixed.tree, prefix=fixed.prefix)
        self.tree.model.train()

    def step(self, items: list[EncodedExample]) -> None:
        """Take one optimizer step."""
        torch.manual_seed(0)
        (self.loss.loss_sum(items) / len(items)).backward()
        self.optimizer.collect_gradients()
        self.optimizer.clip(1.0)
        self.optimizer.step(RATE)


def main() -> None:
    """Time the contenders in turn; print and store JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    _, train, _ = encode(None)
    batches = [train[i * BATCH : (i + 1) * BATCH] for i in range(arguments.steps + 2)]
    used = [item for batch in batches for item in batch]
    with tempfile.TemporaryDirectory() as folder:
        contenders = {name: Contender(name, used, Path(folder)) for name in CONTENDERS}
        seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for place, batch in enumerate(batches):
            for name, contender in contenders.items():
                taken = timed(lambda c=contender, b=batch: c.step(b))
                if place >= 2:  # the first steps allocate, and generate code for new shapes
                    seconds[name].append(taken)
    first, *_ = CONTENDERS
    result = {
        "machine": describe(),
        "steps": arguments.steps,
        "median_seconds": {n: round(statistics.median(s), 4) for n, s in seconds.items()},
        "ratio_to_first": {
            n: round(statistics.median(a / b for a, b in zip(seconds[first], s, strict=True)), 2)
            for n, s in seconds.items()
        },
    }
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
