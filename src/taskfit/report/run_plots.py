"""The pictures of a run, each written as PNG and SVG; some are of a comparison too."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seaborn as sns

from taskfit.report.plot_style import (
    CHARACTER,
    COLORS,
    DOTTED,
    WIDTH,
    Style,
    drawing,
    legend_height,
    new_figure,
    smoothed,
    styles_of,
    write_figure,
)
from taskfit.report.words import MEGABYTE, METRIC_NAMES, shorten
from taskfit.runs.records import RunResult
from taskfit.stats import Evaluation, Reliability
from taskfit.stats.per_class import ClassRow

MAX_CELLS = 12  # classes up to which a confusion matrix shows its numbers
MAX_CLASSES = 20  # in one picture of precision and recall
LEVEL_CHARACTERS = 12  # label up to which two or three labels stand level side by side


@drawing()
def plot_comparison(results: Sequence[RunResult], path: Path, *, metric: str = "accuracy") -> None:
    """Draw a metric with 95 % intervals by evaluation set, a colour for each run."""
    names = list(dict.fromkeys(name for r in results for name in r.evaluations))
    shown_names = [shorten(result.name) for result in results]
    page = max(5.0, 1.6 + 1.3 * len(names))  # inches
    columns = max(1, int(page / (0.6 + CHARACTER * max(map(len, shown_names)))))
    figure, axes = new_figure(page, 3.4 + 0.2 * math.ceil(len(results) / columns))
    width = 0.8 / len(results)
    lowest = 0.0  # where bars must start; MCC may be negative
    for index, result in enumerate(results):
        shown = [n for n in names if n in result.evaluations]
        values = np.array([getattr(result.evaluations[n], metric) for n in shown])
        bounds = np.array([result.evaluations[n].intervals[metric] for n in shown]).reshape(-1, 2)
        places = (
            np.array([names.index(n) for n in shown]) + (index - (len(results) - 1) / 2) * width
        )
        color = COLORS[index % len(COLORS)]
        axes.bar(places, values, width * 0.92, color=color, label=shown_names[index], zorder=2)
        errors = np.abs(bounds.T - values)
        axes.errorbar(places, values, errors, fmt="none", ecolor="0.25", capsize=2, lw=1, zorder=3)
        lowest = min([lowest, *bounds[:, 0]])
    counts = {n: r.evaluations[n].num_examples for r in results for n in r.evaluations}
    axes.set_xticks(range(len(names)), [f"{shorten(n)}\nn = {counts[n]:,}" for n in names])
    axes.set_ylim(lowest, 1.0)
    axes.set_ylabel(f"{METRIC_NAMES[metric]} (95 % interval)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False)
    write_figure(figure, path)


@drawing()
def plot_history(
    records: Sequence[Mapping[str, Any]], path: Path, *, metric: str | None, unit: str = "example"
) -> None:
    """Draw training loss by step, and loss and metric of validations where there are any.

    Args:
        records: Of `metrics.jsonl`.
        path: Where to write, without ending.
        metric: Metric of validations to draw beside their loss; None: the loss alone.
        unit: What the loss is a mean over.
    """
    steps = [r for r in records if r["kind"] == "step"]
    validations = [r for r in records if r["kind"] == "validation"]
    figure, axes = new_figure(5.6, 3.4)
    places, losses = [r["step"] for r in steps], [r["loss"] for r in steps]
    axes.plot(places, losses, color=COLORS[0], alpha=0.3, lw=0.8)
    axes.plot(places, smoothed(losses), color=COLORS[0], label="training loss, smoothed")
    at = [r["step"] for r in validations]
    if validations:
        losses = [r["loss"] for r in validations]
        axes.plot(at, losses, "o-", ms=3, color=COLORS[5], label="validation loss")
    if validations and metric is not None:
        right, name = axes.twinx(), f"validation {METRIC_NAMES[metric]}"
        right.plot(at, [r[metric] for r in validations], "s--", ms=3, color=COLORS[2])
        axes.plot([], [], "s--", ms=3, color=COLORS[2], label=name)
        right.set_ylabel(name)
        right.set_ylim(min(0.0, *(r[metric] for r in validations)), 1.0)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(f"loss per {unit} (nats)")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), ncols=2, frameon=False, fontsize=8)
    write_figure(figure, path)


@drawing()
def plot_confusion(evaluation: Evaluation, path: Path, *, title: str) -> None:
    """Draw a confusion matrix, rows gold, shaded by the share of the gold class."""
    matrix = np.array(evaluation.confusion_matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = len(matrix)
    names = [shorten(label) for label in evaluation.labels]
    longest = max(map(len, names))
    side = min(9.0, 2.6 + 0.45 * size) + CHARACTER * max(0, longest - LEVEL_CHARACTERS)
    figure, axes = new_figure(side + 0.6, side)
    many = size > MAX_CELLS
    sns.heatmap(
        shares,
        ax=axes,
        annot=False if many else matrix,
        fmt="" if many else "d",
        cmap="Blues",
        vmin=0,
        vmax=1,
        square=True,
        linewidths=0 if many else 0.5,
        xticklabels=names,
        yticklabels=names,
        cbar_kws={"label": "share of the gold class", "shrink": 0.8},
    )
    upright = size > 3 or longest > LEVEL_CHARACTERS
    axes.tick_params(axis="x", rotation=90 if upright else 0, labelsize=6 if many else 9)
    axes.tick_params(axis="y", rotation=0, labelsize=6 if many else 9)
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold")
    axes.set_title(f"{shorten(title)} (n = {evaluation.num_examples:,})", fontsize=10)
    write_figure(figure, path)


@drawing()
def plot_classes(rows: Sequence[ClassRow], path: Path, *, title: str) -> None:
    """Draw precision and recall of the first classes, a row for each with its number of texts."""
    shown = rows[:MAX_CLASSES]
    figure, axes = new_figure(5.0, 0.9 + 0.22 * max(3, len(shown)))
    for key, color, marker in (("recall", COLORS[0], "o"), ("precision", COLORS[5], "D")):
        values = [getattr(row, key) for row in shown]
        there = np.array([(v, place) for place, v in enumerate(values) if v is not None])
        x, y = there.reshape(-1, 2).T
        axes.scatter(x, y, 26, color, marker=marker, label=key, zorder=3, clip_on=False)
    axes.set_yticks(
        range(len(shown)), [f"{shorten(row.name, 24)} ({row.num_gold:,})" for row in shown]
    )
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    left = f"; the {len(shown)} weakest of {len(rows)}" if len(rows) > len(shown) else ""
    axes.set_title(f"{shorten(title)}{left}", fontsize=10)
    figure.legend(loc="outside lower right", ncols=2, frameon=False, fontsize=8)
    write_figure(figure, path)


@drawing()
def plot_reliability(
    bins: Mapping[str, Reliability], path: Path, *, styles: Mapping[str, Style] | None = None
) -> None:
    """Draw accuracy against confidence, a line for each name, markers as large as their bin."""
    styles = styles or styles_of(list(bins))
    counts = {name: f" (n = {found.count.sum():,})" for name, found in bins.items()}
    largest = max((found.count.max() for found in bins.values()), default=1)
    figure, axes = new_figure(
        WIDTH, WIDTH - 0.6 + legend_height([*(n + c for n, c in counts.items()), "equal"])
    )
    (equal,) = axes.plot([0, 1], [0, 1], label="perfectly calibrated", **DOTTED)
    for name, found in bins.items():
        x, y, sizes = found.confidence, found.accuracy, 10 + 70 * found.count / largest
        axes.plot(x, y, color=styles[name].color, ls=styles[name].line, lw=1.2)
        styles[name].scatter(axes, x, y, sizes, label=shorten(name) + counts[name], clip_on=False)
    axes.set(xlim=(0, 1.03), ylim=(0, 1.03))
    axes.set_xlabel("probability of the predicted label")
    axes.set_ylabel("share of right predictions")
    write_figure(figure, path, [*(styles[n].handle(n, c) for n, c in counts.items()), equal])


@drawing()
def plot_memory(memory_by_stage: Mapping[str, int], path: Path) -> None:
    """Draw what each stage added to the memory in use, as one stacked bar."""
    figure, axes = new_figure(6.0, 1.9)
    left = 0.0
    for index, (stage, size) in enumerate(memory_by_stage.items()):
        width, color = size / MEGABYTE, COLORS[index % len(COLORS)]
        label = f"{stage} {width:,.0f} MB"
        axes.barh(0, width, left=left, color=color, label=label, height=0.5)
        left += width
    axes.set_yticks([])
    axes.set_xlim(0, max(left, 1) * 1.02)
    axes.set_xlabel(f"memory in use at the peak of each stage (MB); {left:,.0f} MB in all")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.45), ncols=4, frameon=False, fontsize=8)
    write_figure(figure, path)
