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
from taskfit.report.run_summary import first_sentence
from taskfit.report.words import METRIC_NAMES, shorten
from taskfit.runs.records import RunResult
from taskfit.runs.slices import read_slices
from taskfit.runs.tuning.run import SAMPLES
from taskfit.stats import METRICS, Evaluation
from taskfit.stats.per_class import ClassRow, class_rows
from taskfit.stats.slices import RULE

NUM_HARDEST = 5
SHOWN_CHARACTERS = 240
PLACES = ("first", "sets", "classes", "calibration", "training", "memory")
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
    single = [name for name, e in result.evaluations.items() if not e.multi_label]
    kept = {name: run.predictions(name) for name in single}
    classes = {name: _classes(e, kept.get(name)) for name, e in result.evaluations.items()}
    pictures = {name: _of_classes(folder, result, name, classes[name]) for name in classes}
    first = next(iter(classes), "")
    about = "Training; the metric is the questions' mean" if run.asks_several else "Training"
    several = len(result.evaluations) > 1
    _write(
        folder,
        [result],
        title=f"{result.name}: {result.model} on {result.task}",
        lead=_lead(run, classes, metric),
        notes=[
            f"{name}: the expected level is off by {levels['mean_absolute_error']:.3f} on average; "
            f"quadratic weighted kappa {levels['quadratic_kappa']:.3f}."
            for name, levels in result.details.get("levels", {}).items()
        ],
        classes=classes,
        pictures={
            "first": pictures.pop(first, [])[:1],
            "sets": [_compared(folder, [result], "evaluations", "All evaluation sets")]
            if several
            else [],
            "classes": [one for found in pictures.values() for one in found],
            "calibration": _reliability(folder, kept),
            "training": _training(folder, result, about, metric=metric),
            "memory": [_memory(folder, result)],
        },
        hard=[row for found in kept.values() for row in hardest(found)],
        slices=read_slices(folder),
    )


def _lead(run: FinishedRun, classes: Mapping[str, Sequence[ClassRow]], metric: str) -> list[str]:
    """Return a sentence about the first evaluation set, or one about each question of it."""
    result = run.result
    names = list(result.evaluations)
    if run.asks_several:
        names = [name for name in names if name.partition("/")[0] == names[0].partition("/")[0]]
    baselines = result.details.get("baselines", {})
    return [
        first_sentence(
            name, result.evaluations[name], classes[name], baselines.get(name, ()), metric
        )
        for name in (names if run.asks_several else names[:1])
    ] or ["Nothing was measured, as there was no evaluation set."]


def _classes(evaluation: Evaluation, found: Predictions | None) -> list[ClassRow]:
    if found is None:
        return class_rows(evaluation)
    num_gold = np.bincount(found.gold, minlength=len(found.classes)).tolist()
    return class_rows(evaluation, num_gold=num_gold)


def _of_classes(
    folder: Path, result: RunResult, name: str, rows: Sequence[ClassRow]
) -> list[Picture]:
    """Draw the classes of a set, first the picture that says most: of few classes the matrix."""
    evaluation, ending = result.evaluations[name], name.replace("/", "_")
    found = []
    if not evaluation.multi_label:
        path = folder / "plots" / f"confusion_{ending}"
        plots.plot_confusion(evaluation, path, title=name)
        found.append(read_picture(path, f"Confusion matrix: {name}"))
    if evaluation.multi_label or len(evaluation.labels) > plots.MAX_CELLS:
        path = folder / "plots" / f"classes_{ending}"
        plots.plot_classes(rows, path, title=f"{name} (n = {evaluation.num_examples:,})")
        found.insert(0, read_picture(path, f"Precision and recall by class: {name}"))
    return found


def _reliability(folder: Path, kept: Mapping[str, Predictions]) -> list[Picture]:
    bins = {name: found.reliability for name, found in kept.items()}
    bins = {name: found for name, found in bins.items() if len(found.count)}
    if not bins:
        return []
    plots.plot_reliability(bins, folder / "plots" / "reliability")
    return [read_picture(folder / "plots" / "reliability", "Calibration")]


def write_report(
    folder: Path,
    results: Sequence[RunResult],
    *,
    title: str,
    notes: Sequence[str],
    pictures: Sequence[Picture],
) -> Path:
    """Write `report.html` of several runs side by side into a folder and return its path.

    Args:
        folder: Where to write.
        results: The runs.
        title: The page's heading.
        notes: Sentences below it.
        pictures: In the order shown.
    """
    return _write(folder, results, title=title, notes=notes, pictures={"first": pictures})


def _write(
    folder: Path,
    results: Sequence[RunResult],
    *,
    pictures: Mapping[str, Sequence[Picture]],
    **values: Any,  # noqa: ANN401 - what the template shows
) -> Path:
    """Fill the template; pictures, by place, and values that are not given are not there."""
    return write_html(
        folder,
        "run.html",
        results=results,
        metrics=[(name, METRIC_NAMES[name]) for name in METRICS],
        rule=RULE,
        machine=results[-1].machine,
        versions=results[-1].versions,
        pictures={**dict.fromkeys(PLACES, ()), **pictures},
        **{"lead": [], "classes": {}, "hard": (), "slices": (), **values},
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
