"""The numbers behind every table and figure of a comparison, as tables.

Each function returns the data frame that is drawn and written to `tables/`; nothing is computed
while drawing. Costs are means over draws; scores are of the task's metric.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taskfit.report.evidence import Evidence, FinishedRun, FloatArray
from taskfit.report.run_plots import smoothed
from taskfit.report.systems import (
    AnswerStore,
    SizeComparison,
    System,
    flat_settings,
    score_of,
)
from taskfit.stats import reliability
from taskfit.stats.abstention import risk_coverage

DEMONSTRATION_KEYS = (
    "method.num_demonstrations",
    "method.demonstrations",
    "method.retriever",
    "method.num_orders",
)
TEMPLATE_KEYS = (
    "task.instruction",
    "task.line",
    "task.separator",
    "task.label_words",
    "task.chat",
)
# A point every so many answers is enough for a curve.
CURVE_POINTS = 200


def metric_of(evidence: Evidence) -> str:
    """Return the metric that is reported: the task's, or exactly right sets of labels."""
    return "accuracy" if evidence.multi_label else evidence.metric


def run_table(systems: Sequence[System]) -> pd.DataFrame:
    """Return a row for every run and evaluation set: scores, costs, and how to run it again.

    Processor seconds are missing where they were not recorded, latency where it was not measured.
    """
    rows = []
    for system in systems:
        for run in system.runs:
            result = run.result
            for name, found in result.evaluations.items():
                rows.append(
                    {
                        "system": system.name,
                        "method": result.method,
                        "model": result.model,
                        "size": run.size,
                        "draw": run.seed,
                        "evaluation": name,
                        "num_examples": found.num_examples,
                        "accuracy": found.accuracy,
                        "mcc": found.mcc,
                        "macro_f1": found.macro_f1,
                        "log_loss": found.log_loss,
                        "ece": found.ece,
                        "num_unanswered": found.num_unanswered,
                        "training_seconds": result.training_seconds,
                        "total_seconds": result.whole_seconds,
                        "processor_seconds": result.cpu_seconds or np.nan,
                        "peak_memory_bytes": result.peak_memory_bytes,
                        "latency_seconds": np.nan
                        if result.latency_seconds is None
                        else result.latency_seconds,
                        "command": rerun_command(run),
                    }
                )
    return pd.DataFrame(rows)


def rerun_command(run: FinishedRun) -> str:
    """Return the command that makes a run again, given in the comparison's folder."""
    return f"taskfit fit --config runs/{run.folder.name}/settings.yaml --out NEW"


def score_table(evidence: Evidence, systems: Sequence[System], store: AnswerStore) -> pd.DataFrame:
    """Return the mean score of every system, size and evaluation set over its own draws.

    The 95 % interval is over draws and examples (with one draw, over examples); `sd_draws` is
    what another draw changes, `sd_examples` what other examples would.
    """
    metric = metric_of(evidence)
    rows = []
    for system in systems:
        for size in system.sizes:
            for name in evidence.evaluations:
                runs = [r for r in system.at(size).values() if name in r.result.evaluations]
                found = score_of(runs, name, metric=metric, store=store) if runs else None
                if found is None:
                    continue
                score = found.scores[0]
                between = score.between_draws
                rows.append(
                    {
                        "system": system.name,
                        "size": size,
                        "evaluation": name,
                        "metric": metric,
                        "score": score.mean,
                        "low": score.interval[0],
                        "high": score.interval[1],
                        "num_draws": found.num_draws,
                        "num_examples": found.num_examples,
                        "sd_draws": np.nan if between is None else between**0.5,
                        "sd_examples": score.within_draws**0.5,
                    }
                )
    columns = ["system", "size", "evaluation", "metric", "score", "low", "high", "num_draws"]
    columns += ["num_examples", "sd_draws", "sd_examples"]
    return pd.DataFrame(rows, columns=columns)


def comparison_table(compared: Sequence[SizeComparison]) -> pd.DataFrame:
    """Return a row for every comparison and system: score, and paired difference to the best."""
    rows: list[dict[str, Any]] = []
    for one in compared:
        found = one.comparison
        differences = {difference.method: difference for difference in found.differences}
        for score in found.scores:
            row: dict[str, Any] = {
                "size": one.size,
                "evaluation": one.evaluation,
                "system": score.method,
                "metric": found.metric,
                "score": score.mean,
                "low": score.interval[0],
                "high": score.interval[1],
                "is_best": score.method == found.best,
                "draws": " ".join(map(str, one.draws)),
                "num_examples": found.num_examples,
            }
            difference = differences.get(score.method)
            if difference is not None:
                row |= {
                    "difference": difference.difference,
                    "difference_low": difference.interval[0],
                    "difference_high": difference.interval[1],
                    "p_value": difference.p_value,
                    "adjusted_p_value": difference.adjusted_p_value,
                    "test": difference.test,
                }
            rows.append(row)
    columns = ["size", "evaluation", "system", "metric", "score", "low", "high", "is_best", "draws"]
    columns += ["num_examples", "difference", "difference_low", "difference_high", "p_value"]
    return pd.DataFrame(rows, columns=[*columns, "adjusted_p_value", "test"])


def history_table(systems: Sequence[System]) -> pd.DataFrame:
    """Return the training loss of every trained run by optimizer step, as it is and smoothed."""
    parts = []
    for system in systems:
        for run in system.runs:
            steps = [record for record in run.history() if record.get("kind") == "step"]
            if not steps:
                continue
            losses = [float(record["loss"]) for record in steps]
            parts.append(
                pd.DataFrame(
                    {
                        "system": system.name,
                        "size": run.size,
                        "draw": run.seed,
                        "step": [int(record["step"]) for record in steps],
                        "loss": losses,
                        "smoothed": smoothed(losses),
                    }
                )
            )
    columns = ["system", "size", "draw", "step", "loss", "smoothed"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def costs_of(runs: pd.DataFrame) -> list[str]:
    """Return the costs to draw; seconds of the whole run by the processor where all have them.

    Other work on the machine hardly changes them, unlike seconds by the clock.
    """
    whole = "total_seconds" if runs["processor_seconds"].isna().any() else "processor_seconds"
    return ["training_seconds", whole, "peak_memory_bytes"]


def cost_table(scores: pd.DataFrame, runs: pd.DataFrame, *, evaluation: str) -> pd.DataFrame:
    """Return score and mean costs of every system and size, and which of them nothing beats.

    `best_for_COST` marks the Pareto front: no other is at least as good at no higher cost and
    better in one of the two.
    """
    own = runs[runs["evaluation"] == evaluation]
    columns = ["training_seconds", "total_seconds", "processor_seconds"]
    columns += ["peak_memory_bytes", "latency_seconds"]
    means = own.groupby(["system", "size"], sort=False)[columns].mean().reset_index()
    table = scores[scores["evaluation"] == evaluation].merge(means, on=["system", "size"])
    for cost in costs_of(runs):
        table[f"best_for_{cost}"] = pareto_front(
            table[cost].to_numpy(np.float64), table["score"].to_numpy(np.float64)
        )
    return table


def pareto_front(costs: FloatArray, scores: FloatArray) -> NDArray[np.bool_]:
    """Return which points no other beats: lower cost is better, higher score is better; (K,)."""
    no_worse = (costs[:, None] <= costs) & (scores[:, None] >= scores)  # (K, K), row against column
    better = (costs[:, None] < costs) | (scores[:, None] > scores)
    return np.asarray(~(no_worse & better).any(axis=0))


def confusion_table(
    systems: Sequence[System], size: int, evaluation: str, store: AnswerStore
) -> pd.DataFrame:
    """Return how often each label was answered with each, summed over the draws of a size.

    No answer is an empty `predicted`.
    """
    rows = []
    for system in systems:
        runs = [r for r in system.at(size).values() if evaluation in r.result.evaluations]
        if not runs:
            continue
        answers = store.of(runs, evaluation)
        num = len(answers.labels)
        cells = np.zeros((num, num + 1), np.int64)  # the last column is no answer
        for predicted in answers.predicted:
            np.add.at(cells, (answers.gold_index, predicted), 1)
        names = [*answers.labels, ""]
        rows += [
            {
                "system": system.name,
                "size": size if system.sees_labels else 0,
                "evaluation": evaluation,
                "num_draws": len(runs),
                "gold": gold,
                "predicted": predicted,
                "count": int(cells[i, j]),
            }
            for i, gold in enumerate(answers.labels)
            for j, predicted in enumerate(names)
        ]
    return pd.DataFrame(rows)


def confidence_tables(
    systems: Sequence[System], size: int, evaluation: str, store: AnswerStore
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the reliability diagram and the risk-coverage curve of systems, draws pooled."""
    bins, curves = [], []
    for system in systems:
        runs = [r for r in system.at(size).values() if evaluation in r.result.evaluations]
        if not runs:
            continue
        answers = store.of(runs, evaluation)
        probabilities = answers.probabilities.reshape(-1, len(answers.labels))
        gold = np.tile(answers.gold_index, len(runs))
        confidence, correct = probabilities.max(axis=1), answers.correct.ravel()
        answered = ~np.isnan(confidence)
        if not answered.any():
            continue
        found = reliability(probabilities[answered], gold[answered])
        columns = {"confidence": found.confidence, "accuracy": found.accuracy, "count": found.count}
        bins.append(pd.DataFrame({"system": system.name, "num_draws": len(runs), **columns}))
        curve = risk_coverage(np.minimum(confidence, 1.0), correct)
        kept = np.unique(np.linspace(0, len(curve.risk) - 1, CURVE_POINTS).round().astype(int))
        columns = {"threshold": curve.thresholds[kept], "coverage": curve.coverage[kept]}
        columns |= {"risk": curve.risk[kept]}
        about = {"system": system.name, "num_draws": len(runs), "num_examples": len(correct)}
        curves.append(pd.DataFrame({**about, "aurc": curve.aurc, **columns}))
    if not bins:
        return pd.DataFrame(), pd.DataFrame()
    return pd.concat(bins, ignore_index=True), pd.concat(curves, ignore_index=True)


def draw_table(runs: pd.DataFrame, *, metric: str) -> pd.DataFrame:
    """Return the score of each draw of every system and size that has several."""
    several = runs.groupby(["system", "size", "evaluation"])["draw"].transform("nunique") > 1
    table = runs[several].rename(columns={metric: "score", "draw": "variant"})
    table = table.assign(group=table["system"])
    return table[["group", "size", "variant", "evaluation", "score"]]


def setting_table(systems: Sequence[System], keys: Sequence[str], *, metric: str) -> pd.DataFrame:
    """Return the scores of runs that differ in nothing but some settings, a group each.

    Args:
        systems: All systems.
        keys: The settings, as `section.key`.
        metric: Which score.
    """
    groups: dict[str, list[tuple[System, FinishedRun, dict[str, Any]]]] = {}
    for system in systems:
        for run in system.runs:
            flat = flat_settings(run)
            rest = {k: v for k, v in flat.items() if k not in keys and _counts(k, run)}
            key = repr((rest, run.size, run.seed))
            groups.setdefault(key, []).append((system, run, {k: flat.get(k) for k in keys}))
    rows = []
    for members in groups.values():
        if len({repr(values) for _, _, values in members}) < 2:
            continue
        changing = [k for k in keys if len({repr(values[k]) for *_, values in members}) > 1]
        first, run, _ = members[0]
        group = f"{first.name}, draw {run.seed}" if run.size else first.name
        for system, run, values in members:
            shown = ", ".join(f"{k.split('.')[1]}={values[k]}" for k in changing)
            for name, found in run.result.evaluations.items():
                row = {"group": group, "size": run.size, "system": system.name, "variant": shown}
                rows.append({**row, "evaluation": name, "score": getattr(found, metric)})
    return pd.DataFrame(rows, columns=["group", "size", "system", "variant", "evaluation", "score"])


def _counts(key: str, run: FinishedRun) -> bool:
    """Return whether a setting decides what a run does; how to train does not without training."""
    if key in ("data.num_train", "seed"):
        return False
    return not (key.startswith(("training.", "adapter.")) and not run.result.training_seconds)


def failure_table(failures: Mapping[str, str]) -> pd.DataFrame:
    """Return the folder and error of every failed run."""
    return pd.DataFrame({"folder": list(failures), "error": list(failures.values())})


def sorted_by(
    systems: Sequence[System], scores: pd.DataFrame, *, size: int, evaluation: str
) -> list[System]:
    """Return the systems that have a size, the best first."""
    own = scores[(scores["evaluation"] == evaluation) & scores["size"].isin([size, 0])]
    found = dict(zip(own["system"], own["score"], strict=True))
    there = [system for system in systems if system.name in found and system.at(size)]
    return sorted(there, key=lambda system: -float(found[system.name]))
