import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import least_squares

from taskfit.errors import SettingsError
from taskfit.stats.as_json import as_json
from taskfit.stats.back_test import back_test
from taskfit.stats.learning_curve import HELPS, LITTLE, UNKNOWN, _fit, fit_learning_curve

SIZES = 32 * 2 ** np.arange(7)  # 32 to 2048
CURVES = [(0.1, 3, 0.5), (0.0, 1.5, 0.3), (0.05, 4, 0.8), (0.2, 0.5, 0.1)]


pytestmark = pytest.mark.usefixtures("fewer_resamples")


def truth(curve: tuple[float, float, float], sizes: np.ndarray) -> np.ndarray:
    a, b, c = curve
    return 1 - a - b * sizes**-c


def observed(
    curve: tuple[float, float, float],
    sizes: np.ndarray,
    *,
    draws: int,
    noise: float = 0.02,
    seed: int = 0,
) -> np.ndarray:
    generator = np.random.default_rng(seed)
    spread = noise * (sizes / sizes[0]) ** -0.3
    scores = truth(curve, sizes)[:, None]
    return scores + spread[:, None] * generator.standard_normal((len(sizes), draws))


@pytest.mark.parametrize("curve", CURVES)
def test_a_curve_without_noise_is_found_again(curve: tuple[float, float, float]) -> None:
    found = fit_learning_curve(SIZES, truth(curve, SIZES)[:, None])
    assert (found.asymptote, found.scale, found.exponent) == pytest.approx(
        curve, rel=0.01, abs=2e-3
    )
    forecast = found.forecast([10_000])[0]
    assert forecast.score == pytest.approx(truth(curve, np.array([10_000]))[0], abs=1e-3)
    assert found.reason is None


@pytest.mark.parametrize("draws", [1, 2, 3, 5])
def test_held_out_sizes_lie_in_the_interval_about_as_often_as_it_says(draws: int) -> None:
    covered = {size: 0 for size in SIZES[-2:]}
    for trial in range(100):
        curve = CURVES[trial % len(CURVES)]
        scores = observed(curve, SIZES, draws=draws, seed=trial)
        found = fit_learning_curve(SIZES[:-2], scores[:-2], seed=trial)
        for forecast in found.forecast(SIZES[-2:]):
            low, high = forecast.interval
            covered[forecast.num_labels] += low <= truth(curve, forecast.num_labels) <= high
    assert all(85 <= count <= 100 for count in covered.values()), covered


def test_more_draws_make_the_interval_narrower() -> None:
    widths = []
    for draws in (2, 8, 32):
        scores = observed(CURVES[0], SIZES, draws=draws)
        low, high = fit_learning_curve(SIZES, scores).forecast([4096])[0].interval
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2]


@given(st.integers(0, 20), st.sampled_from(CURVES))
def test_no_start_of_a_general_optimizer_finds_a_better_fit(
    seed: int, curve: tuple[float, float, float]
) -> None:
    errors = 1 - observed(curve, SIZES, draws=1, noise=0.03, seed=seed)[:, 0]
    weights = np.random.default_rng(seed).uniform(1, 5, len(SIZES))

    def misses(parameters: np.ndarray) -> np.ndarray:
        a, b, c = parameters
        return np.sqrt(weights) * (errors - a - b * (SIZES / 256) ** -c)

    a, b, c = _fit(SIZES.astype(float), errors[None], weights)[0]
    own = (misses(np.array([a, b * 256**-c, c])) ** 2).sum()
    for start in ([0.1, 0.1, 0.1], [0.0, 0.2, 0.5], [0.2, 0.3, 2.0]):
        other = least_squares(misses, start, bounds=([0, 0, 0.02], [np.inf, np.inf, 4]))
        assert own <= 2 * other.cost * (1 + 1e-3) + 1e-9
    assert a >= 0
    assert b >= 0


def test_the_order_of_sizes_and_draws_changes_nothing() -> None:
    scores = observed(CURVES[0], SIZES, draws=3)
    plain = fit_learning_curve(SIZES, scores)
    generator = np.random.default_rng(0)
    order = generator.permutation(len(SIZES))
    moved = fit_learning_curve(SIZES[order], scores[order][:, ::-1])
    for mine, other in zip(plain.forecast([100, 5000]), moved.forecast([100, 5000]), strict=True):
        assert other.score == pytest.approx(mine.score)
        assert other.interval == pytest.approx(mine.interval)


def test_the_unit_of_labels_changes_nothing() -> None:
    scores = observed(CURVES[2], SIZES, draws=3)
    plain = fit_learning_curve(SIZES, scores).gain(2048, 4096)
    dozens = fit_learning_curve(SIZES / 12, scores).gain(2048 / 12, 4096 / 12)
    assert dozens.gain == pytest.approx(plain.gain)
    assert dozens.interval == pytest.approx(plain.interval)


def test_a_missing_draw_is_left_out_and_a_noisy_size_counts_less() -> None:
    scores = observed(CURVES[0], SIZES, draws=4)
    padded = np.hstack((scores, np.full((len(SIZES), 2), np.nan)))
    plain, same = fit_learning_curve(SIZES, scores), fit_learning_curve(SIZES, padded)
    assert as_json(same) == as_json(plain)
    noisy = scores.copy()
    noisy[3] = scores[3].mean() - 0.2 + np.array([-0.4, -0.4, 0.4, 0.4])
    steady = scores.copy()
    steady[3] = scores[3] - 0.2
    reference = plain.forecast([256])[0].score
    shift = [
        abs(fit_learning_curve(SIZES, s).forecast([256])[0].score - reference)
        for s in (noisy, steady)
    ]
    assert shift[0] < 0.7 * shift[1]


def test_the_gain_is_the_difference_of_forecasts_and_grows_with_labels() -> None:
    found = fit_learning_curve(SIZES, observed(CURVES[0], SIZES, draws=3))
    now, then = found.forecast([2048, 8192])
    gains = [found.gain(2048, n) for n in (4096, 8192, 16384)]
    assert gains[1].gain == pytest.approx(then.score - now.score)
    assert gains[0].gain < gains[1].gain < gains[2].gain
    for gain in gains:
        assert gain.interval[0] <= gain.gain <= gain.interval[1]


def test_the_verdict_follows_the_interval() -> None:
    steep = fit_learning_curve(SIZES, observed(CURVES[1], SIZES, draws=5, noise=0.01))
    assert steep.gain(2048, 8192).verdict == HELPS
    # 0.05 + 4 n^-0.8 falls by 0.005 from 2048 to 8192.
    done = fit_learning_curve(SIZES, observed(CURVES[2], SIZES, draws=5, noise=0.01))
    assert done.gain(2048, 8192).verdict == LITTLE
    low, high = done.gain(2048, 8192).interval
    assert done.gain(2048, 8192, worthwhile=(low + high) / 2).verdict == UNKNOWN
    assert done.gain(2048, 8192, worthwhile=low).verdict == HELPS


def test_verdicts_on_planted_curves_are_rarely_wrong() -> None:
    wrong = 0
    for trial in range(100):
        curve = CURVES[trial % len(CURVES)]
        found = fit_learning_curve(SIZES, observed(curve, SIZES, draws=3, seed=trial), seed=trial)
        gain = float(truth(curve, 4096.0) - truth(curve, 2048.0))
        wrong += found.gain(2048, 4096).verdict == (LITTLE if gain >= 0.01 else HELPS)
    assert wrong <= 5


def test_fewer_than_three_sizes_give_no_curve_and_say_so() -> None:
    found = fit_learning_curve([32, 64], np.array([[0.6, 0.62], [0.7, 0.72]]))
    assert "needs at least 3 numbers of labels; there are 2" in found.reason
    assert found.forecast([128])[0].score is None
    gain = found.gain(64, 128)
    assert (gain.gain, gain.interval, gain.verdict) == (None, None, UNKNOWN)
    assert gain.reason == found.reason
    single = fit_learning_curve([32, 64, 128], np.array([[0.6], [0.7], [0.75]]))
    assert "at least 4 numbers of labels or 2 draws" in single.reason
    assert fit_learning_curve([32, 64, 128], np.array([[0.6, 0.61]] * 3)).asymptote is not None


def test_a_flat_curve_is_its_mean_and_precise_scores_say_there_is_little_to_gain() -> None:
    generator = np.random.default_rng(1)
    # A trend of exactly nothing: noise that is the same for each size but in another order.
    noise = np.array([-1, -0.5, 0, 0.5, 1.0])
    unit = np.stack([generator.permutation(noise) for _ in SIZES])
    precise = fit_learning_curve(SIZES, 0.8 + 0.001 * unit)
    assert precise.scale == 0
    assert "does not rise beyond chance" in precise.reason
    assert precise.forecast([10_000])[0].score == pytest.approx(0.8)
    assert precise.gain(2048, 4096).verdict == LITTLE
    vague = fit_learning_curve(SIZES[:4], 0.6 + 0.3 * unit[:4])
    assert vague.gain(256, 4096).verdict == UNKNOWN
    assert vague.gain(256, 4096).gain == 0
    same = fit_learning_curve(SIZES, np.full((len(SIZES), 3), 0.7))
    assert (same.rising, same.falling) == (False, False)
    assert same.forecast([4096])[0].interval == pytest.approx((0.7, 0.7))


def test_a_falling_curve_is_no_learning_curve() -> None:
    scores = observed(CURVES[0], SIZES, draws=3)[::-1]
    found = fit_learning_curve(SIZES, scores)
    assert found.falling
    assert "falls beyond chance" in found.reason
    assert found.gain(2048, 4096).verdict == UNKNOWN


def test_means_that_miss_the_curve_widen_the_interval() -> None:
    smooth = observed(CURVES[0], SIZES, draws=3, noise=0.002)
    bumpy = smooth + 0.03 * np.array([1, -1, 1, -1, 1, -1, 1])[:, None]
    widths = []
    for scores in (smooth, bumpy):
        low, high = fit_learning_curve(SIZES, scores).forecast([4096])[0].interval
        widths.append(high - low)
    assert widths[1] > 4 * widths[0]


def test_a_curve_is_plain_json() -> None:
    found = fit_learning_curve(SIZES, observed(CURVES[0], SIZES, draws=3))
    plain = json.loads(json.dumps(as_json(found)))
    assert plain["asymptote"] == found.asymptote
    assert "resamples" not in plain
    assert json.loads(json.dumps(as_json(found.gain(100, 200))))["n_then"] == 200


def test_what_does_not_fit_is_refused() -> None:
    scores = observed(CURVES[0], SIZES, draws=2)
    with pytest.raises(ValueError, match="do not fit 6 sizes"):
        fit_learning_curve(SIZES[1:], scores)
    with pytest.raises(ValueError, match="different"):
        fit_learning_curve([1, 1, 2], scores[:3])
    with pytest.raises(ValueError, match="at most 1"):
        fit_learning_curve(SIZES, scores + 1)
    with pytest.raises(ValueError, match="at least one draw"):
        fit_learning_curve(SIZES, np.where(SIZES[:, None] == 64, np.nan, scores))
    found = fit_learning_curve(SIZES, scores)
    with pytest.raises(SettingsError, match="From 200 to 100 labels"):
        found.gain(200, 100)
    with pytest.raises(SettingsError, match="above 0"):
        found.forecast([0])


@pytest.mark.parametrize("draws", [2, 5])
def test_back_tests_of_a_power_law_cover_about_as_often_as_they_say(draws: int) -> None:
    covered = []
    for trial in range(40):
        curve = CURVES[trial % len(CURVES)]
        cases = back_test(SIZES[:5], observed(curve, SIZES[:5], draws=draws, seed=trial))
        assert [(case.fitted_up_to, case.num_labels) for case in cases] == [
            (128, 256),
            (128, 512),
            (256, 512),
        ]
        covered += [case.covered for case in cases]
    assert np.mean(covered) > 0.87


def test_a_break_in_the_curve_fails_its_back_test() -> None:
    scores = observed(CURVES[0], SIZES, draws=3, noise=0.002)
    scores[-1] -= 0.2
    *kept, last = back_test(SIZES, scores)
    assert not last.covered
    assert last.score == pytest.approx(scores[-1].mean())
    assert all(case.covered for case in kept if case.num_labels < SIZES[-1])


def test_back_tests_do_not_depend_on_the_order_of_sizes_and_need_four_of_them() -> None:
    scores = observed(CURVES[1], SIZES, draws=2)
    order = np.random.default_rng(0).permutation(len(SIZES))
    assert back_test(SIZES[order], scores[order]) == back_test(SIZES, scores)
    assert back_test(SIZES[:3], scores[:3]) == []
    assert back_test(SIZES[:4], scores[:4, :1]) == []  # three sizes of one draw show no chance
