import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from taskfit.errors import SettingsError
from taskfit.stats import bootstrap
from taskfit.stats.as_json import as_json
from taskfit.stats.comparison import Comparison, compare_methods
from taskfit.stats.metrics import METRICS
from taskfit.stats.paired import holm, mcnemar, paired_bootstrap

NAMES = [f"method {i}" for i in range(12)]
# scikit-learn's, where -1 is no answer.
MEASURES = {
    "accuracy": accuracy_score,
    "mcc": matthews_corrcoef,
    "macro_f1": lambda g, p: f1_score(g, p, labels=[0, 1, 2], average="macro"),
}


def random_case(
    seed: int, shape: tuple[int, int, int] = (3, 4, 200), *, classes: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions, some of them none, and gold labels; later methods are better."""
    generator = np.random.default_rng(seed)
    gold = generator.integers(0, classes, shape[2])
    hard = generator.random(shape[2])
    skill = np.linspace(0.5, 0.7, shape[0])[:, None, None]
    guesses = generator.integers(-1, classes, shape)
    return np.where(generator.random(shape) < skill + 0.3 * hard, gold, guesses), gold


def planted(
    generator: np.random.Generator,
    shape: tuple[int, int, int],
    *,
    between: float,
    difficulty: float = 1.0,
) -> np.ndarray:
    """Return right and wrong answers of equally good methods whose draws vary in skill."""
    skill = between * generator.normal(size=(*shape[:2], 1))
    hard = difficulty * generator.normal(size=shape[2])
    return generator.random(shape) < 1 / (1 + np.exp(-1 - skill - hard))


def compare_correct(correct: np.ndarray, *, methods: list[str], seed: int = 0) -> Comparison:
    """Compare methods of which only right and wrong is known."""
    gold = np.zeros(correct.shape[-1], np.int64)
    return compare_methods(np.where(correct, 0, -1), gold, methods=methods, seed=seed)


@pytest.mark.parametrize("metric", METRICS)
def test_the_mean_is_the_mean_of_scikit_learns_metric_over_draws(metric: str) -> None:
    predicted, gold = random_case(0)
    found = compare_methods(predicted, gold, methods=NAMES[:3], metric=metric)
    measure = MEASURES[metric]
    for score, rows in zip(found.scores, predicted, strict=True):
        expected = [measure(gold, row) for row in rows]
        assert score.draws == pytest.approx(expected)
        assert score.mean == pytest.approx(np.mean(expected))
        assert score.between_draws == pytest.approx(np.var(expected, ddof=1))


@pytest.mark.parametrize("metric", METRICS)
def test_with_one_draw_the_difference_is_the_paired_bootstraps(
    metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "NUM_RESAMPLES", 400)
    predicted, gold = random_case(1, (2, 1, 300))
    predicted = np.maximum(predicted, 0)
    compared = compare_methods(predicted, gold, methods=NAMES[:2], metric=metric)
    found, other = compared.differences[0], 1 - NAMES.index(compared.best)
    first, second = predicted[other, 0], predicted[1 - other, 0]
    difference, interval = paired_bootstrap(gold, first, second, metric=metric)
    generator = np.random.default_rng(0)
    drawn = [generator.integers(0, 300, 300) for _ in range(400)]
    measure = MEASURES[metric]
    resampled = [measure(gold[d], first[d]) - measure(gold[d], second[d]) for d in drawn]
    for value, ends in (
        (found.difference, found.interval),
        (difference, interval),
    ):
        assert value == pytest.approx(measure(gold, first) - measure(gold, second))
        np.testing.assert_allclose(ends, np.quantile(resampled, [0.025, 0.975]), atol=0.02)


@given(st.integers(0, 20), st.sampled_from(METRICS))
def test_the_order_of_examples_draws_and_methods_changes_nothing_but_resampling_noise(
    seed: int, metric: str
) -> None:
    predicted, gold = random_case(seed, (3, 3, 80))
    plain = compare_methods(predicted, gold, methods=NAMES[:3], metric=metric)
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(size) for size in predicted.shape]
    moved = compare_methods(
        predicted[np.ix_(*orders)],
        gold[orders[2]],
        methods=[NAMES[i] for i in orders[0]],
        metric=metric,
    )
    assert moved.best == plain.best
    by_name = {score.method: score for score in moved.scores}
    for score in plain.scores:
        same = by_name[score.method]
        assert same.mean == pytest.approx(score.mean)
        assert same.between_draws == pytest.approx(score.between_draws)
        assert same.within_draws == pytest.approx(score.within_draws, rel=0.3)
        np.testing.assert_allclose(same.interval, score.interval, atol=0.06)


def test_order_of_examples_alone_changes_nothing_at_all() -> None:
    predicted, gold = random_case(2)
    order = np.random.default_rng(0).permutation(len(gold))
    found = [
        compare_methods(p, g, methods=NAMES[:3], metric="macro_f1")
        for p, g in ((predicted, gold), (predicted[:, :, order], gold[order]))
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("between", [0.0, 0.5])
def test_intervals_cover_the_truth_and_equal_methods_are_rarely_significantly_different(
    between: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "NUM_RESAMPLES", 200)
    generator = np.random.default_rng(3)
    truth = planted(generator, (1, 2000, 500), between=between).mean()
    covered = rejected = 0
    for trial in range(150):
        right = planted(generator, (2, 4, 200), between=between)
        found = compare_correct(right, methods=NAMES[:2], seed=trial)
        low, high = found.scores[0].interval
        covered += low <= truth <= high
        rejected += found.differences[0].adjusted_p_value < 0.05
    assert 136 <= covered <= 150
    assert rejected <= 15


def test_picking_the_best_of_many_equal_methods_does_not_make_it_better_than_the_worst(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bootstrap, "NUM_RESAMPLES", 200)
    generator = np.random.default_rng(4)
    adjusted, among_shown = 0, 0
    for trial in range(60):
        right = planted(generator, (8, 5, 150), between=0.1, difficulty=2)
        found = compare_correct(right, methods=NAMES[:8], seed=trial).differences
        adjusted += any(difference.adjusted_p_value < 0.05 for difference in found)
        shown = holm(np.array([difference.p_value for difference in found]))
        among_shown += bool((shown < 0.05).any())
    assert adjusted <= 8
    assert among_shown > 2 * adjusted  # Holm over the M - 1 shown would call equals different


def test_a_clear_difference_is_found() -> None:
    generator = np.random.default_rng(5)
    right = generator.random((3, 4, 1000)) < np.array([0.7, 0.8, 0.9])[:, None, None]
    found = compare_correct(right, methods=NAMES[:3])
    assert found.best == NAMES[2]
    for difference, truth in zip(found.differences, (-0.2, -0.1), strict=True):
        assert difference.interval[0] < truth < difference.interval[1] < 0
        assert difference.adjusted_p_value < 0.01


def test_the_variance_splits_into_what_was_planted() -> None:
    generator = np.random.default_rng(6)
    levels = generator.normal(0.7, 0.05, 400)
    right = generator.random((400, 500)) < levels[:, None]
    score = compare_correct(right[None], methods=["planted"]).scores[0]
    binomial = 0.7 * 0.3 / 500
    assert score.between_draws == pytest.approx(0.05**2 + binomial, rel=0.2)
    assert score.within_draws == pytest.approx(binomial, rel=0.1)


def test_a_method_without_chance_has_no_variance_between_draws_and_the_interval_of_one() -> None:
    predicted, gold = random_case(7, (1, 1, 200))
    one = compare_methods(predicted, gold, methods=["same"]).scores[0]
    many = compare_methods(predicted.repeat(5, axis=1), gold, methods=["same"]).scores[0]
    assert one.between_draws is None
    assert many.between_draws == 0
    np.testing.assert_allclose(many.interval, one.interval, atol=0.01)


def test_methods_that_answer_alike_do_not_differ() -> None:
    predicted, gold = random_case(8, (1, 3, 100))
    for metric in METRICS:
        found = compare_methods(
            predicted.repeat(2, axis=0), gold, methods=NAMES[:2], metric=metric
        ).differences[0]
        assert (found.difference, found.interval, found.p_value) == (0, (0, 0), 1)


def test_five_examples_never_make_a_difference_certain() -> None:
    right = np.zeros((2, 3, 5), bool)
    right[1] = True
    found = compare_correct(right, methods=NAMES[:2]).differences[0]
    assert found.p_value == pytest.approx(2 / 2**5)


def test_mcnemar_is_the_sign_test_worked_by_hand() -> None:
    first = np.array([True] * 6 + [False] * 2 + [True] * 5)
    second = np.array([False] * 6 + [True] * 1 + [False] * 1 + [True] * 5)
    # Seven disagree, one for the second: 2 * (1 + 7) / 2^7.
    assert mcnemar(first, second) == pytest.approx(0.125)
    assert mcnemar(first, first) == 1
    found = compare_correct(np.stack((first, second))[:, None], methods=NAMES[:2]).differences[0]
    assert (found.test, found.p_value) == ("mcnemar", pytest.approx(0.125))


def test_holm_is_the_case_of_the_textbook() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_keeps_the_order_and_lies_between_no_correction_and_bonferroni(
    values: list[float],
) -> None:
    p_values = np.array(values)
    adjusted = holm(p_values)
    assert (adjusted >= p_values).all()
    assert (adjusted <= np.minimum(len(values) * p_values, 1) + 1e-12).all()
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


def test_resampling_in_blocks_is_resampling_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted, gold = random_case(9)
    whole = compare_methods(predicted, gold, methods=NAMES[:3], metric="mcc")
    monkeypatch.setattr(bootstrap, "BLOCK", 20_000)
    blocks = compare_methods(predicted, gold, methods=NAMES[:3], metric="mcc")
    assert blocks == whole


def test_a_comparison_is_plain_json() -> None:
    predicted, gold = random_case(10)
    found = compare_methods(predicted, gold, methods=NAMES[:3])
    assert json.loads(json.dumps(as_json(found)))["best"] == found.best


def test_what_does_not_fit_is_refused() -> None:
    predicted, gold = random_case(11)
    with pytest.raises(SettingsError, match=r"Metric 'f2' cannot be compared .* accuracy, mcc"):
        compare_methods(predicted, gold, methods=NAMES[:3], metric="f2")
    with pytest.raises(ValueError, match="do not fit 2 methods"):
        compare_methods(predicted, gold, methods=NAMES[:2])
    with pytest.raises(ValueError, match="do not fit predictions"):
        compare_methods(predicted, gold[1:], methods=NAMES[:3])
    with pytest.raises(ValueError, match="different names"):
        compare_correct(predicted == gold, methods=["a", "b", "a"])
    with pytest.raises(ValueError, match="at least two"):
        compare_correct(np.ones((1, 2, 1), bool), methods=["a"])


@pytest.mark.parametrize("metric", METRICS)
def test_differences_to_another_reference_are_mirrored_and_corrected_alike(metric: str) -> None:
    predicted, gold = random_case(5)
    to_best = compare_methods(predicted, gold, methods=NAMES[:3], metric=metric)
    other = next(name for name in NAMES[:3] if name != to_best.best)
    to_other = to_best.relative_to(other)
    assert to_other.best == to_best.best
    assert to_other.scores == to_best.scores
    there = next(d for d in to_best.differences if d.method == other)
    back = next(d for d in to_other.differences if d.method == to_best.best)
    assert back.difference == -there.difference
    assert back.interval == pytest.approx([-there.interval[1], -there.interval[0]])
    assert back.adjusted_p_value == there.adjusted_p_value
    with pytest.raises(ValueError, match="'unknown' is not in"):
        to_best.relative_to("unknown")
