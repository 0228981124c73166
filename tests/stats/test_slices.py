"""Laws of slices: they are the whole set cut up, measured as the whole is."""

import numpy as np
import pytest

from taskfit.stats import evaluate_multi_label, evaluate_probabilities
from taskfit.stats.slices import group_rows, slice_classes, slice_label_sets


def example(count: int = 400) -> tuple:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet([1.0] * 3, count)
    probabilities[::9] = np.nan
    columns = {
        "site": generator.choice(["a", "b"], count).tolist(),
        "kind": generator.choice(["x", "y", "z"], count, p=[0.6, 0.38, 0.02]).tolist(),
    }
    return columns, probabilities, generator.integers(0, 3, count)


def test_columns_stand_by_themselves_and_crossed_and_each_is_the_whole() -> None:
    columns, _, _ = example()
    found = group_rows(columns)
    assert list(found) == ["site", "kind", "site x kind"]
    assert set(found["site x kind"]) == {f"{s} x {k}" for s in "ab" for k in "xyz"}
    for groups in found.values():
        together = np.concatenate(list(groups.values()))
        assert sorted(together.tolist()) == list(range(400))


def test_a_slice_has_the_metrics_of_its_examples_alone() -> None:
    columns, probabilities, gold = example()
    groups = group_rows(columns)
    slices = slice_classes(columns, probabilities, gold)
    assert len(slices) == 2 + 3 + 6
    for found in slices:
        rows = groups[found.by][found.value]
        alone = evaluate_probabilities(probabilities[rows], gold[rows], labels=["p", "q", "r"])
        assert found.num_examples == alone.num_examples
        assert found.accuracy == pytest.approx(alone.accuracy)
        assert found.macro_f1 == pytest.approx(alone.macro_f1)
        assert found.accuracy_low <= found.accuracy <= found.accuracy_high


def test_slices_of_several_labels_have_the_metrics_of_their_examples_alone() -> None:
    columns, _, _ = example()
    generator = np.random.default_rng(1)
    probabilities, present = generator.random((400, 3)), generator.random((400, 3)) < 0.4
    groups = group_rows(columns)
    for found in slice_label_sets(columns, probabilities >= 0.5, present):
        rows = groups[found.by][found.value]
        alone = evaluate_multi_label(probabilities[rows], present[rows], labels=["p", "q", "r"])
        assert found.accuracy == pytest.approx(alone.accuracy)
        assert found.macro_f1 == pytest.approx(alone.macro_f1)


def test_small_slices_are_marked_and_large_ones_are_not() -> None:
    columns = {"n": ["29"] * 29 + ["60"] * 60 + ["400"] * 400}
    gold = np.zeros(489, int)
    probabilities = np.eye(2)[np.arange(489) % 2]  # every other answer is right
    marked = {s.value: s.is_uncertain for s in slice_classes(columns, probabilities, gold)}
    # Of 60 answers, half of them right, the interval is 0.25 wide.
    assert marked == {"29": True, "60": True, "400": False}
    sure = np.eye(2)[np.zeros(489, int)]
    marked = {s.value: s.is_uncertain for s in slice_classes(columns, sure, gold)}
    assert marked == {"29": True, "60": False, "400": False}
