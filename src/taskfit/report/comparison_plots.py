"""Figures of a comparison: scores by labels, domain, draw and cost, training, abstention.

Each draws a table of `tables.py` and writes PNG and SVG; it returns what the figure shows in
words, for those who do not see it. `path` is where to write, without an ending; `styles` says how
to draw each system, and others are left out; `metric` is what the score is called.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from taskfit.report import run_plots
from taskfit.report.plot_style import (
    CHARACTER,
    DOTTED,
    EDGE,
    HEIGHT,
    ROW,
    WIDTH,
    Style,
    drawing,
    label_ticks,
    legend_height,
    new_figure,
    score_limits,
    styles_of,
    write_figure,
)
from taskfit.report.words import MEGABYTE, count, shorten
from taskfit.stats import Reliability
from taskfit.stats.arrays import FloatArray

LABEL_CHARACTERS = 18  # of a name beside its point
DODGE = 0.17  # decades over which systems of one size are set beside each other
COST_AXES = {
    "training_seconds": "training (seconds, log scale)",
    "total_seconds": "whole run (seconds, log scale)",
    "processor_seconds": "whole run (processor seconds, log scale)",
    "peak_memory_bytes": "peak memory (MB, log scale)",
}


@drawing()
def plot_by_labels(
    scores: pd.DataFrame, path: Path, *, evaluation: str, styles: Mapping[str, Style], metric: str
) -> str:
    """Draw the score of every system by number of labels, with 95 % intervals.

    Drawn is one evaluation set of what `score_table` returns.
    """
    own = scores[(scores["evaluation"] == evaluation) & scores["system"].isin(list(styles))]
    names = list(dict.fromkeys(own["system"]))
    sizes = sorted(set(own["size"]) - {0})
    figure, axes = new_figure(WIDTH, HEIGHT + legend_height(names))
    places = np.linspace(-DODGE / 2, DODGE / 2, len(names)) if len(names) > 1 else [0.0]
    for shift, name in zip(places, names, strict=True):
        rows, style = own[own["system"] == name].sort_values("size"), styles[name]
        if not rows["size"].any():
            axes.axhline(float(rows["score"].iloc[0]), lw=1.4, **style.shown)
            continue
        rows = rows[rows["size"] > 0]
        shown = {**style.shown, **EDGE, "marker": style.marker, "ms": 5, "lw": 1.2}
        x = rows["size"].to_numpy(float) * 10**shift
        axes.errorbar(
            x, rows["score"], _reach(rows), elinewidth=0.8, capsize=1.5, zorder=3, **shown
        )
    if sizes:
        label_ticks(axes, sizes)
    axes.set_ylim(*score_limits([*own["low"], *own["high"], *own["score"]]))
    num, fewest, most = own["num_examples"].max(), own["num_draws"].min(), own["num_draws"].max()
    draws = count(most, "draw") if fewest == most else f"{fewest} to {count(most, 'draw')}"
    axes.set_title(f"{shorten(evaluation)} (n = {num:,}, {draws} a point)", fontsize=9)
    axes.set_ylabel(f"{metric} (95 % interval)")
    write_figure(figure, path, [styles[name].handle(name) for name in names])
    last = own.sort_values("size").groupby("system", sort=False).last()
    ends = [f"{n} {row['score']:.3f} at {row['size']:,} labels" for n, row in last.iterrows()]
    return f"{metric} on {evaluation} by number of labels. {'; '.join(ends)}."


@drawing()
def plot_domains(
    runs: pd.DataFrame,
    path: Path,
    *,
    sets: tuple[str, str],
    styles: Mapping[str, Style],
    metric: str,
    score: str,
) -> str:
    """Draw the score of every system in domain (x) against that out of domain (y).

    A marker is the mean over draws at the most labels, with their range; a line leads there from
    fewer labels. The score of zero-shot is a pair of lines: right of and above them labels have
    helped (as Mosbach et al. 2023, "Few-shot Fine-tuning vs. In-context Learning", figure 1).
    `runs` is what `run_table` returns, `sets` names the evaluation set in domain and one out of
    domain, and `score` is the metric's column.
    """
    inside, outside = sets
    table = runs[runs["system"].isin(list(styles))].pivot_table(
        index=["system", "size", "draw"], columns="evaluation", values=score, sort=False
    )
    table = table.reset_index().dropna(subset=[inside, outside])
    by_name = {str(name): rows for name, rows in table.groupby("system", sort=False)}
    counts = runs.groupby("evaluation")["num_examples"].max()
    limits = score_limits([*table[inside], *table[outside]])
    figure, axes = new_figure(WIDTH, WIDTH + legend_height([*by_name]))
    axes.plot(limits, limits, **DOTTED)
    handles, labels = [], []
    for name, rows in by_name.items():
        style, free = styles[name], not rows["size"].any()
        if free:
            axes.axvline(float(rows[inside].mean()), lw=0.8, zorder=1, **style.shown)
            axes.axhline(float(rows[outside].mean()), lw=0.8, zorder=1, **style.shown)
        sizes = rows.groupby("size")[[inside, outside]]
        means, last = sizes.mean().to_numpy(), sizes.agg(["min", "max"]).to_numpy()[-1]
        style.trail(axes, *means.T, x_range=last[:2], y_range=last[2:])
        handles.append(style.handle(name, line=free))
        labels.append((shorten(name, LABEL_CHARACTERS), *means[-1]))
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set_xlabel(f"{metric} in domain: {shorten(inside)} (n = {counts[inside]:,})")
    axes.set_ylabel(f"{metric} out of domain:\n{shorten(outside)} (n = {counts[outside]:,})")
    write_figure(figure, path, handles, labels=labels)
    kept = float((table[outside] < table[inside]).mean()) if len(table) else 0.0
    return (
        f"{metric} of {len(table)} runs on {inside} against {outside}. "
        f"{kept:.0%} of the runs are worse on {outside}."
    )


@drawing()
def plot_training(
    history: pd.DataFrame, path: Path, *, size: int, styles: Mapping[str, Style]
) -> str:
    """Draw the smoothed training loss of every trained run of a size by optimizer step."""
    own = history[(history["size"] == size) & history["system"].isin(list(styles))]
    names = list(dict.fromkeys(own["system"]))
    figure, axes = new_figure(WIDTH, HEIGHT - 0.3 + legend_height(names))
    runs = own.groupby(["system", "draw"], sort=False)
    for (name, _), rows in runs:
        styles[str(name)].plot(axes, rows["step"], rows["smoothed"], alpha=0.9)
    axes.set_title(f"{size:,} labels (n = {count(len(runs), 'run')})", fontsize=9)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss (nats)")
    axes.set(xlim=(0, None), ylim=(0, None))
    write_figure(figure, path, [styles[name].handle(name) for name in names])
    last = own.groupby("system", sort=False)["smoothed"].last()
    ends = ", ".join(f"{name} {value:.2f}" for name, value in last.items())
    return f"Training loss by step with {size:,} labels; it ends at: {ends}."


@drawing()
def plot_spread(table: pd.DataFrame, path: Path, *, metric: str, varied: str) -> str:
    """Draw the scores of runs that differ in one thing only, a row for each group of them.

    `table` has the columns group, variant, evaluation and score, as from `draw_table`; `varied` is
    what differs, such as `draw`.
    """
    groups = list(dict.fromkeys(table["group"]))
    styles = styles_of(list(dict.fromkeys(table["evaluation"])))
    names = [shorten(group) for group in groups]
    height = 0.7 + (0.14 * len(styles) + 0.12) * len(groups) + legend_height(list(styles))
    figure, axes = new_figure(max(WIDTH, 2.6 + CHARACTER * max(map(len, names))), height)
    widest = ("", 0.0)
    for (group, evaluation), rows in table.groupby(["group", "evaluation"], sort=False):
        name = str(evaluation)
        shift = (list(styles).index(name) - (len(styles) - 1) / 2) * 0.75 / len(styles)
        y, scores = groups.index(str(group)) + shift, rows["score"].to_numpy(float)
        axes.plot([scores.min(), scores.max()], [y, y], color=styles[name].color, lw=1.0, zorder=2)
        styles[name].scatter(axes, scores, np.full(len(scores), y), 20)
        if np.ptp(scores) >= widest[1]:
            widest = (f"{group} on {name}", float(np.ptp(scores)))
    axes.set_yticks(range(len(groups)), names)
    axes.set_ylim(len(groups) - 0.45, -0.55)
    axes.set_xlim(*score_limits(list(table["score"])))
    axes.set_xlabel(f"{metric} of each {varied}")
    write_figure(figure, path, [style.handle(name) for name, style in styles.items()])
    return (
        f"{metric} of each {varied} of {len(groups)} groups of runs. The widest range is "
        f"{widest[1]:.3f}: {widest[0]}."
    )


@drawing()
def plot_cost(
    table: pd.DataFrame,
    path: Path,
    *,
    cost: str,
    evaluation: str,
    styles: Mapping[str, Style],
    metric: str,
) -> str:
    """Draw score against a cost, a marker for each system at its most labels, and the Pareto front.

    A bar is the score's 95 % interval, a line leads there from fewer labels. What costs nothing
    stands left of the axis break, at 0. Members of the front are numbered in
    the picture and named under it.
    `table` is what `cost_table` returns of an evaluation set, `cost` a column of `COST_AXES`.
    """
    own = table[table["system"].isin(list(styles))].reset_index(drop=True)
    names = list(dict.fromkeys(own["system"]))
    front = own[own[f"best_for_{cost}"]].sort_values(cost)
    pairs = zip(front["system"], front["size"], strict=True)
    members = [f"{name}, {size:,} labels" if size else name for name, size in pairs]
    figure, axes = new_figure(WIDTH, HEIGHT + legend_height(names) + ROW * len(members))
    unit = MEGABYTE if cost == "peak_memory_bytes" else 1.0
    at = _place(axes, own[cost].to_numpy(float) / unit)
    for name in names:
        rows = own[own["system"] == name].sort_values("size")
        scores, last = rows["score"].to_numpy(float), rows.iloc[-1]
        styles[name].trail(axes, at[rows.index], scores, y_range=(last["low"], last["high"]))
    edge = at[front.index]
    axes.step(edge, front["score"], where="post", color="0.35", lw=1.2, ls="--", zorder=2)
    last = own.sort_values("size").groupby("system").tail(1)
    axes.set_ylim(*score_limits([*own["score"], *last["low"], *last["high"]]))
    axes.set_xlabel(COST_AXES[cost])
    axes.set_ylabel(f"{metric}: {shorten(evaluation)} (n = {int(own['num_examples'].max()):,})")
    axes.annotate(
        "\n".join(shorten(f"{i}  {member}") for i, member in enumerate(members, 1)),
        (0, 0),
        xytext=(0, -36),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        fontsize=8,
    )
    handles = [styles[name].handle(name, line=False) for name in names]
    points = zip(edge, front["score"], strict=True)
    labels = [(str(i), float(x), float(y)) for i, (x, y) in enumerate(points, 1)]
    write_figure(figure, path, handles, labels=labels)
    return f"{metric} against {COST_AXES[cost]}. Nothing beats: {'; '.join(members)}"


def plot_reliability(bins: pd.DataFrame, path: Path, *, styles: Mapping[str, Style]) -> str:
    """Draw accuracy against confidence, a line for each system, markers as large as their bin."""
    found = {
        str(name): Reliability(*(rows[c].to_numpy() for c in ("confidence", "accuracy", "count")))
        for name, rows in bins.groupby("system", sort=False)
    }
    run_plots.plot_reliability(found, path, styles=styles)
    gaps = [
        f"{name} {np.average(np.abs(one.confidence - one.accuracy), weights=one.count):.3f}"
        for name, one in found.items()
    ]
    return f"Accuracy by confidence. Mean distance from the diagonal: {', '.join(gaps)}."


@drawing()
def plot_risk_coverage(curves: pd.DataFrame, path: Path, *, styles: Mapping[str, Style]) -> str:
    """Draw the share of wrong answers among the surest, by how many are answered."""
    names = list(dict.fromkeys(curves["system"]))
    first = curves.groupby("system", sort=False).first()
    figure, axes = new_figure(WIDTH, HEIGHT + legend_height(names))
    for name, rows in curves.groupby("system", sort=False):
        styles[str(name)].plot(axes, rows["coverage"], rows["risk"])
    axes.set_xlim(0, 1.03)
    axes.set_ylim(0, max(0.05, 1.05 * float(curves["risk"].max())))
    axes.set_xlabel("coverage: share of texts answered, surest first")
    axes.set_ylabel("risk: share of wrong answers")
    counts = {name: f" (n = {num:,})" for name, num in first["num_examples"].items()}
    write_figure(figure, path, [styles[name].handle(name, counts[name]) for name in names])
    found = ", ".join(f"{name} {value:.3f}" for name, value in first["aurc"].items())
    return f"Risk by coverage. Area under the curve: {found}."


def _reach(rows: pd.DataFrame) -> FloatArray:
    score = rows["score"].to_numpy(float)
    below, above = score - rows["low"].to_numpy(float), rows["high"].to_numpy(float) - score
    # Percentiles of a resample may leave the score itself outside by rounding.
    return np.asarray(np.maximum(np.stack([below, above]), 0.0))


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
    some_free = bool((values == 0).any())
    axes.set_xlim((nothing if some_free else low) / reach**0.06, high * reach**0.06)
    first = nothing * reach**0.07 if some_free else axes.get_xlim()[0]
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1,), (1, 2, 5)):
        ticks = [step * 10.0**k for k in decades for step in steps]
        ticks = [tick for tick in ticks if first <= tick <= axes.get_xlim()[1]]
        if len(ticks) >= 2:
            break
    else:
        ticks = [low, high] if high > low else [low]
    labels = [f"{tick:,.3g}" if tick < 1000 else f"{tick:,.0f}" for tick in ticks]
    if some_free:
        ticks, labels = [nothing, *ticks], ["0", *labels]
        axes.axvline(nothing * reach**0.06, color="0.6", lw=0.8, ls=(0, (1, 2)))
    axes.set_xticks(ticks, labels)
    axes.set_xticks([], minor=True)
    return np.where(values > 0, values, nothing)
