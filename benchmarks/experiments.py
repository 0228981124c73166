"""What the experiments of docs/experiments say beside what was published, from their runs.

    python benchmarks/experiments.py cola runs/experiments/cola
    python benchmarks/experiments.py nli runs/experiments/nli
    python benchmarks/experiments.py nli runs/experiments/nli3 --out results/experiments/nli3
    python benchmarks/experiments.py sentiment3 runs/experiments/sentiment3

Writes NAME.json (every number) and NAME.md (the tables of the page) into results/experiments. No
model is loaded; the comparison may be half finished.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from machine import distinct
from taskfit.report.evidence import Evidence, read_evidence
from taskfit.report.finished_run import FinishedRun
from taskfit.report.tables import run_table, score_table
from taskfit.runs.slices import read_slices
from taskfit.stats.arrays import FloatArray, IntArray
from taskfit.stats.comparison import compare_methods
from taskfit.stats.metrics import mcc_from_counts
from taskfit.stats.per_class import class_rows

HOME = Path(__file__).parents[1] / "results" / "experiments"
MEGABYTE = 1e6
# Of the published studies: sentences, pairs and texts that they measured on.
PUBLISHED_EXAMPLES = 50
PUBLISHED_TEST = 100
NUM_SUBSETS = 200
NUM_RESAMPLES = 4000
STAGES = ("model", "forward", "adapter", "training")
# Slices of HANS that are shown; the reader of slices joins columns so.
BY = "heuristic x gold"
# From this share of one label on, a run counts as one that gives a single answer.
SINGLE = 0.95


def markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown."""
    lines = [list(map(str, table.columns)), ["---"] * table.shape[1]]
    lines += [[str(cell) for cell in row] for row in table.itertuples(index=False, name=None)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def scores_wide(evidence: Evidence) -> pd.DataFrame:
    """Return the scores of every method and size: mean and 95 % interval on each set, and costs."""
    scores, runs = score_table(evidence), run_table(evidence)
    cells = scores.assign(
        cell=[
            f"{r.score:.3f} ({r.low:.3f} to {r.high:.3f})" for r in scores.itertuples(index=False)
        ]
    )
    wide = cells.pivot_table(
        index=["system", "size"], columns="evaluation", values="cell", aggfunc="first", sort=False
    )
    first = runs[runs["evaluation"] == evidence.in_domain]
    costs = first.groupby(["system", "size"], sort=False).agg(
        draws=("draw", "nunique"),
        seconds=("processor_seconds", "mean"),
        megabytes=("peak_memory_bytes", lambda values: values.mean() / MEGABYTE),
    )
    table = wide.join(costs).reset_index()
    table["seconds"] = table["seconds"].map("{:,.0f}".format)
    table["megabytes"] = table["megabytes"].map("{:,.0f}".format)
    table["size"] = table["size"].map(lambda size: f"{size:,}" if size else "0")
    return table.rename(columns={"system": "method", "size": "labels", "seconds": "CPU seconds"})


def memory_by_stage(evidence: Evidence) -> pd.DataFrame:
    """Return what each stage added to memory, and the peak, in MB, of the run that took most.

    A method's runs differ by what freed memory they found in their process.
    """
    rows = [
        {
            "method": variant.name,
            **{stage: run.result.memory_by_stage.get(stage, 0) / MEGABYTE for stage in STAGES},
            "peak": run.result.peak_memory_bytes / MEGABYTE,
        }
        for variant in evidence.variants
        for run in variant.runs
        if "training" in run.result.memory_by_stage
    ]
    table = pd.DataFrame(rows, columns=["method", *STAGES, "peak"])
    most = table.loc[table.groupby("method", sort=False)["peak"].idxmax()].set_index("method")
    return most.map("{:,.0f}".format).reset_index()


def wordings(evidence: Evidence) -> dict[str, Any]:
    """Tell how far wordings of a prompt lie apart, before and after tuning, beyond chance.

    Chance is what another seed changes, other demonstrations, order and adapter: an F test over
    wordings, and the range that as many runs of one wording span on average (the studentized range
    of that many normal values, with the pooled standard deviation of seeds).
    """
    runs = run_table(evidence)
    names = {"before": {"published": "few-shot"}, "after": {"published": "recipe"}}
    for system in dict.fromkeys(runs["system"]):
        if system.endswith(", before"):
            wording = system.removesuffix(", before")
            names["before"][wording] = system
            names["after"][wording] = wording
    found: dict[str, Any] = {}
    for when, systems in names.items():
        for evaluation in evidence.evaluations:
            own = runs[runs["evaluation"] == evaluation]
            groups = {w: own.loc[own["system"] == s, "mcc"].tolist() for w, s in systems.items()}
            groups = {wording: values for wording, values in groups.items() if values}
            shown = [systems[wording] for wording in groups]
            found[f"{when}, {evaluation}"] = {
                "mcc": groups,
                **_spread([*groups.values()]),
                **_spread_by_sentences(evidence, evaluation, shown),
            }
    return found


def _spread_by_sentences(
    evidence: Evidence, evaluation: str, systems: Sequence[str]
) -> dict[str, float]:
    """Return the range of MCC over wordings that other sentences alone would bring.

    Sentences are drawn with replacement, the same for all wordings; each wording's MCC less its own
    on all sentences is what chance does to equals, and the range of these is compared with the
    range that was found. Draws of seeds are kept as they are.
    """
    answers = evidence.answers[evaluation]
    by_name = {variant.name: variant for variant in evidence.variants}
    weights = np.random.default_rng(0).multinomial(
        len(answers.gold), np.full(len(answers.gold), 1 / len(answers.gold)), NUM_RESAMPLES
    )
    weights = np.vstack([np.ones_like(weights[:1]), weights]).astype(float)  # all, then draws
    scores = []
    for system in systems:
        predicted = answers.of(by_name[system].runs).predicted  # (R, N)
        scores.append(np.mean([_mcc(weights, answers.gold, own) for own in predicted], axis=0))
    whole = np.array(scores)  # (wordings, 1 + resamples)
    ranges = np.ptp(whole[:, 1:] - whole[:, :1], axis=0)
    found = float(np.ptp(whole[:, 0]))
    return {
        "range_by_chance_of_sentences": float(ranges.mean()),
        "range_by_chance_of_sentences_95": float(np.quantile(ranges, 0.95)),
        "p_value_by_sentences": float((1 + (ranges >= found).sum()) / (1 + len(ranges))),
    }


def _mcc(weights: FloatArray, gold: IntArray, predicted: IntArray) -> FloatArray:
    """Return the MCC under weights of the examples, (B, N) to (B,)."""
    is_gold, is_predicted = (np.eye(2)[answers] for answers in (gold, predicted))  # (N, 2)
    return mcc_from_counts(
        weights @ (is_gold * is_predicted), weights @ is_gold, weights @ is_predicted, len(gold)
    )


def _spread(groups: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return how far the means of groups lie apart, and how far chance would move them."""
    means = [float(np.mean(group)) for group in groups]
    several = [group for group in groups if len(group) > 1]
    found: dict[str, Any] = {"range_of_means": max(means) - min(means) if means else 0.0}
    if len(several) < 2:
        return found
    pooled = np.sqrt(np.mean([np.var(group, ddof=1) for group in several]))
    degrees = sum(len(group) - 1 for group in several)
    # Of one run a wording, as published, and of the means here.
    alike = stats.studentized_range(len(groups), degrees)
    per_mean = pooled / np.sqrt(np.mean([len(group) for group in several]))
    test = stats.f_oneway(*several)
    return found | {
        "sd_of_seeds": float(pooled),
        "range_by_chance_of_single_runs": float(alike.mean() * pooled),
        "range_by_chance_of_single_runs_95": float(alike.ppf(0.95) * pooled),
        "range_by_chance_of_means": float(alike.mean() * per_mean),
        "p_value": float(test.pvalue),
    }


def against(evidence: Evidence, reference: str) -> list[dict[str, Any]]:
    """Compare every method with a reference on all examples, and on as few as were published.

    Of `NUM_SUBSETS` draws of 50 examples: how often the difference is significant (5 %), and how
    often its sign is the other one.
    """
    rows = []
    generator = np.random.default_rng(0)
    for size in evidence.sizes:
        for evaluation in evidence.evaluations:
            contenders = evidence.contenders(size, evaluation)
            if reference not in {c.name for c in contenders} or len(contenders) < 2:
                continue
            aligned = evidence.align(contenders, evaluation)
            whole = aligned.comparison.relative_to(reference)
            num = len(aligned.gold)
            few = [
                generator.choice(num, min(PUBLISHED_EXAMPLES, num), replace=False)
                for _ in range(NUM_SUBSETS)
            ]
            base = [c.name for c in aligned.contenders].index(reference)
            for place, one in enumerate(aligned.contenders):
                if one.name == reference:
                    continue
                pair = aligned.predicted[[place, base]]
                difference = next(d for d in whole.differences if d.method == one.name)
                parts = [
                    compare_methods(
                        pair[:, :, chosen],
                        aligned.gold[chosen],
                        methods=["own", "reference"],
                        metric=aligned.metric,
                    )
                    .relative_to("reference")
                    .differences[0]
                    for chosen in few
                ]
                rows.append(
                    {
                        "labels": size,
                        "set": evaluation,
                        "method": one.name,
                        "draws": len(aligned.draws),
                        "examples": num,
                        "difference": difference.difference,
                        "low": difference.interval[0],
                        "high": difference.interval[1],
                        "adjusted_p_value": difference.adjusted_p_value,
                        "significant_with_50": float(np.mean([p.p_value < 0.05 for p in parts])),
                        "other_sign_with_50": float(
                            np.mean([p.difference * difference.difference < 0 for p in parts])
                        ),
                    }
                )
    return rows


def by_draw(evidence: Evidence) -> pd.DataFrame:
    """Return the worst and best draw of every method and size, and how many give one answer.

    The first row is who gives one answer to all: to each label, the least and the most frequent.
    """
    rows = []
    cells = {}
    for name in evidence.evaluations:
        shares = np.bincount(evidence.answers[name].gold) / len(evidence.answers[name].gold)
        cells[name] = f"{shares.min():.3f} or {shares.max():.3f}"
        cells[f"{name}, draws with one answer"] = ""
    rows.append({"method": "one answer to all", "labels": "0", **cells})
    for variant in evidence.variants:
        for size in variant.sizes:
            cells = {}
            for name in evidence.evaluations:
                contender = variant.at(size, name)
                if contender is None:
                    continue
                own = evidence.answers[name].of(list(contender.runs.values()))
                scores = own.correct.mean(axis=1)
                most = [np.bincount(answers).max() / len(answers) for answers in own.predicted]
                single = sum(share >= SINGLE for share in most)
                cells[name] = f"{scores.min():.3f} to {scores.max():.3f}"
                cells[f"{name}, draws with one answer"] = f"{single} of {len(most)}"
            rows.append({"method": variant.name, "labels": f"{size:,}", **cells})
    return pd.DataFrame(rows)


def slices(evidence: Evidence) -> pd.DataFrame:
    """Return the accuracy by slice, mean over draws, of every method at its most labels."""
    rows = []
    for variant in evidence.variants:
        most = variant.sizes[-1]
        for run in variant.runs:
            if run.size == most:
                rows += [{"method": variant.name, **row} for row in read_slices(run.folder)]
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    crossed = table[table["by"] == BY]
    wide = crossed.pivot_table(
        index="method", columns=["evaluation", "value"], values="accuracy", sort=False
    )
    wide.columns = [": ".join(map(str, pair)) for pair in wide.columns]
    return wide.map("{:.2f}".format).reset_index()


def found_of(label: str, evidence: Evidence) -> pd.DataFrame:
    """Return the share of a label's texts that got it: mean over draws, least and most."""
    found = pd.DataFrame(
        {
            "method": variant.name,
            "labels": f"{run.size:,}",
            "set": f"{name}, of {own.num_gold}",
            "recall": own.recall,
        }
        for variant in evidence.variants
        for run in variant.runs
        for name, evaluation in run.result.evaluations.items()
        for own in class_rows(evaluation)
        if own.name == label
    )
    keys = ["method", "labels", "set"]
    spread = found.groupby(keys, sort=False)["recall"].agg(["mean", "min", "max"])
    cells = [f"{one.mean:.0%} ({one.min:.0%} to {one.max:.0%})" for one in spread.itertuples()]
    return spread.assign(cell=cells)["cell"].unstack(sort=False).reset_index()


def beside_accuracy(evidence: Evidence) -> pd.DataFrame:
    """Return macro F1 and log loss (nats) on each set, means over draws."""
    keys = ["system", "size", "evaluation"]
    means = run_table(evidence).groupby(keys, sort=False)[["macro_f1", "log_loss"]].mean()
    cells = [f"{one.macro_f1:.2f}, {one.log_loss:.2f}" for one in means.itertuples()]
    table = means.assign(cell=cells)["cell"].unstack(sort=False).reset_index()
    table["size"] = table["size"].map("{:,}".format)
    return table.rename(columns={"system": "method", "size": "labels"})


def perfect_scores(evidence: Evidence) -> dict[str, Any]:
    """Tell what all right of 100 test texts says, and how sets of 100 scatter here."""
    exact = stats.binomtest(PUBLISHED_TEST, PUBLISHED_TEST).proportion_ci(method="exact")
    found: dict[str, Any] = {
        "interval_of_100_of_100": [exact.low, exact.high],
        # With this accuracy one set of 100 in twenty has no mistake.
        "accuracy_that_is_perfect_in_one_of_20": 0.05 ** (1 / PUBLISHED_TEST),
        "sets": [],
    }
    generator = np.random.default_rng(0)
    name = evidence.in_domain
    for variant in evidence.variants:
        for size in variant.sizes:
            contender = variant.at(size, name)
            if contender is None:
                continue
            correct = evidence.answers[name].of(list(contender.runs.values())).correct
            parts = [
                correct[:, generator.choice(correct.shape[1], PUBLISHED_TEST, replace=False)]
                for _ in range(NUM_SUBSETS)
            ]
            scores = np.concatenate([part.mean(axis=1) for part in parts])
            low, high = np.quantile(scores, [0.025, 0.975])
            found["sets"].append(
                {
                    "method": variant.name,
                    "labels": size,
                    f"accuracy on {correct.shape[1]}": f"{correct.mean():.3f}",
                    "sets of 100, 95 % of them": f"{low:.2f} to {high:.2f}",
                    "best of the sets": f"{scores.max():.2f}",
                }
            )
    return found


def write(name: str, evidence: Evidence, out: Path) -> None:
    """Write what an experiment says."""
    parts = {"scores": scores_wide(evidence)}
    record: dict[str, Any] = {"runs": run_table(evidence).drop(columns="command")}
    if name == "cola":
        parts["memory by stage, MB"] = memory_by_stage(evidence)
        record["wordings"] = found = wordings(evidence)
        parts["wordings"] = _wording_table(found)
    elif name == "nli":
        rows = against(evidence, "in context")
        record["against"], parts["against in-context learning"] = rows, _against_table(rows)
        parts["draws"] = by_draw(evidence)
        parts["slices"] = slices(evidence)
    elif name == "sentiment3":
        record["perfect"] = perfect_scores(evidence)
        parts["macro F1 and log loss"] = beside_accuracy(evidence)
        parts["neutral texts found"] = found_of("neutral", evidence)
        parts["sets of 100"] = pd.DataFrame(record["perfect"]["sets"])
    record["runs"] = json.loads(record["runs"].to_json(orient="records", double_precision=6))
    record["machines"] = distinct(map(_machine, evidence.runs))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    text = "\n".join(f"## {title}\n\n{markdown(table)}" for title, table in parts.items())
    out.with_suffix(".md").write_text(f"# {name}\n\nMade by benchmarks/experiments.py.\n\n{text}")
    print(text)


def _machine(run: FinishedRun) -> dict[str, str]:
    """Return what a run was computed on; the number format of older ones from their classifier."""
    saved = json.loads((run.folder / "classifier.json").read_text(encoding="utf-8"))
    return run.result.machine | ({"dtype": saved["dtype"]} if saved.get("dtype") else {})


def _wording_table(found: dict[str, Any]) -> pd.DataFrame:
    rows = []
    for where, own in found.items():
        cells = {
            w: f"{np.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for w, v in own["mcc"].items()
        }
        numbers = {k.replace("_", " "): f"{v:.3f}" for k, v in own.items() if k != "mcc"}
        rows.append({"set": where, **cells, **numbers})
    return pd.DataFrame(rows).set_index("set").T.rename_axis("wording").reset_index()


def _against_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "labels": row["labels"],
            "set": row["set"],
            "method": row["method"],
            "difference": f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})",
            "adjusted p": f"{row['adjusted_p_value']:.2g}",
            "significant in sets of 50": f"{row['significant_with_50']:.0%}",
            "other sign in sets of 50": f"{row['other_sign_with_50']:.0%}",
        }
        for row in rows
    )


def main() -> None:
    """Read runs, write tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", choices=["cola", "nli", "sentiment3"])
    parser.add_argument("folder", type=Path, help="of the comparison")
    parser.add_argument("--out", type=Path, help="default: results/experiments/EXPERIMENT")
    given = parser.parse_args()
    out = given.out or HOME / given.experiment
    write(given.experiment, read_evidence(given.folder), out)


if __name__ == "__main__":
    main()
