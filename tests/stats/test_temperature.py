"""Laws of temperature scaling."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax, logit, softmax

from taskfit.stats.temperature import (
    FEWEST,
    apply_temperature,
    fit_multi_label_temperature,
    fit_temperature,
)


def overconfident(
    *, temperature: float, count: int = 4000, labels: int = 4, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities whose log-probabilities are too large by a factor, and labels drawn truly."""
    generator = np.random.default_rng(seed)
    true = softmax(generator.normal(0, 1.5, (count, labels)), axis=1)
    gold = (generator.random((count, 1)) > true.cumsum(axis=1)).sum(axis=1)
    return softmax(temperature * np.log(true), axis=1), gold


def log_loss(probabilities: np.ndarray, gold: np.ndarray) -> float:
    return float(-np.log(probabilities[np.arange(len(gold)), gold]).mean())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_recovered(temperature: float) -> None:
    found = fit_temperature(*overconfident(temperature=temperature))
    assert found.temperature == pytest.approx(temperature, rel=0.08)
    assert (found.num_examples, found.reason) == (4000, None)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_a_known_temperature_of_several_labels_is_recovered(temperature: float) -> None:
    generator = np.random.default_rng(1)
    true = expit(generator.normal(0, 1.5, (3000, 3)))
    present = generator.random(true.shape) < true
    probabilities = expit(temperature * logit(true))
    found = fit_multi_label_temperature(probabilities, present)
    assert found.temperature == pytest.approx(temperature, rel=0.08)
    scaled = apply_temperature(probabilities, found.temperature, multi_label=True)
    np.testing.assert_allclose(scaled, true, atol=0.03)


def test_temperature_one_changes_nothing_and_any_other_keeps_the_answer() -> None:
    probabilities = np.random.default_rng(2).dirichlet([0.2] * 5, 500)
    np.testing.assert_array_equal(apply_temperature(probabilities, 1.0), probabilities)
    for temperature in (0.05, 0.7, 4.0, 20.0):
        scaled = apply_temperature(probabilities, temperature)
        np.testing.assert_allclose(scaled.sum(axis=1), 1)
        np.testing.assert_array_equal(scaled.argmax(axis=1), probabilities.argmax(axis=1))
        both = apply_temperature(probabilities, temperature, multi_label=True)
        np.testing.assert_array_equal(both >= 0.5, probabilities >= 0.5)


def test_it_is_the_softmax_of_divided_log_probabilities() -> None:
    probabilities = np.random.default_rng(3).dirichlet([1.0] * 3, 50)
    expected = np.exp(log_softmax(np.log(probabilities) / 2.5, axis=1))
    np.testing.assert_allclose(apply_temperature(probabilities, 2.5), expected)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_it_is_never_worse_on_the_fitting_set_and_no_temperature_is_better(
    temperature: float, seed: int
) -> None:
    probabilities, gold = overconfident(temperature=temperature, count=40, seed=seed)
    found = fit_temperature(probabilities, gold).temperature
    fitted = log_loss(apply_temperature(probabilities, found), gold)
    assert fitted <= log_loss(probabilities, gold) + 1e-12
    for other in np.geomspace(0.06, 19, 60):
        assert fitted <= log_loss(apply_temperature(probabilities, other), gold) + 1e-6


def test_renaming_the_labels_and_reordering_the_examples_change_nothing() -> None:
    probabilities, gold = overconfident(temperature=2.0, count=200)
    generator = np.random.default_rng(4)
    labels, rows = generator.permutation(4), generator.permutation(200)
    renamed = fit_temperature(probabilities[rows][:, labels], np.argsort(labels)[gold[rows]])
    found = fit_temperature(probabilities, gold)
    assert renamed.temperature == pytest.approx(found.temperature, rel=1e-4)


def test_no_answer_stays_none_and_is_not_fitted_on() -> None:
    probabilities, gold = overconfident(temperature=2.0, count=200)
    holes = probabilities.copy()
    holes[::2] = np.nan
    found = fit_temperature(holes, gold)
    assert found == fit_temperature(probabilities[1::2], gold[1::2])
    assert found.num_examples == 100
    scaled = apply_temperature(holes, found.temperature)
    assert np.isnan(scaled[::2]).all()
    assert np.isfinite(scaled[1::2]).all()


def test_a_vote_of_zero_is_softened_and_never_makes_the_fit_fail() -> None:
    generator = np.random.default_rng(5)
    gold = generator.integers(0, 2, 100)
    answers = np.where(generator.random(100) < 0.8, gold, 1 - gold)
    probabilities = np.eye(2)[answers]
    found = fit_temperature(probabilities, gold)
    scaled = apply_temperature(probabilities, found.temperature)
    right = (answers == gold).mean()
    np.testing.assert_allclose(scaled.max(axis=1), right, atol=0.01)


@pytest.mark.parametrize(
    ("probabilities", "gold", "why"),
    [
        (np.full((FEWEST - 1, 2), 0.5), np.arange(FEWEST - 1) % 2, "at least 20"),
        (np.full((50, 2), np.nan), np.arange(50) % 2, "0 held-out examples have an answer"),
        (np.full((50, 2), 0.5), np.zeros(50, int), "same label"),
        (np.eye(2)[np.arange(50) % 2] * 0.8 + 0.1, np.arange(50) % 2, "are right"),
    ],
    ids=["few", "unanswered", "one class", "all right"],
)
def test_where_the_examples_say_nothing_it_is_one_and_says_why(
    probabilities: np.ndarray, gold: np.ndarray, why: str
) -> None:
    found = fit_temperature(probabilities, gold)
    assert found.temperature == 1
    assert why in str(found.reason)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        fit_temperature(np.full((3, 2), 0.5), np.zeros(4, int))
    with pytest.raises(ValueError, match="do not fit"):
        fit_multi_label_temperature(np.full((3, 2), 0.5), np.zeros((3, 3), bool))
    with pytest.raises(ValueError, match="above 0"):
        apply_temperature(np.full((3, 2), 0.5), 0.0)
