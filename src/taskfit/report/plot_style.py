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


def write_figure(figure: Figure, path: Path, handles: Sequence[Line2D] = ()) -> None:
    """Put a legend under the axes; write PNG and SVG, equal input giving equal files.

    Text stays text in the SVG. The endings are added, not put in place of another: a name such as
    `v1.0` has a dot.
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
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "taskfit"}):
        figure.savefig(path.with_name(f"{path.name}.svg"), metadata={"Date": None})
    figure.savefig(path.with_name(f"{path.name}.png"), dpi=150)


def columns_of(names: Sequence[str], *, width: float = WIDTH) -> int:
    """Return how many columns of a legend fit into a width (inches)."""
    longest = max((min(len(name), MAX_CHARACTERS) for name in names), default=1)
    return max(1, min(3, int(width / (0.5 + 0.8 * CHARACTER * longest))))


def legend_height(names: Sequence[str]) -> float:
    """Return how much height a legend with these names takes (inches)."""
    return ROW * math.ceil(len(names) / columns_of(names)) + 0.12 if names else 0.0


def area(size: int) -> float:
    """Return a marker's area for a number of labels (points squared)."""
    return 14.0 + 14.0 * math.log2(1 + size / 8)


def size_handles(sizes: Sequence[int]) -> list[Line2D]:
    """Return a legend's entries for numbers of labels, smallest and largest and one between."""
    known = [size for size in sizes if size]
    kept = dict.fromkeys((known[0], known[len(known) // 2], known[-1])) if known else ()
    shown = {"ls": "none", "marker": "o", "color": "0.75", **EDGE}
    return [
        Line2D([], [], ms=math.sqrt(area(size)), label=f"{size:,} labels", **shown) for size in kept
    ]


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
