"""What other orders of the options change is counted right, and nothing is made of nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskfit.stats.order_effect import OrderEffect, order_effect

ROTATED = np.array([[0, 1, 2], [1, 2, 0], [2, 0, 1]])


def sure(answers: np.ndarray) -> np.ndarray:
    """Probabilities of .8 for each answer, (O, N) to (O, N, 3)."""
    return np.eye(3)[answers] * 0.7 + 0.1


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30))
def test_answers_that_hang_on_nothing_have_no_effect(answers: list[int]) -> None:
    same = np.tile(np.array(answers), (3, 1))
    found = order_effect(sure(same), ROTATED, gold=same[0])
    for estimate in (found.flips, found.total_variation, found.first, found.last):
        assert estimate.value == pytest.approx(0)
        assert (estimate.low, estimate.high) == pytest.approx((0, 0))
    assert found.changed == 0
    assert found.accuracies == (1.0, 1.0, 1.0)
    assert found.mean_accuracy == 1.0


def test_one_who_always_says_the_first_is_found_out() -> None:
    first = np.repeat(ROTATED[:, :1], 40, axis=1)
    found = order_effect(sure(first), ROTATED)
    assert found.flips.value == found.changed == 1
    assert found.total_variation.value == pytest.approx(0.7)
    assert found.first.value == pytest.approx(2 / 3)
    assert found.last.value == pytest.approx(-1 / 3)
    assert found.first.low > 0 > found.last.high
    assert found.accuracies == ()
    assert found.mean_accuracy is None


def test_intervals_hold_the_value_and_narrow_with_more_texts() -> None:
    generator = np.random.default_rng(0)
    width = []
    for count in (50, 800):
        given = generator.integers(0, 3, count)
        answers = np.stack([given, *(np.where(generator.random((2, count)) < 0.2, 2, given))])
        found = order_effect(sure(answers), ROTATED)
        assert found.flips.low <= found.flips.value <= found.flips.high
        width.append(found.flips.high - found.flips.low)
    assert width[1] < width[0] / 2


def test_an_unbalanced_sample_of_orders_makes_no_preference() -> None:
    # Label 0 is the answer always, and stands first in two orders of three.
    orders = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2]])
    found = order_effect(sure(np.zeros((3, 20), int)), orders)
    assert found.first.value == pytest.approx(0)


def test_the_record_comes_back() -> None:
    found = order_effect(sure(np.zeros((3, 4), int)), ROTATED, gold=np.zeros(4, int))
    assert OrderEffect.from_dict(found.to_dict()) == found
