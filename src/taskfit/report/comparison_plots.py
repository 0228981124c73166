"""Figures of the scores of a comparison: by number of labels, in and out of domain, by draw.

Each draws a table of `tables.py` and writes PNG and SVG; it returns what the figure shows in
words, for those who do not see it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from taskfit.report.evidence import FloatArray
from taskfit.report.plot_style import (
    COLORS,
    EDGE,
    HEIGHT,
    MARKERS,
    WIDTH,
    Style,
    add_legend,
    area,
    drawing,
    handle,
    label_ticks,
    legend_height,
    score_limits,
    size_handles,
)
from taskfit.report.run_plots import CHARACTER, new_figure, shorten, write_figure

DODGE = 0.17  # decades over which systems of one size are set beside each other


def plot_by_labels(
    scores: pd.DataFrame, path: Path, *, evaluation: str, styles: Mapping[str, Style], metric: str
) -> str:
    """Draw the score of every system by number of labels, with 95 % intervals.

    Args:
        scores: As `score_table` returns it.
        path: Where to write, without an ending.
        evaluation: Which evaluation set.
        styles: How to draw each system; others are left out.
        metric: What the score is called.
    """
    own = scores[(scores["evaluation"] == evaluation) & scores["system"].isin(list(styles))]
    names = list(dict.fromkeys(own["system"]))
    sizes = sorted(set(own["size"]) - {0})
    with drawing():
        figure, axes = new_figure(WIDTH, HEIGHT + legend_height(names))
        places = np.linspace(-DODGE / 2, DODGE / 2, len(names)) if len(names) > 1 else [0.0]
        for shift, name in zip(places, names, strict=True):
            rows, style = own[own["system"] == name].sort_values("size"), styles[name]
            if not rows["size"].any():
                axes.axhline(float(rows["score"].iloc[0]), color=style.color, ls=style.line, lw=1.4)
                continue
            rows = rows[rows["size"] > 0]
            axes.errorbar(
                rows["size"].to_numpy(float) * 10**shift,
                rows["score"],
                _reach(rows),
                color=style.color,
                ls=style.line,
                lw=1.2,
                marker=style.marker,
                ms=5,
                mec=EDGE,
                mew=0.5,
                elinewidth=0.8,
                capsize=1.5,
                zorder=3,
            )
        if sizes:
            label_ticks(axes, sizes)
        axes.set_ylim(*score_limits([*own["low"], *own["high"], *own["score"]]))
        _title(axes, evaluation, own)
        axes.set_ylabel(f"{metric} (95 % interval)")
        add_legend(figure, [handle(styles[name], name) for name in names])
        write_figure(figure, path)
    return f"{metric} on {evaluation} by number of labels. " + _ends(own)


def plot_domains(
    runs: pd.DataFrame,
    path: Path,
    *,
    sets: tuple[str, str],
    styles: Mapping[str, Style],
    metric: str,
    score: str,
) -> str:
    """Draw every run's score in domain (x) against that out of domain (y).

    The score of zero-shot is a pair of lines: right of and above them labels have helped (as
    Mosbach et al. 2023, "Few-shot Fine-tuning vs. In-context Learning", figure 1).

    Args:
        runs: As `run_table` returns it.
        path: Where to write, without an ending.
        sets: Evaluation set in domain and the one out of domain.
        styles: How to draw each system; others are left out.
        metric: What the score is called.
        score: Its column.
    """
    inside, outside = sets
    table = runs[runs["system"].isin(list(styles))].pivot_table(
        index=["system", "size", "draw"], columns="evaluation", values=score, sort=False
    )
    table = table.reset_index().dropna(subset=[inside, outside])
    names = list(dict.fromkeys(table["system"]))
    sizes = sorted(set(table["size"]) - {0})
    counts = runs.groupby("evaluation")["num_examples"].max()
    keys = [f"{size:,} labels" for size in sizes[:3]]
    limits = score_limits([*table[inside], *table[outside]])
    with drawing():
        figure, axes = new_figure(WIDTH, WIDTH + legend_height([*names, *keys, "equal"]))
        axes.plot(limits, limits, color="0.6", lw=0.8, ls=(0, (1, 3)))
        for name in names:
            rows, style = table[table["system"] == name], styles[name]
            if not rows["size"].any():
                x, y = float(rows[inside].mean()), float(rows[outside].mean())
                axes.axvline(x, color=style.color, ls=style.line, lw=1.2, zorder=1)
                axes.axhline(y, color=style.color, ls=style.line, lw=1.2, zorder=1)
            axes.scatter(
                rows[inside],
                rows[outside],
                s=[area(int(size)) for size in rows["size"]],
                color=style.color,
                marker=style.marker,
                edgecolors=EDGE,
                linewidths=0.5,
                alpha=0.85,
                zorder=3,
            )
        axes.set(xlim=limits, ylim=limits, aspect="equal")
        axes.set_xlabel(f"{metric} in domain: {shorten(inside)} (n = {counts[inside]:,})")
        axes.set_ylabel(f"{metric} out of domain:\n{shorten(outside)} (n = {counts[outside]:,})")
        free = {name for name in names if not table[table["system"] == name]["size"].any()}
        handles = [handle(styles[name], name, line=name in free) for name in names]
        add_legend(figure, [*handles, *size_handles(sizes)])
        write_figure(figure, path)
    kept = float((table[outside] < table[inside]).mean()) if len(table) else 0.0
    return (
        f"{metric} of {len(table)} runs on {inside} against {outside}. "
        f"{kept:.0%} of the runs are worse on {outside}."
    )


def plot_training(
    history: pd.DataFrame, path: Path, *, size: int, styles: Mapping[str, Style]
) -> str:
    """Draw the smoothed training loss of every trained run of a size by optimizer step."""
    own = history[(history["size"] == size) & history["system"].isin(list(styles))]
    names = list(dict.fromkeys(own["system"]))
    with drawing():
        figure, axes = new_figure(WIDTH, HEIGHT - 0.3 + legend_height(names))
        for (name, _), rows in own.groupby(["system", "draw"], sort=False):
            style = styles[str(name)]
            axes.plot(
                rows["step"],
                rows["smoothed"],
                color=style.color,
                ls=style.line,
                lw=1.3,
                marker=style.marker,
                ms=5,
                mec=EDGE,
                mew=0.5,
                markevery=max(1, len(rows) // 7),
                alpha=0.9,
            )
        runs = len(own.groupby(["system", "draw"]))
        axes.set_title(f"{size:,} labels (n = {runs} {'run' if runs == 1 else 'runs'})", fontsize=9)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("training loss (nats)")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        add_legend(figure, [handle(styles[name], name) for name in names])
        write_figure(figure, path)
    last = own.groupby("system", sort=False)["smoothed"].last()
    ends = ", ".join(f"{name} {value:.2f}" for name, value in last.items())
    return f"Training loss by step with {size:,} labels; it ends at: {ends}."


def plot_spread(table: pd.DataFrame, path: Path, *, metric: str, varied: str) -> str:
    """Draw the scores of runs that differ in one thing only, a row for each group of them.

    Args:
        table: Columns group, variant, evaluation and score, as `draw_table` returns it.
        path: Where to write, without an ending.
        metric: What the score is called.
        varied: What differs, such as `draw`.
    """
    groups = list(dict.fromkeys(table["group"]))
    sets = list(dict.fromkeys(table["evaluation"]))
    names = [shorten(group) for group in groups]
    row = 0.14 * len(sets) + 0.12
    longest = CHARACTER * max(map(len, names))
    with drawing():
        height = 0.7 + row * len(groups) + legend_height(sets)
        figure, axes = new_figure(max(WIDTH, 2.6 + longest), height)
        widest = ("", 0.0)
        for (group, name), rows in table.groupby(["group", "evaluation"], sort=False):
            k = sets.index(name)
            y = groups.index(group) + (k - (len(sets) - 1) / 2) * 0.75 / len(sets)
            scores = rows["score"].to_numpy(float)
            color = COLORS[k % len(COLORS)]
            axes.plot([scores.min(), scores.max()], [y, y], color=color, lw=1.0, zorder=2)
            axes.scatter(
                scores,
                np.full(len(scores), y),
                s=20,
                color=color,
                marker=MARKERS[k % len(MARKERS)],
                edgecolors=EDGE,
                linewidths=0.4,
                zorder=3,
            )
            if np.ptp(scores) >= widest[1]:
                widest = (f"{group} on {name}", float(np.ptp(scores)))
        axes.set_yticks(range(len(groups)), names)
        axes.set_ylim(len(groups) - 0.45, -0.55)
        axes.set_xlim(*score_limits(list(table["score"])))
        axes.set_xlabel(f"{metric} of each {varied}")
        marks = [Style(COLORS[k % 7], MARKERS[k % len(MARKERS)], "-") for k in range(len(sets))]
        add_legend(figure, [handle(m, s) for m, s in zip(marks, sets, strict=True)])
        write_figure(figure, path)
    return (
        f"{metric} of each {varied} of {len(groups)} groups of runs. The widest range is "
        f"{widest[1]:.3f}: {widest[0]}."
    )


def _reach(rows: pd.DataFrame) -> FloatArray:
    score = rows["score"].to_numpy(float)
    below, above = score - rows["low"].to_numpy(float), rows["high"].to_numpy(float) - score
    # Percentiles of a resample may leave the score itself outside by rounding.
    return np.asarray(np.maximum(np.stack([below, above]), 0.0))


def _title(axes: Axes, evaluation: str, own: pd.DataFrame) -> None:
    num, draws = own["num_examples"].max(), own["num_draws"]
    span = f"{draws.min()}" if draws.min() == draws.max() else f"{draws.min()} to {draws.max()}"
    noun = "draw" if draws.max() == 1 else "draws"
    axes.set_title(f"{shorten(evaluation)} (n = {num:,}, {span} {noun} a point)", fontsize=9)


def _ends(own: pd.DataFrame) -> str:
    """Return the score of each system at its largest size, in words."""
    last = own.sort_values("size").groupby("system", sort=False).last()
    found: Sequence[str] = [
        f"{name} {row['score']:.3f} at {row['size']:,} labels" for name, row in last.iterrows()
    ]
    return "; ".join(found) + "."
