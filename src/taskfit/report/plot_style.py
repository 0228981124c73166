"""What all figures share: colours, markers, legends, fonts, and how they are written.

A name keeps its colour, marker and line in every figure of a page, and no two of the first 77 share
all three, so that figures read in grey too. Figures are made without pyplot, so that no state of
the caller's plots is touched.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from taskfit.report.words import MAX_CHARACTERS, shorten
from taskfit.stats.arrays import FloatArray

# Okabe and Ito's, which people with any colour vision can tell apart, without yellow, which is lost
# on white.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
LineStyle = str | tuple[int, tuple[float, ...]]
LINES: tuple[LineStyle, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
EDGE: dict[str, Any] = {"mec": "0.15", "mew": 0.5}
DOTTED: dict[str, Any] = {"color": "0.6", "lw": 0.8, "ls": (0, (1, 3))}
WIDTH = 4.2  # inches; a phone shows it at 80 pixels an inch
HEIGHT = 2.9  # inches of the axes with their labels, legend not counted
ROW = 0.19  # inches of a legend's row
LABEL_SIZE = 7  # of names beside points (points)
CHARACTER = 0.085  # width of a character in legends and labels (inches)
FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Noto Sans JP",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans",
    "Droid Sans Fallback",
    "Arial Unicode MS",
)


@dataclass(frozen=True, slots=True)
class Style:
    """How a name is drawn: colour of line and marker, the marker's shape, the line's style."""

    color: str
    marker: str
    line: LineStyle

    @property
    def shown(self) -> dict[str, Any]:
        """Return colour and line as matplotlib's arguments."""
        return {"color": self.color, "ls": self.line}

    def plot(self, axes: Axes, x: Any, y: Any, **more: Any) -> None:  # noqa: ANN401
        """Draw a line, with its marker at some of the points."""
        marks = {"marker": self.marker, "markevery": max(1, len(x) // 7), "ms": 5, **EDGE}
        axes.plot(x, y, lw=1.3, **self.shown, **marks, **more)

    def scatter(self, axes: Axes, x: Any, y: Any, area: Any, **more: Any) -> None:  # noqa: ANN401
        """Draw markers of some areas (points squared)."""
        edge = {"edgecolors": EDGE["mec"], "linewidths": EDGE["mew"]}
        axes.scatter(x, y, area, self.color, marker=self.marker, zorder=3, **edge, **more)

    def trail(
        self,
        axes: Axes,
        x: FloatArray,
        y: FloatArray,
        *,
        y_range: Sequence[float],
        x_range: Sequence[float] = (),
    ) -> None:
        """Draw the last of some points as a marker with its range, and a line that leads there."""
        axes.plot(x, y, color=self.color, lw=0.7, alpha=0.6, zorder=1)
        self.scatter(axes, x[:-1], y[:-1], 7, alpha=0.6)
        bars: dict[str, Any] = {"color": self.color, "lw": 1.0, "zorder": 2}
        axes.plot([x[-1]] * 2, y_range, **bars)
        if len(x_range):
            axes.plot(x_range, [y[-1]] * 2, **bars)
        self.scatter(axes, x[-1:], y[-1:], 36)

    def handle(self, name: str, more: str = "", *, line: bool = True) -> Line2D:
        """Return a legend's entry: the name, shortened, and more behind it."""
        shown = self.shown if line else {"color": self.color, "ls": "none"}
        marks = {"marker": self.marker, "ms": 5.5, **EDGE}
        return Line2D([], [], lw=1.4, label=shorten(name) + more, **shown, **marks)


def styles_of(names: Sequence[str]) -> dict[str, Style]:
    """Return a style for each name."""
    return {
        name: Style(COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)], LINES[i % len(LINES)])
        for i, name in enumerate(names)
    }


@cache
def fonts() -> list[str]:
    """Return the default font and those installed here that know Chinese and Japanese."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in FONTS if name in installed)]


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Draw names as they are: a dollar sign starts no formula, a missing glyph is a box."""
    with warnings.catch_warnings(), mpl.rc_context():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        mpl.rcParams.update({"text.parse_math": False, "font.family": fonts(), "font.size": 9})
        yield


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of this size (inches) and its axes."""
    with sns.axes_style("whitegrid", {"grid.color": "0.9", "axes.edgecolor": "0.6"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
    sns.despine(ax=axes)
    return figure, axes


def write_figure(
    figure: Figure,
    path: Path,
    handles: Sequence[Line2D] = (),
    *,
    labels: Sequence[tuple[str, float, float]] = (),
) -> None:
    """Put a legend under the axes; write PNG and SVG, equal input giving equal files.

    Labels, each with its point, are written beside the points of the figure's axes. Text stays text
    in the SVG. The endings are added, not put in place of another: a name such as `v1.0` has a dot.
    """
    if handles:
        figure.legend(
            handles=list(handles),
            loc="outside lower left",
            ncols=columns_of([str(one.get_label()) for one in handles]),
            frameon=False,
            fontsize=8,
            handlelength=2.6,
            columnspacing=1.2,
            borderaxespad=0.2,
        )
    if labels:
        _label_points(figure, labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "taskfit"}):
        figure.savefig(path.with_name(f"{path.name}.svg"), metadata={"Date": None})
    figure.savefig(path.with_name(f"{path.name}.png"), dpi=150)


def _label_points(figure: Figure, labels: Sequence[tuple[str, float, float]]) -> None:
    """Write each label near its point, inside the axes and over no other label or labelled point.

    Where there is no such place it takes the one that is covered least.
    """
    figure.draw_without_rendering()  # lays the axes out, under the legend
    axes = figure.axes[0]
    scale = 72 / figure.dpi  # all below is in points
    frame = np.array(axes.get_window_extent().get_points()).ravel() * scale
    places = np.array([axes.transData.transform(label[1:]) for label in labels]) * scale
    taken = [np.array([*(place - 4), *(place + 4)]) for place in places]
    for (text, *at), (x, y) in zip(labels, places, strict=True):
        half = np.array([0.31 * LABEL_SIZE * len(text), 0.6 * LABEL_SIZE])
        best = (math.inf, 0.0, 0.0, np.zeros(4))
        for gap, turn in product((6, 11, 18, 28, 40), range(8)):
            way = np.array([math.cos(turn * math.pi / 4), math.sin(turn * math.pi / 4)])
            center = np.array([x, y]) + way * (half + gap)
            box = np.array([*(center - half), *(center + half)])
            outside = np.maximum([*(frame[:2] - box[:2]), *(box[2:] - frame[2:])], 0).sum()
            cost = 10 * outside + sum(_overlap(box, other) for other in taken) + 0.01 * gap
            if cost < best[0]:
                best = (cost, *(center - (x, y)), box)
        taken.append(best[3])
        note = axes.annotate(
            text,
            (at[0], at[1]),
            xytext=best[1:3],
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=LABEL_SIZE,
            zorder=4,
            bbox={"boxstyle": "round,pad=0.1", "fc": "white", "alpha": 0.7, "lw": 0},
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "0.5", "shrinkA": 0, "shrinkB": 2},
        )
        note.set_in_layout(False)


def _overlap(one: FloatArray, other: FloatArray) -> float:
    """Return the area that two boxes share, each left, bottom, right and top."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    return float(np.prod(np.maximum(sides, 0)))


def columns_of(names: Sequence[str], *, width: float = WIDTH) -> int:
    """Return how many columns of a legend fit into a width (inches)."""
    longest = max((min(len(name), MAX_CHARACTERS) for name in names), default=1)
    return max(1, min(3, int(width / (0.5 + 0.8 * CHARACTER * longest))))


def legend_height(names: Sequence[str]) -> float:
    """Return how much height a legend with these names takes (inches)."""
    return ROW * math.ceil(len(names) / columns_of(names)) + 0.12 if names else 0.0


def label_ticks(axes: Axes, sizes: Sequence[int]) -> None:
    """Make the x axis one of numbers of labels, on a log scale with a tick at each that fits."""
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
    shown: list[int] = []
    apart = (max(sizes) / min(sizes) * 2.25) ** (1 / 8)
    for size in sizes:
        if not shown or size / shown[-1] >= apart:
            shown.append(size)
    axes.set_xticks(shown, [f"{size:,}" for size in shown])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("labelled examples (log scale)")


def score_limits(values: Sequence[float]) -> tuple[float, float]:
    """Return limits around scores, with a margin, inside -1 to 1."""
    known = [float(value) for value in values if np.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    margin = max(0.04 * (high - low), 0.02)
    return max(low - margin, -1.02), min(high + margin, 1.02)


def smoothed(values: Sequence[float]) -> list[float]:
    """Return a running mean that forgets with the length of the series, unbiased at its start."""
    keep = 1 - 1 / max(1.0, len(values) / 20)
    mean, weight, means = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        means.append(mean / weight)
    return means
