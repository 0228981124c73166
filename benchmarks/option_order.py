"""What the order of the options in a prompt decides, before training and after it.

    TASKFIT_DATA=../shared/data python benchmarks/option_order.py

For three sets it asks SmolLM2-135M about 120 test texts behind up to six orders of the options, as
it is and trained on 256 labels with `label_words` (two epochs in steps of four), in the given order
or with `method.shuffle_options`. Of each it records the answers that change, the accuracy in the
given order, in the best and the worst one, and of the mean over as many orders as there are options
(`method.option_orders`). Cells that stand in the record are not run again.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import log_loss

from defaults_data import load_table, write_csv
from taskfit.files import write_json_atomic
from taskfit.methods.in_context import InContext
from taskfit.methods.label_words import LabelWords
from taskfit.runs.classifier import Classifier
from taskfit.runs.fit import fit
from taskfit.runs.prepare import prepare_data
from taskfit.settings import RunSettings
from taskfit.settings_file import settings_from_dict
from taskfit.stats.order_effect import order_effect
from taskfit.tasks import option_orders

LABELS, TESTS, ORDERS = 256, 120, 6
FEW = 4  # texts that the run itself measures, beside this
# Small steps: few labels are learned by their number, and each costs its texts alone.
TRAINING = {"epochs": 2, "batch_size": 4}
END = "\nOptions: {options}\nAnswer:{label}"
# Set -> label words in the given order, and the line.
SETS = {
    "sst2": (
        {"negative": " negative", "positive": " positive"},
        "Text: {text}\nQuestion: What is the sentiment of the text?" + END,
    ),
    "snli": (
        {"entailment": " yes", "neutral": " maybe", "contradiction": " no"},
        "Text: {premise}\nStatement: {hypothesis}\nQuestion: Does the statement follow?" + END,
    ),
    "ag_news": (
        {"World": " World", "Sports": " Sports", "Business": " Business", "Sci/Tech": " Science"},
        "Text: {text}\nQuestion: Which topic is the text about?" + END,
    ),
}
WAYS = {
    "zero-shot": {"name": "in_context"},
    "trained": {"name": "label_words"},
    "trained shuffled": {"name": "label_words", "shuffle_options": True},
}


def cell(name: str, way: str, seed: int) -> dict[str, Any]:
    """Fit and ask in all orders; return what is recorded."""
    started = time.process_time()
    table = load_table(name, Path(os.environ["TASKFIT_DATA"]))
    words, line = SETS[name]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        task = {"name": name, "text": table.columns, "label": "label", "template": {"line": line}}
        task["labels"] = [{"name": label, "words": [word]} for label, word in words.items()]
        (folder / "task.yaml").write_text(json.dumps(task), encoding="utf-8")
        write_csv(folder / "train.csv", table.draw(LABELS, seed=seed))
        write_csv(folder / "test.csv", table.test)
        fractions = {"validation_fraction": 0.0, "test_fraction": 0.0}
        settings = settings_from_dict(
            {
                "seed": seed,
                "task": {"name": str(folder / "task.yaml")},
                "data": {
                    "train": str(folder / "train.csv"),
                    "tests": {"test": str(folder / "test.csv")},
                    "max_test": FEW,
                    **fractions,
                },
                "method": {"num_demonstrations": 0, **WAYS[way]},
                **({} if way == "zero-shot" else {"training": TRAINING}),
            }
        )
        run = fit(settings, folder / "run", baselines=False)
        return {
            "set": name,
            "way": way,
            "seed": seed,
            **measured(run.fitted, with_tests(settings)),
            "processor_seconds": round(time.process_time() - started),
        }


def with_tests(settings: RunSettings) -> RunSettings:
    """Return settings with all texts that are asked about."""
    data = settings.data.model_copy(update={"max_test": TESTS})
    return settings.model_copy(update={"data": data})


def measured(classifier: Classifier, settings: RunSettings) -> dict[str, Any]:
    """Return accuracies and log losses by order, and what orders change."""
    assert isinstance(classifier.method, InContext | LabelWords)
    examples = prepare_data(settings).evaluations["test"]
    (found,) = classifier.method.by_order(examples, ORDERS)  # (O, N, L)
    gold, task = classifier.only.gold(examples), classifier.task
    names = task.label_names
    listed = [one.option_names for one in option_orders(task, ORDERS, seed=settings.seed)]
    orders = np.array([[names.index(label) for label in order] for order in listed])
    effect = order_effect(found, orders, gold=gold, seed=settings.seed)
    mean = found[: len(names)].mean(axis=0)
    places = range(len(names))
    return {
        "num_texts": len(examples),
        "num_orders": len(found),
        "accuracy": effect.accuracies[0],
        "worst": min(effect.accuracies),
        "best": max(effect.accuracies),
        "averaged": float((mean.argmax(axis=1) == gold).mean()),
        "log_loss": float(log_loss(gold, found[0], labels=places)),
        "log_loss_averaged": float(log_loss(gold, mean, labels=places)),
        "effect": effect.to_dict(),
    }


def main() -> None:
    """Run what the record lacks, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("results/labels/option_order.json"))
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    arguments = parser.parse_args()
    out: Path = arguments.out
    cells = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else []
    for name in arguments.sets:
        for seed in arguments.seeds:
            for way in arguments.ways:
                known = {(one["set"], one["way"], one["seed"]) for one in cells}
                if (name, way, seed) in known or (way == "zero-shot" and seed):
                    continue
                cells.append(cell(name, way, seed))
                write_json_atomic(out, cells)
                print(json.dumps({**cells[-1], "effect": None}), flush=True)
    for name in SETS:
        for way in WAYS:
            own = [one for one in cells if (one["set"], one["way"]) == (name, way)]
            if own:
                print(row(name, way, own))


def row(name: str, way: str, cells: list[dict[str, Any]]) -> str:
    """Return a row of the table: means over seeds."""

    def mean(key: str) -> float:
        return float(np.mean([one[key] for one in cells]))

    flips = np.mean([one["effect"]["flips"]["value"] for one in cells])
    moved = np.mean([one["effect"]["total_variation"]["value"] for one in cells])
    first = np.mean([one["effect"]["first"]["value"] for one in cells])
    return (
        f"| {name} | {way} | {flips:.0%} | {moved:.2f} | {first:+.0%} | {mean('accuracy'):.3f} | "
        f"{mean('worst'):.3f} to {mean('best'):.3f} | {mean('averaged'):.3f} | "
        f"{mean('log_loss'):.2f} | {mean('log_loss_averaged'):.2f} |"
    )


if __name__ == "__main__":
    main()
