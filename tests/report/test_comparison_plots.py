"""Figures of a comparison show the numbers of their tables, on axes that do not exaggerate."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.text import Text

from taskfit.report.comparison_plots import (
    plot_by_labels,
    plot_cost,
    plot_domains,
    plot_reliability,
    plot_risk_coverage,
    plot_spread,
    plot_training,
)
from taskfit.report.plot_style import Style, fonts, score_limits, styles_of
from taskfit.report.tables import pareto_front

NAMES = ["cheap", "dear", "zero-shot"]
STYLES = styles_of(NAMES)


def scores(shift: float = 0.0) -> pd.DataFrame:
    points = [("cheap", 16, 0.5), ("cheap", 256, 0.6), ("dear", 16, 0.7), ("dear", 256, 0.9)]
    rows = [
        {
            "system": name,
            "size": size,
            "evaluation": "new",
            "score": score + shift,
            "low": score + shift - 0.1,
            "high": score + shift + 0.05,
            "num_draws": 3,
            "num_examples": 1234,
        }
        for name, size, score in [*points, ("zero-shot", 0, 0.65)]
    ]
    return pd.DataFrame(rows)


def costs() -> pd.DataFrame:
    table = scores()
    table["training_seconds"] = [0.0, 0.0, 10.0, 1000.0, 0.0]
    front = pareto_front(table["training_seconds"].to_numpy(), table["score"].to_numpy())
    return table.assign(best_for_training_seconds=front)


def legend_of(axes: Axes) -> list[str]:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def assert_nothing_is_cut_off(axes: Axes) -> None:
    """Everything lies inside the figure, and the legend below what the axes hold."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    whole, own = figure.bbox, axes.get_tightbbox()
    assert own is not None
    boxes = [own, *(legend.get_window_extent() for legend in figure.legends)]
    for box in boxes:
        assert box.x0 >= whole.x0 - 1
        assert box.y0 >= whole.y0 - 1
        assert box.x1 <= whole.x1 + 1
        assert box.y1 <= whole.y1 + 1
    for box in boxes[1:]:
        assert box.y1 <= own.y0 + 1
    assert axes.get_window_extent().height / figure.dpi > 0.4


def test_no_two_of_77_systems_look_alike_and_11_differ_by_their_marker_alone() -> None:
    styles = list(styles_of([str(i) for i in range(77)]).values())
    assert len(set(styles)) == 77
    assert len({style.marker for style in styles[:11]}) == 11
    assert all(isinstance(style, Style) for style in styles)


def test_fonts_are_installed_ones_so_that_nothing_is_looked_for_in_vain() -> None:
    assert fonts()[0] == "DejaVu Sans"


def test_scores_stand_at_their_numbers_of_labels_with_their_intervals(drawn: list[Axes]) -> None:
    alt = plot_by_labels(scores(), Path("x"), evaluation="new", styles=STYLES, metric="accuracy")
    (axes,) = drawn
    assert axes.get_xscale() == "log"
    assert len(axes.containers) == 2
    for container, name in zip(axes.containers, ("cheap", "dear"), strict=True):
        own = scores()[scores()["system"] == name]
        x, y = container.lines[0].get_data(orig=False)
        np.testing.assert_allclose(y, own["score"].to_numpy())
        # Set beside each other by less than the way to the next size.
        assert np.abs(np.log10(x / own["size"].to_numpy())).max() < 0.1
    level = [line for line in axes.lines if list(line.get_ydata()) == [0.65, 0.65]]
    assert len(level) == 1
    assert "n = 1,234, 3 draws" in axes.get_title()
    assert legend_of(axes) == NAMES
    assert "dear 0.900 at 256 labels" in alt
    assert_nothing_is_cut_off(axes)


@pytest.mark.parametrize("shift", [0.0, -0.9])
def test_scores_below_zero_are_inside_the_picture(drawn: list[Axes], shift: float) -> None:
    table = scores(shift)
    plot_by_labels(table, Path("x"), evaluation="new", styles=STYLES, metric="MCC")
    low, high = drawn[0].get_ylim()
    assert low < table["low"].min()
    assert high > table["high"].max()


def test_limits_never_leave_the_scale_by_more_than_a_margin() -> None:
    assert score_limits([-1.0, 1.0]) == (-1.02, 1.02)
    low, high = score_limits([np.nan])
    assert low < 0 < 1 < high


def domain_runs() -> pd.DataFrame:
    rows = [
        {"system": name, "size": size, "draw": draw, "evaluation": evaluation, "accuracy": score}
        for name, size, draw, new, old in (
            ("cheap", 16, 0, 0.5, 0.4),
            ("cheap", 256, 1, 0.6, 0.7),
            ("cheap", 256, 2, 0.7, 0.72),
            ("zero-shot", 0, 0, 0.55, 0.45),
        )
        for evaluation, score in (("new", new), ("old", old))
    ]
    return pd.DataFrame(rows).assign(num_examples=300)


def test_a_method_is_a_mean_with_its_range_in_against_out_of_domain_and_zero_shot_is_lines(
    drawn: list[Axes],
) -> None:
    alt = plot_domains(
        domain_runs(),
        Path("x"),
        sets=("new", "old"),
        styles=STYLES,
        metric="accuracy",
        score="accuracy",
    )
    (axes,) = drawn
    clouds = [c for c in axes.collections if isinstance(c, PathCollection)]
    points = np.concatenate([np.asarray(cloud.get_offsets()) for cloud in clouds])
    np.testing.assert_allclose(points, [[0.5, 0.4], [0.65, 0.71], [0.55, 0.45]])
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines[1:]]
    cheap, zero = lines[:3], lines[3:5]
    for line, wanted in zip(
        cheap,
        [([0.5, 0.65], [0.4, 0.71]), ([0.65, 0.65], [0.7, 0.72]), ([0.6, 0.7], [0.71, 0.71])],
        strict=True,
    ):
        np.testing.assert_allclose(line, wanted)
    assert zero == [([0.55, 0.55], [0, 1]), ([0, 1], [0.45, 0.45])]
    assert [text.get_text() for text in axes.texts] == ["cheap", "zero-shot"]
    assert axes.get_xlim() == axes.get_ylim()
    assert "n = 300" in axes.get_xlabel()
    assert "50% of the runs are worse on old" in alt
    assert_nothing_is_cut_off(axes)


def test_names_beside_points_cover_neither_each_other_nor_the_edge(drawn: list[Axes]) -> None:
    generator = np.random.default_rng(0)
    names = [f"method {i}" for i in range(14)]
    rows = [
        {"system": name, "size": size, "draw": draw, "evaluation": evaluation}
        | {"accuracy": 0.8 + 0.1 * generator.random()}
        for name in names
        for size in (16, 64, 256)
        for draw in range(3)
        for evaluation in ("new", "old")
    ]
    runs = pd.DataFrame(rows).assign(num_examples=300)
    about = {"sets": ("new", "old"), "metric": "accuracy", "score": "accuracy"}
    plot_domains(runs, Path("x"), styles=styles_of(names), **about)
    (axes,) = drawn
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == len(names)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    frame = axes.get_window_extent()
    assert all(frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1 for box in boxes)
    assert all(frame.y0 - 1 <= box.y0 and box.y1 <= frame.y1 + 1 for box in boxes)


def test_the_front_is_drawn_numbered_and_named_and_what_costs_nothing_stands_left(
    drawn: list[Axes],
) -> None:
    alt = plot_cost(
        costs(),
        Path("x"),
        cost="training_seconds",
        evaluation="new",
        styles=STYLES,
        metric="accuracy",
    )
    (axes,) = drawn
    members, *numbers = [text.get_text() for text in axes.texts]
    assert members.splitlines() == [
        "1  zero-shot",
        "2  dear, 16 labels",
        "3  dear, 256 labels",
    ]
    assert numbers == ["1", "2", "3"]
    assert alt.endswith("Nothing beats: zero-shot; dear, 16 labels; dear, 256 labels")
    clouds = [np.asarray(c.get_offsets()) for c in axes.collections]
    zero = {x for cloud in clouds for x, y in cloud if y < 0.66}
    assert len(zero) == 1
    assert max(zero) < 10
    ticks = dict(
        zip(axes.get_xticks(), (t.get_text() for t in axes.get_xticklabels()), strict=True)
    )
    assert ticks[zero.pop()] == "0"
    assert ticks[10.0] == "10"
    assert ticks[1000.0] == "1,000"
    assert_nothing_is_cut_off(axes)


@pytest.mark.parametrize("value", [0.0, 5.0, 2e9])
def test_a_single_cost_is_drawn_too(drawn: list[Axes], value: float) -> None:
    table = costs().assign(training_seconds=value)
    plot_cost(
        table, Path("x"), cost="training_seconds", evaluation="new", styles=STYLES, metric="MCC"
    )
    (low, high), places = drawn[0].get_xlim(), np.asarray(drawn[0].collections[0].get_offsets())
    assert low < places[:, 0].min() <= places[:, 0].max() < high
    assert len(drawn[0].get_xticks())


def test_costs_within_one_decade_stand_on_round_numbers_too(drawn: list[Axes]) -> None:
    table = costs()
    table["training_seconds"] = np.linspace(46.3, 244, len(table))
    plot_cost(
        table, Path("x"), cost="training_seconds", evaluation="new", styles=STYLES, metric="MCC"
    )
    assert [t.get_text() for t in drawn[0].get_xticklabels()] == ["50", "100", "200"]


def test_losses_start_at_zero_and_every_run_is_a_line(drawn: list[Axes]) -> None:
    rows = [
        {"system": name, "size": 16, "draw": draw, "step": step, "loss": 1 / step}
        for name in ("cheap", "dear")
        for draw in (0, 1)
        for step in range(1, 9)
    ]
    table = pd.DataFrame(rows).assign(smoothed=lambda t: t["loss"] + 0.1)
    alt = plot_training(table, Path("x"), size=16, styles=STYLES)
    (axes,) = drawn
    assert len(axes.lines) == 4
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 1 / np.arange(1, 9) + 0.1)
    assert axes.get_ylim()[0] == 0
    assert "n = 4 runs" in axes.get_title()
    assert "cheap 0.23" in alt
    assert_nothing_is_cut_off(axes)


def test_spread_shows_every_run_and_names_the_widest_range(drawn: list[Axes]) -> None:
    rows = [
        {"group": group, "variant": draw, "evaluation": "new", "score": score}
        for group, found in (("cheap", (0.5, 0.6)), ("dear", (0.2, 0.7, 0.9)))
        for draw, score in enumerate(found)
    ]
    alt = plot_spread(pd.DataFrame(rows), Path("x"), metric="accuracy", varied="draw")
    (axes,) = drawn
    found = [sorted(np.asarray(c.get_offsets())[:, 0].tolist()) for c in axes.collections]
    assert found == [[0.5, 0.6], [0.2, 0.7, 0.9]]
    assert "The widest range is 0.700: dear on new" in alt
    assert_nothing_is_cut_off(axes)


def test_confidence_is_drawn_from_zero_to_one_and_risk_from_zero(drawn: list[Axes]) -> None:
    bins = pd.DataFrame(
        {"system": "cheap", "confidence": [0.55, 0.95], "accuracy": [0.5, 0.9], "count": [10, 30]}
    )
    alt = plot_reliability(bins, Path("x"), styles=STYLES)
    assert alt.endswith("cheap 0.050.")
    curves = pd.DataFrame(
        {"system": "cheap", "coverage": [0.5, 1.0], "risk": [0.0, 0.2], "num_examples": 40}
    ).assign(aurc=0.07)
    alt = plot_risk_coverage(curves, Path("y"), styles=STYLES)
    assert "cheap 0.070" in alt
    diagram, curve = drawn
    assert legend_of(curve) == ["cheap (n = 40)"]
    assert legend_of(diagram) == [*legend_of(curve), "perfectly calibrated"]
    assert curve.get_ylim()[0] == 0
    np.testing.assert_allclose(curve.lines[0].get_ydata(), [0.0, 0.2])
    for axes in drawn:
        assert_nothing_is_cut_off(axes)


def test_long_names_leave_room_for_the_picture(drawn: list[Axes]) -> None:
    names = {name: f"{name} {'with a very long name ' * 4}" for name in NAMES}
    table = scores().assign(system=[names[name] for name in scores()["system"]])
    plot_by_labels(
        table,
        Path("x"),
        evaluation="new",
        styles=styles_of(list(names.values())),
        metric="accuracy",
    )
    figure = drawn[0].get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    width, height = drawn[0].get_window_extent().size / figure.dpi
    assert width > 3
    assert height > 1.8
    assert_nothing_is_cut_off(drawn[0])
