"""Thresholds per label against one half, on texts that have one to three labels.

    TASKFIT_DATA=../shared/data python benchmarks/thresholds.py --out OUT.json
    ... --method head --seeds 1 --sets messages --out OUT.json

No set in the folder has several labels a text, so two are made of sets with one:

- messages: one to three texts of different intents of Banking77 one after the other, as in a letter
  with several concerns; 20 intents, the most frequent one seven times as frequent as the rarest.
- news: one or two stories of different sections of AG News one after the other; four sections.

Training and test texts come from the training and test part. A probe on MiniLM's features, or a
head, learns 300 texts; 25, 50, 100 or 200 further ones choose thresholds; 1,000 test texts measure.
Five draws.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from defaults_data import READERS, Row, write_csv
from taskfit.data import Example
from taskfit.runs.fit import fit
from taskfit.settings_file import load_settings
from taskfit.stats.arrays import BoolArray, FloatArray
from taskfit.stats.multi_label import THRESHOLD, answer_metrics
from taskfit.stats.thresholds import PULL, Goal, fit_thresholds

TARGET = 0.9
NUM_TRAIN, NUM_TEST, NUM_VALIDATION = 300, 1000, (25, 50, 100, 200)
GOALS: tuple[Goal, ...] = ("f1", "precision", "recall")
# Of each number of texts joined, from one on; and by what power of its rank a label is rarer.
METHODS = {"probe": {"name": "probe", "features": "minilm"}, "head": {"name": "head"}}
SETS = {
    "messages": ("banking77", 20, (0.4, 0.4, 0.2), 0.65),
    "news": ("ag_news", 4, (0.5, 0.5), 0.0),
}


def joined(
    rows: Sequence[Row],
    labels: Sequence[str],
    shares: Sequence[float],
    power: float,
    count: int,
    generator: np.random.Generator,
) -> list[Row]:
    """Return different texts made of those of different labels, with all their labels."""
    texts = {
        label: [row["text"].strip() for row in rows if row["label"] == label] for label in labels
    }
    weights = np.arange(1, len(labels) + 1) ** -power
    found: dict[str, Row] = {}
    while len(found) < count:
        number = 1 + generator.choice(len(shares), p=shares)
        own = generator.choice(labels, size=number, replace=False, p=weights / weights.sum())
        text = " ".join(str(generator.choice(texts[label])) for label in own)
        found[text] = {"text": text, "label": "|".join(sorted(own))}
    return list(found.values())


def present(rows: Sequence[Row], names: Sequence[str]) -> BoolArray:
    """Return which labels hold, (N, L)."""
    return np.array([[name in row["label"].split("|") for name in names] for row in rows])


def measured(given: BoolArray, gold: BoolArray, reached: BoolArray, goal: str) -> dict[str, Any]:
    """Return metrics, and how many labels reach the target on validation texts and on test."""
    found: dict[str, Any] = answer_metrics(given, gold)
    if goal in ("precision", "recall"):
        right = (given & gold).sum(axis=0)
        share = right / np.maximum((given if goal == "precision" else gold).sum(axis=0), 1)
        found["reached"] = float(reached.mean())
        found["mean_where_reached"] = float(share[reached].mean()) if reached.any() else None
    return found


def one_draw(name: str, seed: int, folder: Path, method: str) -> list[dict[str, Any]]:
    """Fit on one draw and measure all conditions."""
    source, count, shares, power = SETS[name]
    _, pool, test = READERS[source](Path(os.environ["TASKFIT_DATA"]))
    frequent = sorted(
        {row["label"] for row in pool}, key=lambda x: (-sum(r["label"] == x for r in pool), x)
    )
    labels = frequent[:count]
    # The test texts are the same in every draw.
    rows = joined(
        pool,
        labels,
        shares,
        power,
        NUM_TRAIN + max(NUM_VALIDATION),
        np.random.default_rng([seed, 1]),
    )
    tests = joined(test, labels, shares, power, NUM_TEST, np.random.default_rng(20140602))
    train, held = rows[:NUM_TRAIN], rows[NUM_TRAIN:]
    settings = load_settings(
        flags={
            "seed": seed,
            "data": {
                "train": str(write_csv(folder / "train.csv", train)),
                "test_fraction": 0,
                "validation_fraction": 0,
                "text": ["text"],
            },
            "task": {"multi_label": True},
            "method": METHODS[method],
            "calibration": {"thresholds": "none"},
        }
    )
    fitted = fit(settings, folder / "run", baselines=False).fitted
    names = fitted.task.label_names
    scores, on_test = (
        fitted.probabilities([Example(str(i), {"text": row["text"]}) for i, row in enumerate(one)])
        for one in (held, tests)
    )
    gold, gold_test = present(held, names), present(tests, names)
    return [
        {"set": name, "seed": seed, "num_validation": size, "goal": goal, **found}
        for size in NUM_VALIDATION
        for goal, found in conditions(scores[:size], gold[:size], on_test, gold_test).items()
    ]


def conditions(
    scores: FloatArray, gold: BoolArray, on_test: FloatArray, gold_test: BoolArray
) -> dict[str, Any]:
    """Return metrics on the test texts by what the thresholds are for."""
    nowhere = np.zeros(gold.shape[1], bool)
    found = {"half": measured(on_test >= THRESHOLD, gold_test, nowhere, "half")}
    for goal in GOALS:
        chosen = fit_thresholds(scores, gold, goal=goal, target=TARGET)
        found[goal] = measured(on_test >= chosen.values, gold_test, chosen.is_reached, goal)
    # As thresholds for F1 are mostly chosen: each label by itself, however few texts have it.
    alone = [
        fit_thresholds(s[:, None], g[:, None], goal="f1").values[0]
        for s, g in zip(scores.T, gold.T, strict=True)
    ]
    found["f1, each label alone"] = measured(on_test >= np.array(alone), gold_test, nowhere, "f1")
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return means over draws."""
    lines = []
    for key in dict.fromkeys((r["set"], r["num_validation"], r["goal"]) for r in rows):
        own = [r for r in rows if (r["set"], r["num_validation"], r["goal"]) == key]
        names = [n for n in own[0] if n not in ("set", "seed", "num_validation", "goal")]
        means = {n: [r[n] for r in own if r[n] is not None] for n in names}
        told = "  ".join(f"{n} {np.mean(v):.3f}" for n, v in means.items() if v)
        lines.append(f"{key[0]:<9}{key[1]:>4}  {key[2]:<21} {told}")
    return "\n".join(lines)


def main() -> None:
    """Measure all draws and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--method", choices=list(METHODS), default="probe")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    started = time.process_time()
    for name in given.sets:
        for seed in range(given.seeds):
            with tempfile.TemporaryDirectory() as folder:
                rows += one_draw(name, seed, Path(folder), given.method)
            print(f"{name}, draw {seed}: {time.process_time() - started:,.0f} processor seconds")
    print(table(rows))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "method": given.method,
        "target": TARGET,
        "pull": PULL,
        "num_train": NUM_TRAIN,
        "num_test": NUM_TEST,
    }
    rounded = [
        {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows
    ]
    lines = ",\n".join(json.dumps(row) for row in rounded)
    given.out.write_text(f'{{"settings": {json.dumps(about)},\n"rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
