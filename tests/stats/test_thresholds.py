"""Thresholds per label: equal to brute force over all cuts, and what they promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskfit.errors import SettingsError
from taskfit.stats.conformal import conformal_scores, threshold
from taskfit.stats.multi_label import answer_metrics, evaluate_multi_label
from taskfit.stats.thresholds import PULL, Goal, crossed_thresholds, fit_thresholds

GOALS: tuple[Goal, ...] = ("f1", "precision", "recall")


@st.composite
def scored(draw: st.DrawFn, most: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities on a coarse grid, so that many are equal, and which labels hold, (N, L)."""
    seed, count = draw(st.integers(0, 10_000)), draw(st.integers(2, most))
    labels, levels = draw(st.integers(1, 4)), draw(st.sampled_from([3, 7, 1000]))
    generator = np.random.default_rng(seed)
    found = (generator.integers(0, levels, (count, labels)) + 0.5) / levels
    present = generator.random((count, labels)) < 0.3 + 0.5 * (found > 0.5)
    return found, present


def cuts(scores: np.ndarray) -> np.ndarray:
    """One threshold for each way to cut scores in two, none of which gives the label to nobody."""
    levels = np.unique(scores)
    return np.append((levels[1:] + levels[:-1]) / 2, levels[0] / 2)


def f1(given: np.ndarray, present: np.ndarray) -> float:
    return 2 * (given & present).sum() / max(1, given.sum() + present.sum())


@given(scored())
def test_one_label_alone_gets_the_best_f1_of_all_cuts(data: tuple[np.ndarray, np.ndarray]) -> None:
    scores, present = data[0][:, :1], data[1][:, :1]
    value = fit_thresholds(scores, present, goal="f1").values[0]
    if not present.any():
        assert value == pytest.approx(0.5)
        return
    best = max(f1(scores >= cut, present) for cut in cuts(scores))
    # The thresholds of all labels and of this one are the same, so there is nothing to pull.
    assert f1(scores >= value, present) == pytest.approx(best)


@given(scored(most=60), st.sampled_from([0.5, 0.8, 0.9]))
def test_a_wanted_precision_or_recall_holds_on_the_texts_that_chose_the_threshold(
    data: tuple[np.ndarray, np.ndarray], target: float
) -> None:
    scores, present = data
    for goal in ("precision", "recall"):
        found = fit_thresholds(scores, present, goal=goal, target=target)
        for label, value in enumerate(found.values):
            there = present[:, label]
            given = scores[:, label] >= value
            right = (given & there).sum()
            whole = {"precision": given.sum(), "recall": there.sum()}[goal]
            possible = [(scores[:, label] >= cut) for cut in cuts(scores[:, label]) if there.any()]
            able = [
                (g & there).sum() / ((g if goal == "precision" else there).sum() + 1) >= target
                for g in possible
            ]
            assert found.is_reached[label] == any(able)
            if found.is_reached[label]:
                assert right / (whole + 1) >= target
            elif goal == "precision":
                assert value >= 0.5
            else:
                assert value <= 0.5


@given(scored(), st.sampled_from(GOALS))
def test_thresholds_of_labels_in_another_order_are_the_same_in_that_order(
    data: tuple[np.ndarray, np.ndarray], goal: Goal
) -> None:
    scores, present = data
    order = np.random.default_rng(1).permutation(scores.shape[1])
    texts = np.random.default_rng(2).permutation(len(scores))
    found = fit_thresholds(scores, present, goal=goal)
    again = fit_thresholds(scores[texts][:, order], present[texts][:, order], goal=goal)
    np.testing.assert_allclose(again.values, found.values[order], atol=1e-12)
    assert again.is_reached.tolist() == found.is_reached[order].tolist()
    assert ((found.values >= 0) & (found.values <= 1)).all()


def test_a_label_of_few_texts_is_pulled_to_the_threshold_of_all() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random((400, 3))
    present = scores > np.array([0.2, 0.2, 0.7])  # the last label is told apart elsewhere
    present[:, 1] &= generator.random(400) < 0.01
    rare = fit_thresholds(scores, present, goal="f1")
    assert 0 < rare.num_present[1] < PULL < rare.num_present[0]
    assert rare.values[2] == pytest.approx(0.7, abs=0.05)
    present[:, 1] = False
    none = fit_thresholds(scores, present, goal="f1")
    assert none.is_reached.tolist() == [True, False, True]
    together = fit_thresholds(scores.reshape(-1, 1), present.reshape(-1, 1), goal="f1")
    assert none.values[1] == pytest.approx(together.values[0])
    for goal in ("precision", "recall"):
        assert fit_thresholds(scores, present, goal=goal).values[1] == 0.5


def test_a_wanted_recall_is_that_of_split_conformal_prediction() -> None:
    generator = np.random.default_rng(3)
    scores = generator.random((200, 1))
    present = generator.random((200, 1)) < 0.2 + 0.6 * scores
    own = scores[present]
    limit = threshold(conformal_scores(own[:, None], np.zeros(len(own), np.int64)), 0.9)
    value = fit_thresholds(scores, present, goal="recall", target=0.9).values[0]
    assert (own >= value).sum() == (1 - own <= limit).sum()


@pytest.mark.parametrize("goal", ["precision", "recall"])
def test_new_texts_keep_what_was_wanted_on_average(goal: Goal) -> None:
    generator = np.random.default_rng(4)
    kept = []
    for _ in range(60):
        scores = generator.random((1200, 2))
        present = generator.random((1200, 2)) < scores**2
        found = fit_thresholds(scores[:200], present[:200], goal=goal, target=0.8)
        assert found.is_reached.all()
        kept.append(answer_metrics(scores[200:] >= found.values, present[200:])[goal])
    assert np.mean(kept) == pytest.approx(0.8, abs=0.02)


@given(scored(), st.sampled_from(GOALS))
def test_thresholds_of_a_text_do_not_hang_on_its_own_labels(
    data: tuple[np.ndarray, np.ndarray], goal: Goal
) -> None:
    scores, present = data
    folds = np.arange(len(scores)) % 2
    found = crossed_thresholds(scores, present, folds, goal=goal)
    turned = present.copy()
    turned[folds == 0] = ~turned[folds == 0]
    again = crossed_thresholds(scores, turned, folds, goal=goal)
    np.testing.assert_array_equal(again[folds == 0], found[folds == 0])
    one = fit_thresholds(scores[folds == 1], present[folds == 1], goal=goal)
    np.testing.assert_array_equal(found[0], one.values)


def test_a_text_without_others_is_measured_from_one_half() -> None:
    one = np.array([[0.3, 0.7]])
    found = crossed_thresholds(one, one > 0.5, np.zeros(1, np.int64), goal="f1")
    np.testing.assert_array_equal(found, 0.5)


@given(scored())
def test_metrics_with_thresholds_are_those_of_scores_moved_over_one_half(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    scores, present = data
    names = [str(i) for i in range(scores.shape[1])]
    values = np.linspace(0.1, 0.9, scores.shape[1])
    moved = np.where(scores >= values, 1.0, 0.0)
    found = evaluate_multi_label(scores, present, labels=names, thresholds=values)
    expected = evaluate_multi_label(moved, present, labels=names)
    for key in ("accuracy", "mcc", "macro_f1", "confusion_matrix"):
        assert getattr(found, key) == getattr(expected, key)
    plain = evaluate_multi_label(scores, present, labels=names)
    assert (found.log_loss, found.ece) == (plain.log_loss, plain.ece)
    told = answer_metrics(scores >= values, present)
    assert [told[k] for k in ("accuracy", "mcc", "macro_f1")] == pytest.approx(
        [found.accuracy, found.mcc, found.macro_f1]
    )


def test_neighbouring_floats_are_cut_apart() -> None:
    low = 0.3
    high = np.nextafter(low, 1)
    scores, present = np.array([[low], [high]]), np.array([[False], [True]])
    assert fit_thresholds(scores, present, goal="f1").values[0] > low - 1e-12
    for goal in ("precision", "recall"):
        found = fit_thresholds(scores, present, goal=goal, target=0.5)
        assert (scores >= found.values).ravel().tolist() == [False, True]


def test_what_cannot_be_fitted_is_refused() -> None:
    scores, present = np.full((3, 2), 0.5), np.ones((3, 2), bool)
    with pytest.raises(SettingsError, match="wanted recall is 1; it lies between"):
        fit_thresholds(scores, present, goal="recall", target=1)
    with pytest.raises(ValueError, match="do not fit"):
        fit_thresholds(scores, present[:2], goal="f1")
    with pytest.raises(ValueError, match="not finite"):
        fit_thresholds(scores * np.nan, present, goal="f1")
