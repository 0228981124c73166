"""The page of a finished run, from what lies in its folder; or of several runs side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taskfit.files import read_jsonl
from taskfit.method_settings import TUNING
from taskfit.report import run_plots as plots
from taskfit.report.finished_run import FinishedRun, Predictions
from taskfit.report.html_page import Picture, read_picture, write_html
from taskfit.report.words import METRIC_NAMES, shorten
from taskfit.runs.records import RunResult
from taskfit.runs.slices import read_slices
from taskfit.runs.tuning.run import SAMPLES
from taskfit.stats import METRICS
from taskfit.stats.slices import RULE

NUM_HARDEST = 5
SHOWN_CHARACTERS = 240
TUNING_METRICS = {
    "loss": "loss (nats)",
    "perplexity": "perplexity",
    "reward_accuracy": "reward accuracy",
    "reward_margin": "reward margin",
    "accuracy": "better answer more probable",
}


def write_page(folder: Path) -> None:
    """Draw the pictures of a finished run and write its `report.html`.

    Raises:
        CheckpointError: If the folder holds no finished run.
    """
    result = RunResult.load(folder)
    page = _report_tuning if result.method in TUNING else report_run
    page(folder, result)


def report_run(folder: Path, result: RunResult) -> None:
    """Draw the pictures of a run of one or several questions and write its `report.html`."""
    metric, run = _metric_of(result), FinishedRun(folder, result)
    pictures = []
    if result.evaluations:
        pictures.append(_compared(folder, [result], "evaluations", "All evaluation sets"))
    about = "Training; the metric is the questions' mean" if run.asks_several else "Training"
    pictures += _training(folder, result, about, metric=metric)
    single = {name: e for name, e in result.evaluations.items() if not e.multi_label}
    for name, evaluation in single.items():
        path = folder / "plots" / f"confusion_{name.replace('/', '_')}"
        plots.plot_confusion(evaluation, path, title=name)
        pictures.append(read_picture(path, f"Confusion matrix: {name}"))
    kept = {name: run.predictions(name) for name in single}
    bins = {name: found.reliability for name, found in kept.items()}
    bins = {name: found for name, found in bins.items() if len(found.count)}
    if bins:
        plots.plot_reliability(bins, folder / "plots" / "reliability")
        pictures.append(read_picture(folder / "plots" / "reliability", "Calibration"))
    write_report(
        folder,
        [result],
        title=f"{result.name}: {result.model} on {result.task}",
        notes=[
            f"{name}: the expected level is off by {levels['mean_absolute_error']:.3f} on average; "
            f"quadratic weighted kappa {levels['quadratic_kappa']:.3f}."
            for name, levels in result.details.get("levels", {}).items()
        ],
        pictures=[*pictures, _memory(folder, result)],
        hard=[row for found in kept.values() for row in hardest(found)],
        slices=read_slices(folder),
    )


def write_report(
    folder: Path,
    results: Sequence[RunResult],
    *,
    title: str,
    notes: Sequence[str],
    pictures: Sequence[Picture],
    hard: Sequence[Mapping[str, object]] = (),
    slices: Sequence[Mapping[str, object]] = (),
) -> Path:
    """Write `report.html` into a folder.

    Args:
        folder: Where to write.
        results: One or several runs.
        title: The page's heading.
        notes: Sentences below it.
        pictures: In the order shown.
        hard: Confidently wrong predictions to list, as `hardest` returns them.
        slices: Rows of `slices.csv`.

    Returns:
        The file's path.
    """
    return write_html(
        folder,
        "run.html",
        title=title,
        notes=notes,
        results=results,
        metrics=[(name, METRIC_NAMES[name]) for name in METRICS],
        pictures=pictures,
        hard=hard,
        slices=slices,
        rule=RULE,
        machine=results[-1].machine,
        versions=results[-1].versions,
    )


def comparison_picture(folder: Path, results: Sequence[RunResult]) -> Picture:
    """Draw several runs side by side into a folder's plots."""
    return _compared(folder, results, "comparison", "All methods, all evaluation sets")


def hardest(found: Predictions) -> list[dict[str, Any]]:
    """Return the most confidently wrong predictions, worst first; often the label is wrong.

    Each is a row of `id`, `text` (shortened), `gold`, `predicted`, and its `probability`.
    """
    # Where there is no answer, none is confidently wrong.
    wrong = np.flatnonzero(~found.correct & (found.predicted >= 0))
    sure = found.probabilities[wrong, found.predicted[wrong]]
    worst = np.argsort(-sure, kind="stable")[:NUM_HARDEST]
    return [
        {
            "id": found.ids[i],
            "text": shorten(found.texts[i], SHOWN_CHARACTERS),
            "gold": found.classes[found.gold[i]],
            "predicted": found.classes[found.predicted[i]],
            "probability": float(probability),
        }
        for i, probability in zip(wrong[worst], sure[worst], strict=True)
    ]


def _report_tuning(folder: Path, result: RunResult) -> None:
    """Write the page of a tuning run: before and after, on numbers and on the same prompts."""
    unit = "pair" if result.method == "dpo" else "token"
    history = _training(folder, result, "Training", metric=None, unit=unit)
    write_html(
        folder,
        "tuning.html",
        title=f"{result.name}: {result.model} on {result.task}",
        result=result,
        before=result.details["before"],
        after=result.details["after"],
        metrics=TUNING_METRICS,
        pictures=[*history, _memory(folder, result)],
        samples=side_by_side(read_jsonl(folder / SAMPLES)),
        machine=result.machine,
        versions=result.versions,
    )


def side_by_side(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return a record for each prompt with the answers before and after."""
    found: dict[str, dict[str, str]] = {}
    for sample in samples:
        entry = found.setdefault(
            sample["id"], {key: sample[key] for key in ("id", "prompt", "reference")}
        )
        entry[sample["when"]] = sample["answer"]
    return list(found.values())


def _metric_of(result: RunResult) -> str:
    # CoLA is reported as MCC everywhere; other tasks read best as accuracy.
    usual = "mcc" if result.task.startswith("cola ") else "accuracy"
    return str(result.details.get("metric", usual))


def _compared(folder: Path, results: Sequence[RunResult], name: str, title: str) -> Picture:
    path = folder / "plots" / name
    plots.plot_comparison(results, path, metric=_metric_of(results[0]))
    return read_picture(path, title)


def _training(
    folder: Path, result: RunResult, title: str, *, metric: str | None, unit: str = "example"
) -> list[Picture]:
    """Draw the history of a run; none without training."""
    records = FinishedRun(folder, result).history()
    if not any(record["kind"] == "step" for record in records):
        return []
    plots.plot_history(records, folder / "plots" / "history", metric=metric, unit=unit)
    return [read_picture(folder / "plots" / "history", title)]


def _memory(folder: Path, result: RunResult) -> Picture:
    plots.plot_memory(result.memory_by_stage, folder / "plots" / "memory")
    return read_picture(folder / "plots" / "memory", "Memory")
