"""What the figures of a comparison share: colours, markers, legends, fonts.

A system keeps its colour, marker and line in every figure, and no two of the first 77 share all
three, so that figures read in grey too.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from taskfit.report.run_plots import CHARACTER, METRIC_NAMES, shorten

# Okabe and Ito's without yellow, which is lost on white.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
LINES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1, 1, 1, 1, 1)),
)
EDGE = "0.15"
WIDTH = 4.2  # inches; a phone shows it at 80 pixels an inch
HEIGHT = 2.9  # inches of the axes with their labels, legend not counted
ROW = 0.19  # inches of a legend's row
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
    """How a system is drawn.

    Attributes:
        color: Of line and marker.
        marker: Its shape.
        line: Its line style.
    """

    color: str
    marker: str
    line: str | tuple[int, tuple[float, ...]]


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


def columns_of(names: Sequence[str], *, width: float = WIDTH) -> int:
    """Return how many columns of a legend fit into a width (inches)."""
    longest = max((len(shorten(name)) for name in names), default=1)
    return max(1, min(3, int(width / (0.5 + 0.8 * CHARACTER * longest))))


def legend_height(*blocks: Sequence[str]) -> float:
    """Return how much height legends with these names take (inches)."""
    rows = (math.ceil(len(names) / columns_of(names)) for names in blocks if names)
    return sum(ROW * count + 0.12 for count in rows)


def handle(style: Style, label: str, *, line: bool = True) -> Line2D:
    """Return a legend's entry for a system."""
    return Line2D(
        [],
        [],
        color=style.color,
        marker=style.marker,
        ls=style.line if line else "none",
        lw=1.4,
        ms=5.5,
        mec=EDGE,
        mew=0.5,
        label=shorten(label),
    )


def add_legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Put a legend under the axes, over what stands there already."""
    names = [str(one.get_label()) for one in handles]
    figure.legend(
        handles=list(handles),
        loc="outside lower left",
        ncols=columns_of(names),
        frameon=False,
        fontsize=8,
        handlelength=2.6,
        columnspacing=1.2,
        borderaxespad=0.2,
    )


def area(size: int) -> float:
    """Return a marker's area for a number of labels (points squared)."""
    return 14.0 + 14.0 * math.log2(1 + size / 8)


def size_handles(sizes: Sequence[int]) -> list[Line2D]:
    """Return a legend's entries for numbers of labels, smallest and largest and one between."""
    known = [size for size in sizes if size]
    kept = dict.fromkeys((known[0], known[len(known) // 2], known[-1])) if known else ()
    return [
        Line2D(
            [],
            [],
            ls="none",
            marker="o",
            color="0.75",
            mec=EDGE,
            mew=0.5,
            ms=math.sqrt(area(size)),
            label=f"{size:,} labels",
        )
        for size in kept
    ]


def metric_name(metric: str, *, multi_label: bool = False) -> str:
    """Return what a metric is called on axes."""
    return "exactly right sets of labels" if multi_label else METRIC_NAMES[metric]


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


def finite(values: Sequence[float]) -> list[float]:
    """Return the values that are numbers."""
    return [float(value) for value in values if np.isfinite(value)]


def score_limits(values: Sequence[float]) -> tuple[float, float]:
    """Return limits around scores, with a margin, inside -1 to 1."""
    known = finite(values) or [0.0, 1.0]
    low, high = min(known), max(known)
    margin = max(0.04 * (high - low), 0.02)
    return max(low - margin, -1.02), min(high + margin, 1.02)
