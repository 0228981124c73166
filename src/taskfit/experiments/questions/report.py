"""`report.html` of a run of questions."""

import base64
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from taskfit.evaluation import Reliability, reliability
from taskfit.experiments.plots import (
    plot_comparison,
    plot_confusion,
    plot_history,
    plot_memory,
    plot_reliability,
)
from taskfit.experiments.questions.classifier import QuestionEvaluation
from taskfit.experiments.records import RunResult
from taskfit.experiments.report import Picture, hardest, write_report
from taskfit.files import read_jsonl


def report_questions(
    folder: Path, result: RunResult, measured: Mapping[str, QuestionEvaluation], *, metric: str
) -> None:
    """Draw the pictures of a run of questions and write its `report.html`.

    Args:
        folder: The run's folder.
        result: Its result.
        measured: SET/QUESTION -> what was measured.
        metric: What pictures show.
    """
    plots = folder / "plots"
    pictures = []
    if result.evaluations:
        plot_comparison([result], plots / "evaluations", metric=metric)
        pictures.append(_picture(folder, "evaluations", "All questions, all evaluation sets"))
    records = read_jsonl(folder / "metrics.jsonl")
    if any(record["kind"] == "step" for record in records):
        plot_history(records, plots / "history", metric=metric)
        pictures.append(_picture(folder, "history", "Training; the metric is the questions' mean"))
    bins: dict[str, Reliability] = {}
    notes, hard = [], []
    for name, found in measured.items():
        labels = found.evaluation.labels
        file = f"confusion_{name.replace('/', '_')}"
        plot_confusion(found.evaluation, plots / file, title=name)
        pictures.append(_picture(folder, file, f"Confusion matrix: {name}"))
        gold = np.array([labels.index(str(example.label)) for example in found.examples])
        bins[name] = reliability(found.probabilities, gold)
        hard += hardest(name, found.examples, found.probabilities, labels)
        if found.levels is not None:
            notes.append(
                f"{name}: the expected level is off by {found.levels.mean_absolute_error:.3f} on "
                f"average; quadratic weighted kappa {found.levels.quadratic_kappa:.3f}."
            )
    if bins:
        plot_reliability(bins, plots / "reliability")
        pictures.append(_picture(folder, "reliability", "Calibration"))
    plot_memory(result.memory_by_stage, plots / "memory")
    pictures.append(_picture(folder, "memory", "Memory"))
    write_report(
        folder,
        [result],
        title=f"{result.name}: {result.model} on {result.task}",
        notes=notes,
        pictures=pictures,
        hard=hard,
    )


def _picture(folder: Path, name: str, title: str) -> Picture:
    png = folder / "plots" / f"{name}.png"
    data = base64.b64encode(png.read_bytes()).decode("ascii")
    return Picture(title, str(png.relative_to(folder)), data)
