"""Figures of costs and of confidence: Pareto fronts, reliability, risk by coverage."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from taskfit.report.evidence import FloatArray
from taskfit.report.plot_style import (
    EDGE,
    HEIGHT,
    ROW,
    WIDTH,
    Style,
    add_legend,
    area,
    drawing,
    handle,
    legend_height,
    score_limits,
    size_handles,
)
from taskfit.report.run_plots import MEGABYTE, new_figure, shorten, write_figure

COST_NAMES = {
    "training_seconds": "training (seconds, log scale)",
    "total_seconds": "whole run (seconds, log scale)",
    "processor_seconds": "whole run (processor seconds, log scale)",
    "peak_memory_bytes": "peak memory (MB, log scale)",
}


def plot_cost(
    table: pd.DataFrame,
    path: Path,
    *,
    cost: str,
    evaluation: str,
    styles: Mapping[str, Style],
    metric: str,
) -> str:
    """Draw score against a cost, a marker for each system and size, and the Pareto front.

    What costs nothing stands left of the axis break, at 0. Members of the front are numbered in
    the picture and named under it.

    Args:
        table: As `cost_table` returns it.
        path: Where to write, without an ending.
        cost: A column of it, of `COST_NAMES`.
        evaluation: Which evaluation set the score is of.
        styles: How to draw each system; others are left out.
        metric: What the score is called.
    """
    own = table[table["system"].isin(list(styles))].reset_index(drop=True)
    names, sizes = list(dict.fromkeys(own["system"])), sorted(set(own["size"]))
    front = own[own[f"best_for_{cost}"]].sort_values(cost)
    unit = MEGABYTE if cost == "peak_memory_bytes" else 1.0
    values = own[cost].to_numpy(float) / unit
    pairs = zip(front["system"], front["size"], strict=True)
    members = [f"{i}  {_point(name, size)}" for i, (name, size) in enumerate(pairs, 1)]
    marks = [*names, *(f"{size:,} labels" for size in sizes[:3])]
    with drawing():
        figure, axes = new_figure(WIDTH, HEIGHT + legend_height(marks) + ROW * len(members))
        at = _place(axes, values)
        for name in names:
            rows, style = own.index[own["system"] == name], styles[name]
            axes.scatter(
                at[rows],
                own.loc[rows, "score"],
                s=[area(int(size)) for size in own.loc[rows, "size"]],
                color=style.color,
                marker=style.marker,
                edgecolors=EDGE,
                linewidths=0.5,
                alpha=0.9,
                zorder=3,
            )
        edge = at[front.index]
        axes.step(edge, front["score"], where="post", color="0.35", lw=1.2, ls="--", zorder=2)
        _number(axes, edge, front["score"].to_numpy(float))
        axes.set_ylim(*score_limits([*own["score"], float(own["score"].max()) + 0.03]))
        axes.set_xlabel(COST_NAMES[cost])
        num = int(own["num_examples"].max())
        axes.set_ylabel(f"{metric}: {shorten(evaluation)} (n = {num:,})")
        axes.annotate(
            "\n".join(shorten(member) for member in members),
            (0, 0),
            xytext=(0, -36),
            xycoords="axes fraction",
            textcoords="offset points",
            va="top",
            fontsize=8,
        )
        handles = [handle(styles[name], name, line=False) for name in names]
        add_legend(figure, [*handles, *size_handles(sizes)])
        write_figure(figure, path)
    return f"{metric} against {COST_NAMES[cost]}. Nothing beats: " + "; ".join(
        member.split("  ", 1)[1] for member in members
    )


def plot_reliability(bins: pd.DataFrame, path: Path, *, styles: Mapping[str, Style]) -> str:
    """Draw accuracy against confidence, a line for each system, markers as large as their bin."""
    names = list(dict.fromkeys(bins["system"]))
    with drawing():
        figure, axes = new_figure(WIDTH, WIDTH - 0.6 + legend_height(names))
        axes.plot([0, 1], [0, 1], color="0.6", lw=0.8, ls=(0, (1, 3)))
        for name in names:
            rows, style = bins[bins["system"] == name], styles[name]
            axes.plot(
                rows["confidence"], rows["accuracy"], color=style.color, ls=style.line, lw=1.2
            )
            axes.scatter(
                rows["confidence"],
                rows["accuracy"],
                s=10 + 70 * rows["count"] / bins["count"].max(),
                color=style.color,
                marker=style.marker,
                edgecolors=EDGE,
                linewidths=0.5,
                zorder=3,
            )
        axes.set(xlim=(0, 1.03), ylim=(-0.03, 1.03))
        axes.set_xlabel("probability of the predicted label")
        axes.set_ylabel("share of right predictions")
        counts = bins.groupby("system", sort=False)["count"].sum()
        add_legend(figure, [handle(styles[n], f"{n} (n = {counts[n]:,})") for n in names])
        write_figure(figure, path)
    gaps = [f"{name} {_gap(rows):.3f}" for name, rows in bins.groupby("system", sort=False)]
    return f"Accuracy by confidence. Mean distance from the diagonal: {', '.join(gaps)}."


def _gap(rows: pd.DataFrame) -> float:
    gaps = (rows["confidence"] - rows["accuracy"]).abs()
    return float(np.average(gaps, weights=rows["count"]))


def plot_risk_coverage(curves: pd.DataFrame, path: Path, *, styles: Mapping[str, Style]) -> str:
    """Draw the share of wrong answers among the surest, by how many are answered."""
    names = list(dict.fromkeys(curves["system"]))
    with drawing():
        figure, axes = new_figure(WIDTH, HEIGHT + legend_height(names))
        for name in names:
            rows, style = curves[curves["system"] == name], styles[name]
            axes.plot(
                rows["coverage"],
                rows["risk"],
                color=style.color,
                ls=style.line,
                lw=1.3,
                marker=style.marker,
                ms=5,
                mec=EDGE,
                mew=0.5,
                markevery=max(1, len(rows) // 7),
            )
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, max(0.05, 1.05 * float(curves["risk"].max())))
        axes.set_xlabel("coverage: share of texts answered, surest first")
        axes.set_ylabel("risk: share of wrong answers")
        counts = curves.groupby("system", sort=False)["num_examples"].first()
        add_legend(figure, [handle(styles[n], f"{n} (n = {counts[n]:,})") for n in names])
        write_figure(figure, path)
    areas = curves.groupby("system", sort=False)["aurc"].first()
    found = ", ".join(f"{name} {value:.3f}" for name, value in areas.items())
    return f"Risk by coverage. Area under the curve: {found}."


def _point(name: str, size: int) -> str:
    return f"{name}, {size:,} labels" if size else name


def _place(axes: Axes, values: FloatArray) -> FloatArray:
    """Make the x axis a log scale and return where values stand on it, 0 left of all others."""
    axes.set_xscale("log")
    above = values[values > 0]
    if not len(above):
        axes.set_xlim(0.1, 10)
        axes.set_xticks([1.0], ["0"])
        axes.set_xticks([], minor=True)
        return np.ones_like(values)
    low, high = float(above.min()), float(above.max())
    reach = max(high / low, 10.0)
    nothing = low / reach**0.15
    axes.set_xlim((nothing if (values == 0).any() else low) / reach**0.06, high * reach**0.06)
    ticks = [10.0**k for k in range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)]
    first = nothing * reach**0.07 if (values == 0).any() else axes.get_xlim()[0]
    ticks = [tick for tick in ticks if first <= tick <= axes.get_xlim()[1]]
    if len(ticks) < 2:
        ticks = [low, high] if high > low else [low]
    labels = [f"{tick:,.3g}" if tick < 1000 else f"{tick:,.0f}" for tick in ticks]
    if (values == 0).any():
        ticks, labels = [nothing, *ticks], ["0", *labels]
        axes.axvline(nothing * reach**0.06, color="0.6", lw=0.8, ls=(0, (1, 2)))
    axes.set_xticks(ticks, labels)
    axes.set_xticks([], minor=True)
    return np.where(values > 0, values, nothing)


def _number(axes: Axes, at: FloatArray, scores: FloatArray) -> None:
    """Number the points of the front, up and down in turn so that neighbours keep apart."""
    for i, (x, y) in enumerate(zip(at, scores, strict=True)):
        axes.annotate(
            str(i + 1),
            (float(x), float(y)),
            xytext=(-5, 6) if i % 2 == 0 else (7, -10),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            fontweight="bold",
            zorder=4,
        )
