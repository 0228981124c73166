"""Laws of prediction sets: the promised coverage, and what they do where there is no answer."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax

from taskfit.errors import SettingsError
from taskfit.stats.conformal import (
    achieved_coverage,
    class_thresholds,
    conformal_scores,
    num_needed,
    prediction_sets,
    threshold,
)

COVERAGES = [0.5, 0.55, 0.8, 0.9, 0.95]


def draw(count: int, generator: np.random.Generator, labels: int = 4) -> tuple:
    """A classifier that is neither calibrated nor good, and labels with unequal shares."""
    shares = np.array([0.5, 0.3, 0.15, 0.05])[:labels]
    gold = generator.choice(labels, count, p=shares / shares.sum())
    scores = generator.normal(0, 1, (count, labels)) + 1.5 * np.eye(labels)[gold]
    return softmax(3 * scores, axis=1), gold


@pytest.mark.parametrize("coverage", COVERAGES)
@pytest.mark.parametrize("num_held_out", [19, 60])
def test_over_many_draws_the_coverage_is_what_was_promised(
    coverage: float, num_held_out: int
) -> None:
    generator, repeats = np.random.default_rng(0), 2000
    within = covered = 0
    for _ in range(repeats):
        probabilities, gold = draw(num_held_out + 1, generator)
        limit = threshold(conformal_scores(probabilities[1:], gold[1:]), coverage)
        within += conformal_scores(probabilities[:1], gold[:1])[0] <= limit
        covered += prediction_sets(probabilities[:1], limit)[0, gold[0]]
    # Of continuous scores the chance is exactly k / (n + 1).
    exact = np.ceil((num_held_out + 1) * coverage - 1e-9) / (num_held_out + 1)
    low, high = stats.binom.ppf([0.0005, 0.9995], repeats, exact)
    assert low <= within <= high
    assert covered >= within


def test_by_class_the_coverage_holds_for_the_rarest_label_too() -> None:
    generator, repeats = np.random.default_rng(1), 400
    by_class, overall, count = 0, 0, 0
    for _ in range(repeats):
        probabilities, gold = draw(400, generator)
        test = np.flatnonzero(gold[300:] == 3) + 300
        held_out = conformal_scores(probabilities[:300], gold[:300])
        limits = class_thresholds(held_out, gold[:300], 0.8, num_labels=4)
        by_class += prediction_sets(probabilities[test], limits)[:, 3].sum()
        limit = threshold(held_out, 0.8)
        overall += (1 - probabilities[test][:, 3] <= limit).sum()
        count += len(test)
    assert by_class / count > 0.78
    assert count > 1000
    assert 0 < overall <= count


def test_a_higher_coverage_never_gives_a_smaller_set() -> None:
    probabilities, gold = draw(300, np.random.default_rng(2))
    scores = conformal_scores(probabilities[:200], gold[:200])
    sizes = [
        prediction_sets(probabilities[200:], threshold(scores, c)).sum(axis=1) for c in COVERAGES
    ]
    for smaller, larger in pairwise(sizes):
        assert (smaller <= larger).all()
    assert all((size >= 1).all() for size in sizes)


def test_the_order_of_held_out_examples_does_not_matter() -> None:
    scores = np.random.default_rng(3).random(50)
    assert threshold(scores, 0.9) == threshold(np.sort(scores)[::-1], 0.9)


def test_without_an_answer_every_label_is_in_the_set_and_the_score_is_infinite() -> None:
    probabilities = np.array([[0.9, 0.1], [np.nan, np.nan]])
    np.testing.assert_allclose(conformal_scores(probabilities, np.array([0, 1])), [0.1, np.inf])
    np.testing.assert_array_equal(
        prediction_sets(probabilities, 0.5), [[True, False], [True, True]]
    )
    assert prediction_sets(probabilities, np.inf).all()


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95, 0.99, 0.999])
def test_just_enough_held_out_examples_are_enough(coverage: float) -> None:
    enough = num_needed(coverage)
    assert threshold(np.arange(enough) / enough, coverage) == (enough - 1) / enough
    with pytest.raises(SettingsError, match=f"at least {enough} held-out examples"):
        threshold(np.zeros(enough - 1), coverage)


def test_what_is_advised_can_be_had() -> None:
    with pytest.raises(SettingsError, match=r"Ask for at most 0\.98,"):
        threshold(np.zeros(50), 0.99)
    assert threshold(np.zeros(50), 0.98) == 0
    with pytest.raises(SettingsError, match=r"every label takes at least 9 .* one label has 1"):
        class_thresholds(np.zeros(50), np.array([0] * 49 + [1]), 0.9, num_labels=2)


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1.0, 90.0, float("nan")])
def test_a_coverage_that_is_no_share_is_refused(coverage: float) -> None:
    with pytest.raises(SettingsError, match="between 0 and 1"):
        threshold(np.zeros(50), coverage)


def test_achieved_coverage_counts_the_right_labels_in_their_sets() -> None:
    sets = np.array([[True, False], [True, True], [False, True], [True, True]])
    found = achieved_coverage(sets, np.array([0, 1, 0, 0]), coverage=0.9)
    assert (found.achieved, found.mean_size, found.single) == (0.75, 1.5, 0.5)
    assert found.interval[0] < 0.75 < found.interval[1]
