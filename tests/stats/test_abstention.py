import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from taskfit.errors import SettingsError
from taskfit.stats.abstention import lower_bound, risk_coverage, threshold_for_precision
from taskfit.stats.as_json import as_json


def random_case(
    seed: int, count: int = 400, *, num_levels: int = 0, unanswered: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Return confidences and answers that are right as often as 1 - (1 - confidence) / 2."""
    generator = np.random.default_rng(seed)
    confidence = generator.random(count)
    correct = generator.random(count) < 1 - (1 - confidence) / 2
    if num_levels:
        confidence = np.floor(confidence * num_levels) / num_levels
    return np.where(generator.random(count) < unanswered, np.nan, confidence), correct


def test_a_curve_worked_by_hand() -> None:
    confidence = np.array([0.9, 0.8, 0.8, 0.2, np.nan])
    found = risk_coverage(confidence, np.array([True, False, True, False, True]))
    np.testing.assert_array_equal(found.thresholds, [0.9, 0.8, 0.2])
    np.testing.assert_allclose(found.coverage, [0.2, 0.6, 0.8])
    np.testing.assert_allclose(found.risk, [0, 1 / 3, 1 / 2])
    # The mistake among the two equals is second or third: half a mistake by then.
    aurc = (0 + 0.5 / 2 + 1 / 3 + 2 / 4) / 4
    assert found.aurc == pytest.approx(aurc)


@given(st.integers(0, 30), st.sampled_from([0, 2, 7]))
def test_the_order_of_examples_changes_nothing(seed: int, num_levels: int) -> None:
    confidence, correct = random_case(seed, 120, num_levels=num_levels)
    order = np.random.default_rng(seed).permutation(len(correct))
    plain, moved = (risk_coverage(confidence[o], correct[o]) for o in (slice(None), order))
    assert as_json(plain) == as_json(moved)
    assert threshold_for_precision(confidence, correct, precision=0.7) == threshold_for_precision(
        confidence[order], correct[order], precision=0.7
    )


def test_the_area_with_ties_is_the_mean_over_their_orders() -> None:
    confidence, correct = random_case(0, 60, num_levels=4, unanswered=0)
    generator = np.random.default_rng(0)
    areas = [
        risk_coverage(confidence + 1e-9 * generator.random(60), correct).aurc for _ in range(2000)
    ]
    assert risk_coverage(confidence, correct).aurc == pytest.approx(np.mean(areas), abs=0.002)


@given(st.integers(0, 30))
def test_coverage_rises_as_the_threshold_falls_and_ends_at_what_is_answered(seed: int) -> None:
    confidence, correct = random_case(seed, 100, num_levels=9)
    found = risk_coverage(confidence, correct)
    assert (np.diff(found.thresholds) < 0).all()
    assert (np.diff(found.coverage) > 0).all()
    answered = ~np.isnan(confidence)
    assert found.coverage[-1] == answered.mean()
    assert found.risk[-1] == pytest.approx(1 - correct[answered].mean())


@given(st.integers(0, 30))
def test_no_order_beats_the_best_and_only_the_order_of_confidences_counts(seed: int) -> None:
    confidence, correct = random_case(seed, 80)
    found = risk_coverage(confidence, correct)
    assert risk_coverage(confidence**3, correct).aurc == pytest.approx(found.aurc)
    perfect = risk_coverage(np.where(correct, 0.9, 0.1) + 0 * confidence, correct)
    assert perfect.aurc <= found.aurc
    # The right ones come first, then the risk of the k surest rises to that of all.
    right = correct[~np.isnan(confidence)]
    ranks = np.arange(1, len(right) + 1)
    best = (np.maximum(ranks - right.sum(), 0) / ranks).mean()
    assert perfect.aurc == pytest.approx(best)


def test_unanswered_examples_lower_coverage_and_touch_no_risk() -> None:
    confidence, correct = random_case(1, 300, unanswered=0)
    padded = np.append(confidence, np.full(100, np.nan))
    for answers in (np.ones(100, bool), np.zeros(100, bool)):
        more = risk_coverage(padded, np.append(correct, answers))
        plain = risk_coverage(confidence, correct)
        assert more.aurc == plain.aurc
        np.testing.assert_allclose(more.coverage, plain.coverage * 0.75)
        kept = threshold_for_precision(padded, np.append(correct, answers), precision=0.75)
        alone = threshold_for_precision(confidence, correct, precision=0.75)
        assert kept.threshold == alone.threshold
        assert kept.coverage == pytest.approx(0.75 * alone.coverage)


def rising(confidence: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * confidence


def just_too_low(confidence: np.ndarray) -> np.ndarray:
    return np.full_like(confidence, 0.799)


def worse_when_surer(confidence: np.ndarray) -> np.ndarray:
    return np.where(confidence > 0.7, 0.79, 0.85)


@pytest.mark.parametrize("chance", [rising, just_too_low, worse_when_surer])
@pytest.mark.parametrize("num_levels", [0, 8])
def test_the_promise_is_broken_no_more_often_than_it_says(
    chance: Callable[[np.ndarray], np.ndarray], num_levels: int
) -> None:
    generator = np.random.default_rng(2)

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
        confidence = generator.random(count)
        if num_levels:
            confidence = np.floor(confidence * num_levels) / num_levels
        return confidence, chance(confidence)

    population, truth = drawn(50_000)
    broken, trials = 0, 150
    for _ in range(trials):
        confidence, right = drawn(300)
        found = threshold_for_precision(
            confidence,
            generator.random(300) < right,
            precision=0.8,
            confidence_level=0.9,
        )
        if found.threshold is not None:
            broken += truth[population >= found.threshold].mean() < 0.8
    # Twice in a thousand a rate of one in ten exceeds this.
    assert broken <= stats.binom.ppf(0.998, trials, 0.1)


def test_no_threshold_below_one_that_failed_is_chosen() -> None:
    confidence = np.linspace(1, 0, 2160)
    correct = np.ones(2160, bool)
    correct[100:160] = False
    found = threshold_for_precision(confidence, correct, precision=0.9)
    # All together are right often enough; but the 160 surest were not.
    assert lower_bound(np.array([2100]), np.array([2160]), confidence_level=0.95)[0] > 0.9
    assert 60 <= found.num_answered <= 110


def test_much_data_comes_close_to_the_best_threshold() -> None:
    generator = np.random.default_rng(3)
    confidence = generator.random(20_000)
    correct = generator.random(20_000) < rising(confidence)
    # Above t the mean chance is 0.5 + 0.25 (1 + t), so 0.9 is kept from t = 0.6 on.
    found = threshold_for_precision(confidence, correct, precision=0.9)
    assert found.threshold == pytest.approx(0.6, abs=0.05)
    low, high = found.coverage_interval
    assert low < 1 - found.threshold < high
    assert found.coverage == (confidence >= found.threshold).mean()
    assert found.precision == correct[confidence >= found.threshold].mean()
    assert 0.9 <= found.precision_lower_bound < found.precision


@given(st.integers(0, 30))
def test_wanting_more_precision_or_more_confidence_never_answers_more(seed: int) -> None:
    confidence, correct = random_case(seed, 500)

    def coverage(precision: float, level: float) -> float:
        return threshold_for_precision(
            confidence, correct, precision=precision, confidence_level=level
        ).coverage

    # The sequences start at different places; so only far apart wishes are sure to be in order.
    assert coverage(0.6, 0.9) >= coverage(0.8, 0.9) >= coverage(0.97, 0.9)
    assert coverage(0.7, 0.8) >= coverage(0.7, 0.999)


def test_a_method_that_is_always_right_answers_everything() -> None:
    confidence = np.random.default_rng(4).random(100)
    found = threshold_for_precision(confidence, np.ones(100, bool), precision=0.95)
    assert (found.threshold, found.coverage, found.reason) == (0.0, 1.0, None)
    one_level = threshold_for_precision(np.ones(100), np.ones(100, bool), precision=0.95)
    assert (one_level.threshold, one_level.num_answered) == (0.0, 100)


def test_where_it_cannot_be_reached_the_reason_says_why() -> None:
    few = threshold_for_precision(np.ones(58), np.ones(58, bool), precision=0.95)
    assert few.threshold is None
    assert few.coverage == 0
    # 0.95^59 < 0.05 < 0.95^58.
    assert "58 of 58 held-out examples" in few.reason
    assert "at least 59" in few.reason
    assert threshold_for_precision(np.ones(59), np.ones(59, bool), precision=0.95).threshold == 0
    wrong = threshold_for_precision(np.ones(100), np.arange(100) < 90, precision=0.95)
    assert wrong.threshold is None
    assert "Of the 100 surest answers 90 are right" in wrong.reason
    silent = threshold_for_precision(np.full(5, np.nan), np.ones(5, bool), precision=0.95)
    assert "0 of 5" in silent.reason
    assert risk_coverage(np.full(5, np.nan), np.ones(5, bool)).aurc is None


@given(st.integers(1, 60), st.integers(0, 60), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_lower_bound_inverts_the_binomial_tail(
    trials: int, successes: int, level: float
) -> None:
    k = min(trials, successes)
    bound = lower_bound(np.array([k]), np.array([trials]), confidence_level=level)[0]
    if k:
        assert stats.binom.sf(k - 1, trials, bound) == pytest.approx(1 - level)
    else:
        assert bound == 0


def test_results_are_plain_json() -> None:
    confidence, correct = random_case(5)
    for found in (
        risk_coverage(confidence, correct),
        threshold_for_precision(confidence, correct, precision=0.75),
    ):
        assert json.loads(json.dumps(as_json(found)))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"requested precision is 95.* between 0 and 1"):
        threshold_for_precision(np.ones(3), np.ones(3, bool), precision=95)
    with pytest.raises(SettingsError, match="requested confidence level is 1"):
        threshold_for_precision(np.ones(3), np.ones(3, bool), precision=0.9, confidence_level=1)
    with pytest.raises(ValueError, match="do not fit"):
        risk_coverage(np.ones(3), np.ones(4, bool))
    with pytest.raises(ValueError, match="between 0 and 1"):
        risk_coverage(np.array([1.5]), np.ones(1, bool))
