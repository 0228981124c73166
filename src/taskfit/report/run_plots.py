"""The pictures of a run or a comparison, each written as PNG and SVG.

Colours are Okabe and Ito's, which people with any colour vision can tell apart. Figures are made
without pyplot, so that no state of the caller's plots is touched.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from taskfit.runs.records import RunResult
from taskfit.stats import Evaluation, Reliability

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
METRIC_NAMES = {"accuracy": "accuracy", "mcc": "MCC", "macro_f1": "macro F1"}
MEGABYTE = 1e6
MAX_CELLS = 12  # classes up to which a confusion matrix shows its numbers
CHARACTER = 0.085  # width of a character in legends and labels (inches)
LEVEL_CHARACTERS = 12  # label up to which two or three labels stand level side by side
MAX_CHARACTERS = 40  # a longer name is cut, or it would leave no room for the picture
# Names and labels are the user's: a dollar sign in them starts no formula.
plain_text = mpl.rc_context({"text.parse_math": False})


@plain_text
def plot_comparison(results: Sequence[RunResult], path: Path, *, metric: str = "accuracy") -> None:
    """Draw a metric with 95 % intervals by evaluation set, a colour for each run."""
    names = list(dict.fromkeys(name for r in results for name in r.evaluations))
    shown_names = [shorten(result.name) for result in results]
    page = max(5.0, 1.6 + 1.3 * len(names))  # inches
    columns = max(1, int(page / (0.6 + CHARACTER * max(map(len, shown_names)))))
    figure, axes = new_figure(page, 3.4 + 0.2 * math.ceil(len(results) / columns))
    width = 0.8 / len(results)
    for index, result in enumerate(results):
        shown = [n for n in names if n in result.evaluations]
        values = np.array([getattr(result.evaluations[n], metric) for n in shown])
        bounds = np.array([result.evaluations[n].intervals[metric] for n in shown])
        places = (
            np.array([names.index(n) for n in shown]) + (index - (len(results) - 1) / 2) * width
        )
        axes.bar(
            places,
            values,
            width * 0.92,
            color=PALETTE[index % 8],
            label=shown_names[index],
            zorder=2,
        )
        errors = np.abs(bounds.T - values)
        axes.errorbar(places, values, errors, fmt="none", ecolor="0.25", capsize=2, lw=1, zorder=3)
    counts = {n: r.evaluations[n].num_examples for r in results for n in r.evaluations}
    axes.set_xticks(range(len(names)), [f"{shorten(n)}\nn = {counts[n]:,}" for n in names])
    # MCC may be negative; accuracy starts at 0, where bars must start.
    lowest = min(
        (r.evaluations[n].intervals[metric][0] for r in results for n in r.evaluations), default=0.0
    )
    axes.set_ylim(min(0.0, lowest), 1.0)
    axes.set_ylabel(f"{METRIC_NAMES[metric]} (95 % interval)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False)
    write_figure(figure, path)


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
    axes.plot(
        [r["step"] for r in steps], [r["loss"] for r in steps], color=PALETTE[0], alpha=0.3, lw=0.8
    )
    smooth = smoothed([r["loss"] for r in steps])
    axes.plot([r["step"] for r in steps], smooth, color=PALETTE[0], label="training loss, smoothed")
    if validations:
        at = [r["step"] for r in validations]
        axes.plot(
            at,
            [r["loss"] for r in validations],
            "o-",
            ms=3,
            color=PALETTE[5],
            label="validation loss",
        )
    if validations and metric is not None:
        right = axes.twinx()
        right.plot(at, [r[metric] for r in validations], "s--", ms=3, color=PALETTE[2])
        axes.plot([], [], "s--", ms=3, color=PALETTE[2], label=f"validation {METRIC_NAMES[metric]}")
        right.set_ylabel(f"validation {METRIC_NAMES[metric]}")
        right.set_ylim(min(0.0, *(r[metric] for r in validations)), 1.0)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(f"loss per {unit} (nats)")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), ncols=2, frameon=False, fontsize=8)
    write_figure(figure, path)


@plain_text
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


@plain_text
def plot_reliability(bins: Mapping[str, Reliability], path: Path) -> None:
    """Draw accuracy against confidence, a line for each evaluation set."""
    figure, axes = new_figure(4.4, 4.0)
    axes.plot([0, 1], [0, 1], color="0.6", lw=1, ls=":", label="perfectly calibrated")
    for index, (name, found) in enumerate(bins.items()):
        color = PALETTE[index % 8]
        axes.plot(found.confidence, found.accuracy, color=color, lw=1.2)
        axes.scatter(
            found.confidence,
            found.accuracy,
            s=8 + 60 * found.count / found.count.max(),
            color=color,
            label=f"{shorten(name)} (n = {found.count.sum():,})",
            zorder=3,
        )
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("probability of the predicted label")
    axes.set_ylabel("share of right predictions")
    axes.legend(fontsize=7, frameon=False, loc="upper left")
    write_figure(figure, path)


def plot_memory(memory_by_stage: Mapping[str, int], path: Path) -> None:
    """Draw what each stage added to the memory in use, as one stacked bar."""
    figure, axes = new_figure(6.0, 1.9)
    left = 0.0
    for index, (stage, size) in enumerate(memory_by_stage.items()):
        width = size / MEGABYTE
        axes.barh(
            0,
            width,
            left=left,
            color=PALETTE[index % 8],
            label=f"{stage} {width:,.0f} MB",
            height=0.5,
        )
        left += width
    axes.set_yticks([])
    axes.set_xlim(0, max(left, 1) * 1.02)
    axes.set_xlabel(f"memory in use at the peak of each stage (MB); {left:,.0f} MB in all")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.45), ncols=4, frameon=False, fontsize=8)
    write_figure(figure, path)


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of this size (inches) and its axes."""
    with sns.axes_style("whitegrid", {"grid.color": "0.9", "axes.edgecolor": "0.6"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
    sns.despine(ax=axes)
    return figure, axes


def write_figure(figure: Figure, path: Path) -> None:
    """Write PNG and SVG; text stays text in the SVG, and equal input gives equal files.

    The endings are added, not put in place of another: a name such as `v1.0` has a dot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "taskfit"}):
        figure.savefig(path.with_name(f"{path.name}.svg"), metadata={"Date": None})
    figure.savefig(path.with_name(f"{path.name}.png"), dpi=150)


def shorten(name: str) -> str:
    """Return a name of at most `MAX_CHARACTERS`, the last of them an ellipsis if it was cut."""
    return name if len(name) <= MAX_CHARACTERS else name[: MAX_CHARACTERS - 1] + "…"


def smoothed(values: Sequence[float]) -> list[float]:
    """Return a running mean that forgets with the length of the series, unbiased at its start."""
    keep = 1 - 1 / max(1.0, len(values) / 20)
    mean, weight, means = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        means.append(mean / weight)
    return means
