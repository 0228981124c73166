"""Agreement with people: chance is taken off, the bounds hold, and calibration is honest."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, cohen_kappa_score

from taskfit.labels.annotate_check import cross_fitted, measure_agreement
from taskfit.stats.temperature import apply_temperature

NAMES = ["bad", "good", "odd"]


def drawn(seed: int, count: int = 60, *, missing: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.ones(3), count)
    gold = np.array([generator.choice(3, p=row) for row in probabilities])
    probabilities[generator.random(count) < missing] = np.nan
    return probabilities, gold


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), missing=st.sampled_from([0.0, 0.3, 1.0]))
def test_kappa_is_that_of_scikit_learn_with_no_answer_as_a_label_of_its_own(
    seed: int, missing: float
) -> None:
    probabilities, gold = drawn(seed, missing=missing)
    found = measure_agreement(probabilities, gold, labels=NAMES)
    answered = ~np.isnan(probabilities).any(axis=1)
    said = np.where(answered, np.nan_to_num(probabilities).argmax(axis=1), 3)
    assert found.kappa == pytest.approx(cohen_kappa_score(gold, said))
    low, high = found.kappa_interval
    assert -1 <= low <= high <= 1
    assert 0 <= found.brier <= 2
    assert sum(own.num_human for own in found.by_label) == len(gold)


def test_an_annotator_that_guesses_has_no_kappa_and_one_that_is_right_is_not_sure_of_it() -> None:
    generator = np.random.default_rng(0)
    gold = generator.integers(0, 3, 300)
    guesses = measure_agreement(np.eye(3)[generator.integers(0, 3, 300)], gold, labels=NAMES)
    low, high = guesses.kappa_interval
    assert low < 0 < high
    right = measure_agreement(np.eye(3)[gold], gold, labels=NAMES)
    assert right.kappa == 1
    assert 0.9 < right.kappa_interval[0] < 1
    assert right.brier == 0


def test_the_score_of_two_labels_is_twice_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    p, gold = generator.random(50), generator.integers(0, 2, 50)
    found = measure_agreement(np.stack((1 - p, p), axis=1), gold, labels=NAMES[:2])
    assert found.brier == pytest.approx(2 * brier_score_loss(gold, p))


def test_what_is_too_sure_is_less_so_and_no_text_is_corrected_by_all_of_them() -> None:
    probabilities, gold = drawn(3, 200)
    sure = apply_temperature(probabilities, 0.3)
    found, whole = cross_fitted(sure, gold)
    assert whole.temperature > 2
    before = measure_agreement(sure, gold, labels=NAMES)
    after = measure_agreement(found, gold, labels=NAMES)
    assert after.evaluation.ece < before.evaluation.ece
    assert after.evaluation.log_loss < before.evaluation.log_loss
    assert after.evaluation.accuracy == before.evaluation.accuracy
    # Each fifth has the temperature of the others: five of them, none that of all.
    of_text = np.log(sure[:, 0] / sure[:, 1]) / np.log(found[:, 0] / found[:, 1])
    temperatures = np.unique(of_text.round(6))
    assert len(temperatures) == 5
    assert round(whole.temperature, 6) not in temperatures


def test_too_few_labels_fit_no_temperature() -> None:
    probabilities, gold = drawn(0, 10)
    found, whole = cross_fitted(probabilities, gold)
    assert whole.reason is not None
    np.testing.assert_array_equal(found, probabilities)
