"""Pictures show the numbers they are given, on axes that do not exaggerate."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.container import BarContainer, ErrorbarContainer

from taskfit.report.run_plots import (
    MAX_CLASSES,
    plot_classes,
    plot_comparison,
    plot_confusion,
    plot_history,
    plot_memory,
    plot_reliability,
)
from taskfit.stats import Evaluation, Reliability, reliability
from taskfit.stats.per_class import class_rows
from tiny_records import evaluation, run_result

RECORDS = [
    *({"kind": "step", "step": i, "loss": 2.0 / i} for i in range(1, 21)),
    {"kind": "validation", "step": 10, "loss": 0.5, "accuracy": 0.6, "mcc": -0.2},
    {"kind": "validation", "step": 20, "loss": 0.4, "accuracy": 0.8, "mcc": 0.3},
    {"kind": "note", "text": "something else"},
]
MEMORY = {"model": 270_000_000, "forward": 30_000_000, "adapter": 0, "training": 100_000_000}


def inches(axes: Axes) -> tuple[float, float]:
    """Width and height that the layout leaves for the axes."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    width, height = axes.get_window_extent().size / figure.dpi
    return float(width), float(height)


def texts_in(path: Path) -> list[str]:
    """All texts of an SVG."""
    tree = ElementTree.parse(path)
    return ["".join(node.itertext()) for node in tree.iter("{http://www.w3.org/2000/svg}text")]


def bins(num: int = 200, seed: int = 0) -> Reliability:
    generator = np.random.default_rng(seed)
    return reliability(generator.dirichlet(np.ones(2), num), generator.integers(0, 2, num))


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plot_comparison([run_result(new=evaluation())], path),
        lambda path: plot_history(RECORDS, path, metric="accuracy"),
        lambda path: plot_confusion(evaluation(), path, title="new"),
        lambda path: plot_classes(class_rows(evaluation(60, tuple("abcd"))), path, title="new"),
        lambda path: plot_reliability({"new": bins()}, path),
        lambda path: plot_memory(MEMORY, path),
    ],
    ids=["comparison", "history", "confusion", "classes", "reliability", "memory"],
)
def test_a_picture_is_a_png_and_an_svg_and_the_same_every_time(
    tmp_path: Path, draw: Callable[[Path], None]
) -> None:
    draw(tmp_path / "plots" / "one")
    draw(tmp_path / "plots" / "two")
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == ["one.png", "one.svg", "two.png", "two.svg"]
    png = (tmp_path / "plots" / "one.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(png) > 2000
    assert texts_in(tmp_path / "plots" / "one.svg")
    for kind in ("png", "svg"):
        one, two = (tmp_path / "plots" / f"{name}.{kind}" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_sets_whose_names_have_dots_keep_their_own_pictures(tmp_path: Path) -> None:
    for name, num in (("v1.0", 10), ("v1.1", 30)):
        plot_confusion(evaluation(num), tmp_path / f"confusion_{name}", title=name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"confusion_v1.{i}.{kind}" for i in (0, 1) for kind in ("png", "svg")
    ]
    assert "v1.0 (n = 10)" in texts_in(tmp_path / "confusion_v1.0.svg")


@pytest.mark.parametrize("metric", ["accuracy", "mcc", "macro_f1"])
def test_a_comparison_shows_values_intervals_and_n(
    tmp_path: Path, drawn: list[Axes], metric: str
) -> None:
    new, old = evaluation(40), evaluation(1234, seed=1)
    results = [run_result("one", new=new), run_result("none"), run_result("two", new=new, old=old)]
    plot_comparison(results, tmp_path / "comparison", metric=metric)
    (axes,) = drawn
    bars = [c for c in axes.containers if isinstance(c, BarContainer)]
    errors = [c for c in axes.containers if isinstance(c, ErrorbarContainer)]
    assert len(bars) == len(errors) == 3
    for result, bar, error in zip(results, bars, errors, strict=True):
        shown = result.evaluations.values()
        assert bar.get_label() == result.name
        assert [p.get_height() for p in bar] == [getattr(e, metric) for e in shown]
        if shown:
            (lines,) = error.lines[2]
            bounds = np.array([segment[:, 1] for segment in lines.get_segments()])
            np.testing.assert_allclose(bounds, [e.intervals[metric] for e in shown], atol=1e-12)
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert ticks == ["new\nn = 40", "old\nn = 1,234"]
    lowest = min(e.intervals[metric][0] for e in (new, old))
    assert axes.get_ylim() == (min(0.0, lowest), 1.0)
    centers = [p.get_x() + p.get_width() / 2 for bar in bars for p in bar]
    assert [round(center) for center in centers] == [0, 0, 1]
    edges = sorted((p.get_x(), p.get_x() + p.get_width()) for bar in bars for p in bar)
    assert all(end <= start for (_, end), (start, _) in pairwise(edges))


def test_runs_without_any_evaluation_are_an_empty_picture(tmp_path: Path) -> None:
    plot_comparison([run_result("none"), run_result("nothing")], tmp_path / "comparison")
    assert (tmp_path / "comparison.png").stat().st_size > 0


def test_a_history_shows_losses_and_the_validation_metric(
    tmp_path: Path, drawn: list[Axes]
) -> None:
    plot_history(RECORDS, tmp_path / "history", metric="mcc")
    left, right = drawn
    raw, smooth, validation, _ = left.get_lines()
    steps = [record for record in RECORDS if record["kind"] == "step"]
    assert list(raw.get_xdata()) == [record["step"] for record in steps]
    assert list(raw.get_ydata()) == [record["loss"] for record in steps]
    assert list(validation.get_xdata()) == [10, 20]
    assert list(validation.get_ydata()) == [0.5, 0.4]
    (metric,) = right.get_lines()
    assert list(metric.get_ydata()) == [-0.2, 0.3]
    assert left.get_ylim()[0] == 0
    assert right.get_ylim() == (-0.2, 1.0)
    assert right.get_ylabel() == "validation MCC"
    smoothed = np.asarray(smooth.get_ydata())
    assert smoothed[0] == pytest.approx(2.0)  # no pull towards 0 at the start
    assert np.all(np.diff(smoothed) < 0)


def test_a_constant_loss_is_smoothed_to_itself(tmp_path: Path, drawn: list[Axes]) -> None:
    records = [{"kind": "step", "step": i, "loss": 0.7} for i in range(50)]
    plot_history(records, tmp_path / "history", metric="accuracy")
    (axes,) = drawn  # without validations there is no second axis
    np.testing.assert_allclose(axes.get_lines()[1].get_ydata(), 0.7)


@pytest.mark.parametrize(("num_labels", "has_numbers"), [(1, True), (12, True), (13, False)])
def test_a_confusion_matrix_has_the_labels_in_order_and_numbers_while_they_fit(
    tmp_path: Path, drawn: list[Axes], num_labels: int, has_numbers: bool
) -> None:
    labels = [f"label {i}" for i in range(num_labels)]
    matrix = np.random.default_rng(0).integers(0, 50, (num_labels, num_labels))
    matrix[-1] = 0  # a class without gold examples
    found = replace(evaluation(1234), labels=labels, confusion_matrix=matrix.tolist())
    plot_confusion(found, tmp_path / "confusion", title="new")
    axes = drawn[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == labels
    assert [tick.get_text() for tick in axes.get_yticklabels()] == labels
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "gold")
    assert axes.get_title() == "new (n = 1,234)"
    numbers = [text.get_text() for text in axes.texts]
    assert numbers == ([str(count) for count in matrix.flatten()] if has_numbers else [])
    shares = np.asarray(axes.collections[0].get_array()).reshape(matrix.shape)
    np.testing.assert_allclose(shares.sum(axis=1), matrix.any(axis=1), atol=1e-12)
    assert axes.collections[0].get_clim() == (0, 1)


def test_a_reliability_diagram_spans_0_to_1_and_its_points_are_the_bins(
    tmp_path: Path, drawn: list[Axes]
) -> None:
    found = {"new": bins(), "old": bins(3000, seed=1)}
    plot_reliability(found, tmp_path / "reliability")
    (axes,) = drawn
    for low, high in (axes.get_xlim(), axes.get_ylim()):
        assert low == 0
        assert 1 <= high < 1.05
    diagonal = axes.get_lines()[0]
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    points = [c for c in axes.collections if isinstance(c, PathCollection)]
    for (name, one), dots in zip(found.items(), points, strict=True):
        np.testing.assert_allclose(dots.get_offsets(), np.c_[one.confidence, one.accuracy])
        assert dots.get_label() == f"{name} (n = {one.count.sum():,})"
        assert np.argmax(dots.get_sizes()) == np.argmax(one.count)


def test_a_single_certain_example_is_a_reliability_diagram_too(tmp_path: Path) -> None:
    plot_reliability(
        {"new": reliability(np.array([[0.0, 1.0]]), np.array([1]))}, tmp_path / "reliability"
    )
    assert "new (n = 1)" in texts_in(tmp_path / "reliability.svg")


def test_memory_bars_stand_end_to_end_and_add_up(tmp_path: Path, drawn: list[Axes]) -> None:
    plot_memory(MEMORY, tmp_path / "memory")
    (axes,) = drawn
    edges = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
    np.testing.assert_allclose(edges, [(0, 270), (270, 300), (300, 300), (300, 400)])
    low, high = axes.get_xlim()
    assert low == 0
    assert high >= 400
    assert "400 MB in all" in axes.get_xlabel()
    assert [bar.get_label() for bar in axes.containers] == [
        *("model 270 MB", "forward 30 MB", "adapter 0 MB", "training 100 MB")
    ]


NASTY = ("<b>&\"'", "a $ and $ b", r"$\nonsense{$", "100 % {x}", "x" * 40)


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    found: Evaluation = evaluation(60, NASTY)
    plot_confusion(found, tmp_path / "confusion", title=NASTY[2])
    texts = texts_in(tmp_path / "confusion.svg")
    assert f"{NASTY[2]} (n = 60)" in texts
    assert all(texts.count(name) == 2 for name in NASTY)
    results = [run_result(name, **{name: found}) for name in NASTY]
    plot_comparison(results, tmp_path / "comparison")
    texts = texts_in(tmp_path / "comparison.svg")
    assert all(texts.count(name) == 2 for name in NASTY)  # the tick and the legend
    plot_reliability(dict.fromkeys(NASTY, bins()), tmp_path / "reliability")
    texts = texts_in(tmp_path / "reliability.svg")
    assert all(f"{name} (n = 200)" in texts for name in NASTY)


@pytest.mark.parametrize("num_labels", [2, 6])
def test_long_names_are_cut_and_leave_room_for_the_picture(
    tmp_path: Path, drawn: list[Axes], num_labels: int
) -> None:
    labels = tuple(f"{i} {'very ' * 40}long" for i in range(num_labels))
    found = evaluation(60, labels)
    plot_confusion(found, tmp_path / "confusion", title=labels[0])
    plot_comparison([run_result(name, **{name: found}) for name in labels], tmp_path / "comparison")
    short = [label[:39] + "…" for label in labels]
    assert [tick.get_text() for tick in drawn[0].get_yticklabels()] == short
    legend = drawn[-1].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == short
    for axes in (drawn[0], drawn[-1]):
        assert min(inches(axes)) > 1


def test_many_runs_leave_room_for_the_bars(tmp_path: Path, drawn: list[Axes]) -> None:
    results = [run_result(f"label_words, seed {i}", new=evaluation()) for i in range(30)]
    plot_comparison(results, tmp_path / "comparison")
    width, height = inches(drawn[0])
    assert width > 4
    assert height > 2


def test_of_many_classes_the_weakest_are_shown(tmp_path: Path, drawn: list[Axes]) -> None:
    rows = class_rows(evaluation(600, tuple(f"label {i}" for i in range(40))))
    plot_classes(rows, tmp_path / "classes", title="new")
    (axes,) = drawn
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == [f"{row.name} ({row.num_gold})" for row in rows[:MAX_CLASSES]]
    assert f"the {MAX_CLASSES} weakest of {len(rows)}" in axes.get_title()
    recalls, _ = (np.asarray(cloud.get_offsets()) for cloud in axes.collections)
    np.testing.assert_allclose(recalls[:, 0], [row.recall for row in rows[:MAX_CLASSES]])
