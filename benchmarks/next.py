"""How many labels each strategy of `taskfit next` needs, by simulation on real sets.

    TASKFIT_DATA=... python benchmarks/next.py --work work/next --out results/labels/next.json

All labels of a pool are known and are handed out as they are asked for: 50 drawn at random, then
batches of 50. After each batch a logistic regression is fitted to frozen MiniLM embeddings and
measured on test texts. What counts is how many labels it takes to be as good as with 1,000 labels
drawn at random. Without a model (`cold`), the first batches themselves are chosen.

Each (set, strategy, seed) is one file in the work folder; the same command goes on behind them.
Sets that `--out` has already, and `--sets` does not name, stay in it.
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student
from scipy.stats import ttest_1samp
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, matthews_corrcoef
from threadpoolctl import threadpool_limits

from next_data import Simulated, load_simulated
from taskfit.files import write_json_atomic
from taskfit.labels.next_choice import Choice, choose_next
from taskfit.labels.next_strategies import STRATEGIES, Pool

SETS = ("sst2", "ag_news", "banking77", "sms_spam", "cr")
# Accuracy says little where seven of eight texts are of one class.
METRICS = {"sms_spam": "mcc"}
BATCH, GOAL, LAST_RANDOM, LAST_COLD = 50, 1_000, 1_300, 200
STRENGTH = 10.0  # inverse regularisation, on embeddings of length 1
CONTENDERS: dict[str, Choice] = {
    **{name: Choice(name, random_share=0) for name in STRATEGIES},
    "margin, balanced": Choice("margin", random_share=0, balance=True),
    "margin, a fifth random": Choice("margin", random_share=0.2),
    "badge, balanced": Choice("badge", random_share=0, balance=True),
    "badge, a fifth random": Choice("badge", random_share=0.2),
}
COLD = ("random", "k-center", "typiclust")


Predict = Callable[[np.ndarray], np.ndarray]


def fit(simulated: Simulated, labelled: np.ndarray) -> Predict:
    """Fit to labelled texts of the pool; return what gives probabilities of all labels, (N, L)."""
    fitted = LogisticRegression(C=STRENGTH, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few labels, many classes
        fitted.fit(simulated.pool[labelled], simulated.pool_labels[labelled])

    def predict(features: np.ndarray) -> np.ndarray:
        found = np.zeros((len(features), len(simulated.labels)))
        found[:, fitted.classes_] = fitted.predict_proba(features)
        return found

    return predict


def measure(simulated: Simulated, predict: Predict, num_labels: int) -> dict[str, float]:
    """Return how good a fit is on the test texts."""
    answers = predict(simulated.test).argmax(axis=1)
    return {
        "labels": num_labels,
        "accuracy": float(accuracy_score(simulated.test_labels, answers)),
        "mcc": float(matthews_corrcoef(simulated.test_labels, answers)),
    }


def simulate(
    simulated: Simulated, choice: Choice, seed: int, *, last: int, cold: bool
) -> dict[str, Any]:
    """Label batch after batch; return what was measured after each, and processor seconds."""
    size, began, spent = len(simulated.pool), time.process_time(), 0.0
    labelled = np.empty(0, np.intp)
    if not cold:
        labelled = np.random.default_rng(seed).permutation(size)[:BATCH]
    curve = []
    while len(labelled) < last:
        if len(labelled):
            predict = fit(simulated, labelled)
            curve.append(measure(simulated, predict, len(labelled)))
        rest = np.setdiff1d(np.arange(size), labelled)
        known = None if cold else predict(simulated.pool[rest])
        vectors = simulated.vectors[labelled] if len(labelled) else None
        pool = Pool(len(rest), known, simulated.vectors[rest], vectors)
        own = Choice(choice.strategy, choice.random_share, choice.balance,
                     seed=1000 * seed + len(labelled))  # fmt: skip
        at = time.process_time()
        labelled = np.concatenate([labelled, rest[choose_next(pool, BATCH, own).places]])
        spent += time.process_time() - at
    curve.append(measure(simulated, fit(simulated, labelled), len(labelled)))
    whole = time.process_time() - began
    return {"curve": curve, "choosing_cpu_seconds": round(spent, 2), "cpu_seconds": round(whole, 1)}


def records(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Simulate what is not in the work folder yet; return all records."""
    found = []
    data = Path(os.environ["TASKFIT_DATA"])
    for name in arguments.sets:
        simulated = load_simulated(name, data, arguments.work, features=arguments.features)
        jobs = [
            (n, c, LAST_RANDOM if n == "random" else GOAL, False) for n, c in CONTENDERS.items()
        ]
        jobs += [(n, Choice(n, random_share=0), LAST_COLD, True) for n in COLD]
        for seed in range(arguments.seeds):
            for contender, choice, last, cold in jobs:
                what = f"{name}-{arguments.features}-{contender}-{seed}{'-cold' * cold}"
                path = (
                    arguments.work / "records" / f"{what.replace(', ', '-').replace(' ', '-')}.json"
                )
                if not path.is_file():
                    run = simulate(simulated, choice, seed, last=last, cold=cold)
                    head = {"set": name, "strategy": contender, "seed": seed, "cold": cold}
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_json_atomic(path, {**head, **run})
                    print(what, run["curve"][-1], run["cpu_seconds"], flush=True)
                found.append(json.loads(path.read_text()))
    return found


def kept(out: Path, described: dict[str, Any], sets: Sequence[str]) -> list[dict[str, Any]]:
    """Return what a result made in the same way has of other sets."""
    if not out.is_file():
        return []
    earlier = json.loads(out.read_text())
    if {name: earlier.get(name) for name in described} != described:
        return []
    seconds = {(r["set"], r["strategy"]): r["choosing_cpu_seconds"] for r in earlier["summary"]}
    return [
        {
            **one,
            "curve": [
                {"labels": BATCH * number, METRICS.get(one["set"], "accuracy"): value}
                for number, value in enumerate(one["curve"], start=1)
            ],
            "choosing_cpu_seconds": seconds[one["set"], one["strategy"]],
        }
        for one in earlier["curves"]
        if one["set"] not in sets
    ]


def smoothed(curve: list[dict[str, float]], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and what a curve that never falls says of them."""
    labels = np.array([point["labels"] for point in curve], float)
    values = np.array([point[metric] for point in curve])
    return labels, IsotonicRegression().fit(labels, values).predict(labels)


def needed(curve: list[dict[str, float]], metric: str, target: float) -> float | None:
    """Return the labels at which the smoothed curve reaches a target; None: it does not."""
    labels, values = smoothed(curve, metric)
    if values[-1] < target:
        return None
    at = int(np.argmax(values >= target))
    if at == 0:
        return float(labels[0])
    part = (target - values[at - 1]) / (values[at] - values[at - 1])
    return float(labels[at - 1] + part * (labels[at] - labels[at - 1]))


def half_width(values: np.ndarray) -> float:
    """Return half of the 95 % t-interval of a mean over seeds."""
    if len(values) < 2:
        return float("nan")
    return float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each set and strategy.

    `needed` is the mean over seeds of the labels needed; a seed that did not get there by 1,000
    counts as 1,000 and in `not_reached`. `gain` is the mean lead over random labelling from 100 to
    1,000 labels, seed by seed.
    """
    rows = []
    warm = [one for one in found if not one["cold"]]
    for name in dict.fromkeys(one["set"] for one in warm):
        metric = METRICS.get(name, "accuracy")
        own = [one for one in warm if one["set"] == name]
        base = {one["seed"]: one["curve"] for one in own if one["strategy"] == "random"}
        at_goal = [
            dict(zip(*smoothed(curve, metric), strict=True))[GOAL] for curve in base.values()
        ]
        target = float(np.mean(at_goal))
        for contender in dict.fromkeys(one["strategy"] for one in own):
            runs = [one for one in own if one["strategy"] == contender]
            counts = [needed(one["curve"], metric, target) for one in runs]
            most = LAST_RANDOM if contender == "random" else GOAL
            filled = np.array([most if count is None else count for count in counts])
            gains = np.array([
                np.mean([
                    mine[metric] - other[metric]
                    for mine, other in zip(one["curve"], base[one["seed"]], strict=False)
                    if 100 <= mine["labels"] <= GOAL
                ])
                for one in runs
            ])  # fmt: skip
            rows.append({
                "set": name, "metric": metric, "target": round(target, 4), "strategy": contender,
                "seeds": len(runs), "needed": round(float(filled.mean())),
                "needed_half_width": round(half_width(filled)),
                "not_reached": sum(count is None for count in counts),
                "gain": round(float(gains.mean()), 4),
                "gain_half_width": round(half_width(gains), 4),
                "choosing_cpu_seconds": round(
                    float(np.mean([one["choosing_cpu_seconds"] for one in runs])), 2
                ),
            })  # fmt: skip
    return rows


def leads(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return how far strategies lead random labelling and margin, draw by draw over all sets.

    The lead of a draw is the mean over 100 to 1,000 labels; p is that of a paired t test.
    """
    scores: dict[str, dict[tuple[str, int], float]] = {}
    for one in found:
        if not one["cold"]:
            metric = METRICS.get(one["set"], "accuracy")
            values = [p[metric] for p in one["curve"] if 100 <= p["labels"] <= GOAL]
            scores.setdefault(one["strategy"], {})[one["set"], one["seed"]] = np.mean(values)
    rows = []
    for reference in ("random", "margin"):
        for contender in [name for name in scores if name != reference]:
            lead = np.array([scores[contender][at] - x for at, x in scores[reference].items()])
            if lead.any():
                rows.append({
                    "strategy": contender, "over": reference, "lead": round(float(lead.mean()), 4),
                    "draws": len(lead), "ahead": int((lead > 0).sum()),
                    "p_value": round(float(ttest_1samp(lead, 0).pvalue), 4),
                })  # fmt: skip
    return rows


def cold_summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each set, strategy without a model, and number of first labels."""
    rows = []
    cold = [one for one in found if one["cold"]]
    for name, contender in dict.fromkeys((one["set"], one["strategy"]) for one in cold):
        metric = METRICS.get(name, "accuracy")
        runs = [one for one in cold if (one["set"], one["strategy"]) == (name, contender)]
        for place, point in enumerate(runs[0]["curve"]):
            values = np.array([one["curve"][place][metric] for one in runs])
            rows.append({"set": name, "metric": metric, "strategy": contender,
                         "labels": point["labels"], "mean": round(float(values.mean()), 4),
                         "half_width": round(half_width(values), 4)})  # fmt: skip
    return rows


def tables(rows: list[dict[str, Any]], cold: list[dict[str, Any]]) -> str:
    """Return both summaries as Markdown tables."""
    sets = list(dict.fromkeys(row["set"] for row in rows))
    cells = {(row["strategy"], row["set"]): row for row in rows}
    heads = [f"{s} ({cells['random', s]['target']:.3f})" for s in sets]
    lines = [
        f"| strategy | {' | '.join(heads)} | mean | lead over random |",
        "|---" * (len(sets) + 3) + "|",
    ]
    for contender in dict.fromkeys(row["strategy"] for row in rows):
        own = [cells[contender, s] for s in sets]
        shown = [
            f"{'>= ' * bool(r['not_reached'])}{r['needed']:,} +-{r['needed_half_width']:,}"
            for r in own
        ]
        mean = np.mean([r["needed"] for r in own])
        lead = np.mean([r["gain"] for r in own])
        lines.append(f"| {contender} | {' | '.join(shown)} | {mean:,.0f} | {lead:+.3f} |")
    sizes = sorted({row["labels"] for row in cold})
    lines += [
        "",
        f"| without a model | {' | '.join(f'{n} labels' for n in sizes)} |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for contender in dict.fromkeys(row["strategy"] for row in cold):
        means = [
            np.mean([r["mean"] for r in cold if (r["strategy"], r["labels"]) == (contender, n)])
            for n in sizes
        ]
        lines.append(f"| {contender} | {' | '.join(f'{m:.3f}' for m in means)} |")
    return "\n".join(lines)


def main() -> None:
    """Simulate, summarise, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="Folder of features and records.")
    parser.add_argument("--out", type=Path, default=Path("results/labels/next.json"))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--features", default="minilm", choices=("minilm", "both"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    described = {"batch": BATCH, "goal": GOAL, "features": arguments.features, "strength": STRENGTH}
    with threadpool_limits(1):
        found = [*kept(arguments.out, described, arguments.sets), *records(arguments)]
    rows, cold = summary(found), cold_summary(found)
    curves = [
        {k: one[k] for k in ("set", "strategy", "seed", "cold")}
        | {"curve": [round(p[METRICS.get(one["set"], "accuracy")], 4) for p in one["curve"]]}
        for one in found
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"summary": rows, "leads": leads(found), "cold": cold, "curves": curves}
    write_json_atomic(arguments.out, {**described, **result})
    print(tables(rows, cold))


if __name__ == "__main__":
    main()
