"""The numbers behind every table and figure of a comparison, as tables.

Each function returns the data frame that is drawn and written to `tables/`; nothing is computed
while drawing. Costs are means over draws; scores are of the task's metric. A `system` is a method
variant.
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taskfit.report.aligned import AlignedPredictions
from taskfit.report.evidence import Evidence
from taskfit.report.finished_run import FinishedRun
from taskfit.report.plot_style import smoothed
from taskfit.report.variants import Contender
from taskfit.stats.arrays import FloatArray

DEMONSTRATION_KEYS = tuple(
    f"method.{key}" for key in ("num_demonstrations", "demonstrations", "retriever", "num_orders")
)
TEMPLATE_KEYS = ("task.instruction", "task.line", "task.separator", "task.label_words", "task.chat")
MEASURED = ("num_examples", "accuracy", "mcc", "macro_f1", "log_loss", "ece", "num_unanswered")
COSTS = ["training_seconds", "total_seconds", "processor_seconds", "peak_memory_bytes"]
COSTS += ["latency_seconds"]


def run_table(evidence: Evidence) -> pd.DataFrame:
    """Return a row for every run and evaluation set: scores, costs, and how to run it again.

    Processor seconds are missing where they were not recorded, latency where it was not measured.
    The command is given in the comparison's folder.
    """
    return pd.DataFrame(
        {
            "system": variant.name,
            "method": run.result.method,
            "model": run.result.model,
            "size": run.size,
            "draw": run.seed,
            "evaluation": name,
            **{key: getattr(found, key) for key in MEASURED},
            "training_seconds": run.result.training_seconds,
            "total_seconds": run.result.whole_seconds,
            "processor_seconds": run.result.cpu_seconds or np.nan,
            "peak_memory_bytes": run.result.peak_memory_bytes,
            "latency_seconds": np.nan
            if run.result.latency_seconds is None
            else run.result.latency_seconds,
            "command": f"taskfit fit --config runs/{run.folder.name}/settings.yaml --out NEW",
        }
        for variant in evidence.variants
        for run in variant.runs
        for name, found in run.result.evaluations.items()
    )


def score_table(evidence: Evidence) -> pd.DataFrame:
    """Return the mean score of every system, size and evaluation set over its own draws.

    The 95 % interval is over draws and examples (with one draw, over examples); `sd_draws` is
    what another draw changes, `sd_examples` what other examples would.
    """
    rows = []
    for variant in evidence.variants:
        for size, name in product(variant.sizes, evidence.evaluations):
            contender = variant.at(size, name)
            aligned = _aligned(evidence, [contender] if contender else [], name)
            if aligned is None:
                continue
            (score,) = aligned.comparison.scores
            between = score.between_draws
            row = {"system": variant.name, "size": size, "evaluation": name}
            row |= {"metric": evidence.metric, "score": score.mean}
            row |= dict(zip(("low", "high"), score.interval, strict=True))
            row |= {"num_draws": len(aligned.draws), "num_examples": len(aligned.ids)}
            row |= {"sd_draws": np.nan if between is None else between**0.5}
            rows.append({**row, "sd_examples": score.within_draws**0.5})
    columns = ["system", "size", "evaluation", "metric", "score", "low", "high", "num_draws"]
    return pd.DataFrame(rows, columns=[*columns, "num_examples", "sd_draws", "sd_examples"])


def comparison_table(evidence: Evidence) -> pd.DataFrame:
    """Return a row for every size, evaluation set and system: score, and difference to the best."""
    rows: list[dict[str, Any]] = []
    for size, evaluation in product(evidence.sizes or [0], evidence.evaluations):
        aligned = _aligned(evidence, evidence.contenders(size, evaluation), evaluation)
        if aligned is None:
            continue
        found = aligned.comparison
        differences = {one.method: one for one in found.differences}
        for score in found.scores:
            row: dict[str, Any] = {"size": size, "evaluation": evaluation, "system": score.method}
            row |= {"metric": found.metric, "score": score.mean}
            row |= dict(zip(("low", "high"), score.interval, strict=True))
            row |= {"is_best": score.method == found.best}
            row |= {"draws": " ".join(map(str, aligned.draws)), "num_examples": found.num_examples}
            if score.method in differences:
                row |= asdict(differences[score.method])
                row["difference_low"], row["difference_high"] = row["interval"]
            rows.append(row)
    columns = ["size", "evaluation", "system", "metric", "score", "low", "high", "is_best", "draws"]
    columns += ["num_examples", "difference", "difference_low", "difference_high", "p_value"]
    return pd.DataFrame(rows, columns=[*columns, "adjusted_p_value", "test"])


def _aligned(
    evidence: Evidence, contenders: Sequence[Contender], evaluation: str
) -> AlignedPredictions | None:
    """Lay contenders side by side; None without any, or without two examples that all saw."""
    aligned = evidence.align(contenders, evaluation) if contenders else None
    return aligned if aligned and len(aligned.ids) > 1 else None


def history_table(evidence: Evidence) -> pd.DataFrame:
    """Return the training loss of every trained run by optimizer step, as it is and smoothed."""
    columns = ["system", "size", "draw", "step", "loss", "smoothed"]
    rows: list[tuple[object, ...]] = []
    for variant in evidence.variants:
        for run in variant.runs:
            steps = [record for record in run.history() if record["kind"] == "step"]
            losses = [float(record["loss"]) for record in steps]
            rows += [
                (variant.name, run.size, run.seed, int(record["step"]), loss, mean)
                for record, loss, mean in zip(steps, losses, smoothed(losses), strict=True)
            ]
    return pd.DataFrame(rows, columns=columns)


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
    means = own.groupby(["system", "size"], sort=False)[COSTS].mean().reset_index()
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
    evidence: Evidence, contenders: Sequence[Contender], evaluation: str
) -> pd.DataFrame:
    """Return how often each label was answered with each, summed over the draws of contenders.

    No answer is an empty `predicted`.
    """
    parts = []
    for contender in contenders:
        answers = evidence.answers[evaluation].of(list(contender.runs.values()))
        num = len(answers.labels)
        cells = np.zeros((num, num + 1), np.int64)  # the last column is no answer
        for predicted in answers.predicted:
            np.add.at(cells, (answers.gold, predicted), 1)
        about = {"system": contender.name, "size": contender.size, "evaluation": evaluation}
        about |= {"num_draws": len(contender.runs), "gold": np.repeat(answers.labels, num + 1)}
        names = np.tile([*answers.labels, ""], num)
        parts.append(pd.DataFrame({**about, "predicted": names, "count": cells.ravel()}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def draw_table(runs: pd.DataFrame, *, metric: str) -> pd.DataFrame:
    """Return the score of each draw of every system and size that has several."""
    several = runs.groupby(["system", "size", "evaluation"])["draw"].transform("nunique") > 1
    table = runs[several].rename(columns={metric: "score", "draw": "variant", "system": "group"})
    return table[["group", "size", "variant", "evaluation", "score"]]


def setting_table(evidence: Evidence, keys: Sequence[str]) -> pd.DataFrame:
    """Return the scores of runs that differ in nothing but some settings, a group each.

    Args:
        evidence: Finished runs.
        keys: The settings, as `section.key`.
    """
    groups: dict[str, list[tuple[str, FinishedRun]]] = {}
    for variant in evidence.variants:
        for run in variant.runs:
            rest = {k: v for k, v in run.flat_settings.items() if k not in keys and _counts(k, run)}
            groups.setdefault(repr((rest, run.size, run.seed)), []).append((variant.name, run))
    rows = []
    for members in groups.values():
        values = [{key: run.flat_settings.get(key) for key in keys} for _, run in members]
        changing = [key for key in keys if len({repr(one[key]) for one in values}) > 1]
        first, run = members[0]
        group = f"{first}, draw {run.seed}" if run.size else first
        for (name, run), own in zip(members, values, strict=True):
            shown = ", ".join(f"{key.split('.')[1]}={own[key]}" for key in changing)
            about = {"group": group, "size": run.size, "system": name, "variant": shown}
            rows += [
                {**about, "evaluation": evaluation, "score": getattr(found, evidence.metric)}
                for evaluation, found in run.result.evaluations.items()
                if changing
            ]
    return pd.DataFrame(rows)


def _counts(key: str, run: FinishedRun) -> bool:
    """Return whether a setting decides what a run does; how to train does not without training."""
    if key in ("data.num_train", "seed"):
        return False
    return not (key.startswith(("training.", "adapter.")) and not run.result.training_seconds)


def ranked(
    evidence: Evidence, scores: pd.DataFrame, *, size: int, evaluation: str
) -> list[Contender]:
    """Return the contenders of a size, the best first."""
    own = scores[(scores["evaluation"] == evaluation) & scores["size"].isin([size, 0])]
    found = dict(zip(own["system"], own["score"], strict=True))
    there = [one for one in evidence.contenders(size, evaluation) if one.name in found]
    return sorted(there, key=lambda contender: -float(found[contender.name]))
