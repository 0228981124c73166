"""`report.html`: one self-contained file with tables and pictures of one or several runs."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np

from taskfit.data import Example
from taskfit.files import read_jsonl, write_text_atomic
from taskfit.methods.calibration import FloatArray
from taskfit.report.finished_run import FinishedRun, Predictions
from taskfit.report.run_plots import (
    plot_comparison,
    plot_confusion,
    plot_history,
    plot_memory,
    plot_reliability,
)
from taskfit.report.words import METRIC_NAMES, shorten
from taskfit.runs.records import RunResult
from taskfit.runs.slices import read_slices
from taskfit.stats import METRICS
from taskfit.stats.slices import RULE

NUM_HARDEST = 5
SHOWN_CHARACTERS = 240


@dataclass(frozen=True, slots=True)
class HardExample:
    """A confidently wrong prediction; often a wrong label.

    Attributes:
        evaluation: Name of the evaluation set.
        id: The example's id.
        text: Its texts, shortened.
        gold: Its label in the table.
        predicted: The predicted label.
        probability: Of the predicted label.
    """

    evaluation: str
    id: str
    text: str
    gold: str
    predicted: str
    probability: float


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in the report.

    Attributes:
        title: What it shows.
        path: Its PNG file.
        data: The same, base64.
    """

    title: str
    path: str
    data: str


def hardest(
    name: str, examples: Sequence[Example], probabilities: FloatArray, labels: Sequence[str]
) -> list[HardExample]:
    """Return the most confidently wrong predictions of an evaluation set, worst first."""
    # Where there is no answer, none is confidently wrong.
    predicted = np.nan_to_num(probabilities, nan=-1.0).argmax(axis=1)
    gold = np.array([labels.index(str(example.label)) for example in examples])
    wrong = np.flatnonzero((predicted != gold) & ~np.isnan(probabilities[:, 0]))
    worst = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:NUM_HARDEST]
    return [
        HardExample(
            evaluation=name,
            id=examples[i].id,
            text=shorten(" / ".join(examples[i].texts.values()), SHOWN_CHARACTERS),
            gold=str(examples[i].label),
            predicted=labels[predicted[i]],
            probability=float(probabilities[i, predicted[i]]),
        )
        for i in worst
    ]


def report_run(folder: Path, result: RunResult) -> None:
    """Draw the pictures of a run of one or several questions and write its `report.html`."""
    metric = _metric_of(result)
    run = FinishedRun(folder, result)
    plots = folder / "plots"
    pictures = []
    if result.evaluations:
        plot_comparison([result], plots / "evaluations", metric=metric)
        pictures.append(_picture(folder, plots / "evaluations", "All evaluation sets"))
    records = read_jsonl(folder / "metrics.jsonl")
    if any(record["kind"] == "step" for record in records):
        plot_history(records, plots / "history", metric=metric)
        shown = "Training; the metric is the questions' mean" if run.asks_several else "Training"
        pictures.append(_picture(folder, plots / "history", shown))
    single = {name: e for name, e in result.evaluations.items() if not e.multi_label}
    for name, evaluation in single.items():
        path = plots / f"confusion_{name.replace('/', '_')}"
        plot_confusion(evaluation, path, title=name)
        pictures.append(_picture(folder, path, f"Confusion matrix: {name}"))
    kept = {name: run.predictions(name) for name in single}
    bins = {name: found.reliability for name, found in kept.items()}
    bins = {name: found for name, found in bins.items() if len(found.count)}
    hard = [
        example
        for name, found in kept.items()
        for example in hardest(name, _examples_of(found), found.probabilities, found.classes)
    ]
    if bins:
        plot_reliability(bins, plots / "reliability")
        pictures.append(_picture(folder, plots / "reliability", "Calibration"))
    plot_memory(result.memory_by_stage, plots / "memory")
    pictures.append(_picture(folder, plots / "memory", "Memory"))
    write_report(
        folder,
        [result],
        title=f"{result.name}: {result.model} on {result.task}",
        notes=[
            f"{name}: the expected level is off by {levels['mean_absolute_error']:.3f} on average; "
            f"quadratic weighted kappa {levels['quadratic_kappa']:.3f}."
            for name, levels in result.details.get("levels", {}).items()
        ],
        pictures=pictures,
        hard=hard,
        slices=read_slices(folder),
    )


def write_report(
    folder: Path,
    results: Sequence[RunResult],
    *,
    title: str,
    notes: Sequence[str],
    pictures: Sequence[Picture],
    hard: Sequence[HardExample] = (),
    slices: Sequence[Mapping[str, object]] = (),
) -> Path:
    """Write `report.html` into a folder.

    Args:
        folder: Where to write.
        results: One or several runs.
        title: The page's heading.
        notes: Sentences below it.
        pictures: In the order shown.
        hard: Confidently wrong predictions to list.
        slices: Rows of `slices.csv`.

    Returns:
        The file's path.
    """
    template = resources.files("taskfit.report").joinpath("run.html").read_text("utf-8")
    # Texts come from the user's data: everything is escaped.
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(
        title=title,
        notes=notes,
        results=results,
        sets=list(dict.fromkeys(name for r in results for name in r.evaluations)),
        metrics=[(name, METRIC_NAMES[name]) for name in METRICS],
        pictures=pictures,
        hard=hard,
        slices=slices,
        rule=RULE,
        megabyte=1e6,
    )
    path = folder / "report.html"
    write_text_atomic(path, page)
    return path


def comparison_picture(folder: Path, results: Sequence[RunResult]) -> Picture:
    """Draw several runs side by side into a folder's plots."""
    path = folder / "plots" / "comparison"
    plot_comparison(results, path, metric=_metric_of(results[0]))
    return _picture(folder, path, "All methods, all evaluation sets")


def _examples_of(found: Predictions) -> list[Example]:
    return [
        Example(id_, {"text": text}, found.classes[gold])
        for id_, text, gold in zip(found.ids, found.texts, found.gold, strict=True)
    ]


def _metric_of(result: RunResult) -> str:
    # CoLA is reported as MCC everywhere; other tasks read best as accuracy.
    usual = "mcc" if result.task.startswith("cola ") else "accuracy"
    return str(result.details.get("metric", usual))


def _picture(folder: Path, path: Path, title: str) -> Picture:
    png = path.with_name(f"{path.name}.png")
    data = base64.b64encode(png.read_bytes()).decode("ascii")
    return Picture(title, str(png.relative_to(folder)), data)
