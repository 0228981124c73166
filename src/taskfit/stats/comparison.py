"""Several methods on the same examples over several draws: scores, differences, what is chance.

Arrays in, numbers out. A draw is one run of a method with its own seed and training examples;
draw d is the same draw for every method, and all are measured on the same examples.

Legend: M methods, D draws, N examples, C classes, U distinct columns of answers, B resamples.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from taskfit.errors import SettingsError
from taskfit.stats.bootstrap import resample_counts
from taskfit.stats.metrics import METRICS, FloatArray, IntArray
from taskfit.stats.metrics import macro_f1_from_counts as macro_f1
from taskfit.stats.metrics import mcc_from_counts as mcc
from taskfit.stats.paired import holm, mcnemar

BoolArray = NDArray[np.bool_]

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class MethodScore:
    """One method's metric over draws.

    Attributes:
        method: Name.
        mean: Mean of the metric over draws.
        interval: 95 % interval of the mean, over draws and examples (one draw: examples).
        draws: The metric of each draw, D.
        between_draws: Variance of the metric over draws, what another seed changes; None with one.
        within_draws: Variance of one draw's metric over resampled examples, what another
            evaluation set of this size changes; mean over draws.
    """

    method: str
    mean: float
    interval: tuple[float, float]
    draws: tuple[float, ...]
    between_draws: float | None
    within_draws: float


@dataclass(frozen=True, slots=True)
class Difference:
    """One method against the best, or another reference.

    Attributes:
        method: Name.
        difference: The method's mean minus the reference's; at most 0 against the best.
        interval: 95 % interval of the difference by itself, not adjusted for the other methods.
        p_value: Two-sided, of no difference.
        adjusted_p_value: The same after Holm's correction over all pairs of methods.
        test: `mcnemar` or `bootstrap`.
    """

    method: str
    difference: float
    interval: tuple[float, float]
    p_value: float
    adjusted_p_value: float
    test: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Methods side by side.

    Attributes:
        metric: accuracy, mcc or macro_f1.
        num_draws, num_examples: D and N.
        best: The method with the highest mean, the first of equals.
        scores: A score a method, in the order given.
        differences: A difference to the reference for every other method, in the order given.
    """

    metric: str
    num_draws: int
    num_examples: int
    best: str
    scores: list[MethodScore]
    differences: list[Difference]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)


def compare_methods(
    predicted: IntArray,
    gold: IntArray,
    *,
    methods: Sequence[str],
    metric: str = "accuracy",
    reference: str | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare methods by the classes they predict.

    A bootstrap over draws and over examples, the same ones for all methods, so that what methods
    have in common cancels. Examples are crossed with draws, not nested in them: the variance is
    that of resampled draws plus that of resampled examples less what both count (Cameron, Gelbach
    and Miller 2011, V = V_G + V_H - V_GH; resampling both at once would count it three times, Owen
    2007, "The pigeonhole bootstrap"). Draws are resampled D - 1 at a time, which is unbiased for
    few (Rao and Wu 1988). Intervals and p-values are Student's with this standard error (Efron and
    Tibshirani 1993, chapter 12) and Satterthwaite's degrees of freedom (1946), because three draws
    say little about their own spread. With one draw the intervals are the percentiles over
    examples, and nothing is known about other draws.

    The best is picked after seeing the scores, so Holm's correction runs over all pairs, not over
    the M - 1 that are shown. With one draw the p-value of accuracy is McNemar's exact test.

    Args:
        predicted: Classes by index, -1 where a method gave no answer (which is never right),
            (M, D, N). A method without chance repeats its row.
        gold: Right classes by index, (N,).
        methods: M different names.
        metric: accuracy, mcc or macro_f1, as `evaluate_probabilities` defines them.
        reference: The method that differences are taken to; None: the best.
        seed: Seed of the bootstrap.

    Raises:
        SettingsError: If the metric is unknown.
        ValueError: If shapes do not fit, names repeat or lack the reference, or with fewer than
            two examples.
    """
    if metric not in METRICS:
        raise SettingsError(
            f"Metric {metric!r} cannot be compared over draws. Choose one of {', '.join(METRICS)}."
        )
    _check(predicted, methods)
    if gold.shape != predicted.shape[2:] or gold.min() < 0 or predicted.min() < -1:
        raise ValueError(
            f"{gold.shape} gold labels do not fit predictions {predicted.shape}: (examples,) and "
            "(methods, draws, examples), gold from 0 and predictions from -1."
        )
    correct = predicted == gold
    if metric == "accuracy":
        return compare_correct(correct, methods=methods, reference=reference, seed=seed)
    scores = _score(predicted, gold, metric, seed)
    return _compare(scores, correct, methods=methods, metric=metric, reference=reference)


def compare_correct(
    correct: BoolArray, *, methods: Sequence[str], reference: str | None = None, seed: int = 0
) -> Comparison:
    """Compare methods by accuracy where only right and wrong is known, such as sets of labels.

    The procedure, its sources and its errors are those of `compare_methods`.

    Args:
        correct: Whether each answer is right, (M, D, N).
        methods: M different names.
        reference: The method that differences are taken to; None: the best.
        seed: Seed of the bootstrap.
    """
    _check(correct, methods)
    # One class and no answer: few cells, whatever the classes were.
    answers, gold = np.where(correct, 0, -1), np.zeros(correct.shape[2], np.int64)
    scores = _score(answers, gold, "accuracy", seed)
    return _compare(scores, correct, methods=methods, metric="accuracy", reference=reference)


def _check(answers: NDArray[Any], methods: Sequence[str]) -> None:
    if answers.ndim != 3 or answers.shape[0] != len(methods) or 0 in answers.shape[:2]:
        raise ValueError(
            f"Answers of shape {answers.shape} do not fit {len(methods)} methods; the shape is "
            "(methods, draws, examples), at least one of each."
        )
    if answers.shape[2] < 2:
        raise ValueError(f"{answers.shape[2]} examples cannot be resampled; at least two can.")
    if len(set(methods)) < len(methods):
        raise ValueError(f"Methods must have different names: {', '.join(methods)}.")


@dataclass(frozen=True, slots=True)
class _Scores:
    """Scores of every method and draw, (M, D), and the same on resampled examples, (M, D, B)."""

    observed: FloatArray
    resampled: FloatArray


def _score(predicted: IntArray, gold: IntArray, metric: str, seed: int) -> _Scores:
    """Score by a function of the confusion matrix, as it is and resampled.

    What is resampled are the cells of the joint table of gold and all predictions, the same
    distribution as resampling examples. A sparse product turns weights of cells into each
    method's confusion counts, at a cost that does not grow with C.
    """
    num_methods, num_draws, num_examples = predicted.shape
    num_classes = int(max(gold.max(), predicted.max())) + 1
    # No answer is one more class, the last.
    answers = np.where(predicted < 0, num_classes, predicted).reshape(-1, num_examples)
    columns, counts = np.unique(np.vstack((gold, answers)), axis=1, return_counts=True)
    gold_cells, rows = columns[0], columns[1:]  # (U,), (M * D, U)
    to_gold, *to_predicted = (_indicator(row, num_classes + 1) for row in columns)

    def score(weights: FloatArray) -> FloatArray:  # (B, U) -> (M * D, B)
        gold_counts = _sums(to_gold, weights)
        scored = np.empty((len(rows), len(weights)))
        for k, row in enumerate(rows):
            hits = _sums(to_predicted[k], weights * (row == gold_cells))
            if metric == "accuracy":
                scored[k] = hits.sum(axis=1) / num_examples
                continue
            predicted_counts = _sums(to_predicted[k], weights)
            if metric == "mcc":
                scored[k] = mcc(hits, gold_counts, predicted_counts, num_examples)
            else:  # no answer has no F1 of its own
                scored[k] = macro_f1(*(n[:, :-1] for n in (hits, gold_counts, predicted_counts)))
        return scored

    observed = score(counts[None].astype(np.float64))
    blocks = resample_counts(counts, np.random.default_rng(seed))
    resampled = np.concatenate([score(block.astype(np.float64)) for block in blocks], axis=1)
    return _Scores(
        observed.reshape(num_methods, num_draws), resampled.reshape(num_methods, num_draws, -1)
    )


def _indicator(classes: IntArray, num_classes: int) -> sparse.csr_array[np.float64]:
    """Return a matrix that sums columns of cells into classes, (C, U)."""
    place = (classes, np.arange(len(classes)))
    return sparse.csr_array((np.ones(len(classes)), place), shape=(num_classes, len(classes)))


def _sums(indicator: sparse.csr_array[np.float64], weights: FloatArray) -> FloatArray:
    """Return the sums of weights of cells by class, (B, C) from (C, U) and (B, U)."""
    return np.asarray(indicator @ weights.T).T


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Differences of all pairs of rows: M methods, then a row of zeros to take them by themselves.

    Means over draws, (M + 1,); the same on resampled examples, (M + 1, B); standard errors and
    degrees of freedom of every row minus every other, (M + 1, M + 1).
    """

    means: FloatArray
    resampled: FloatArray
    error: FloatArray
    degrees: FloatArray


def _pairs(scores: _Scores, num_examples: int) -> _Pairs:
    observed = np.pad(scores.observed, ((0, 1), (0, 0)))
    per_draw = np.pad(scores.resampled, ((0, 1), (0, 0), (0, 0)))
    num_draws = observed.shape[1]
    means = per_draw.mean(axis=1)
    of_examples = _variances_of_differences(means)
    if num_draws == 1:
        degrees = np.full(of_examples.shape, num_examples - 1.0)
        return _Pairs(observed.mean(axis=1), means, np.sqrt(of_examples), degrees)
    # Resampling D - 1 of D draws has this variance exactly, so no draws need to be drawn.
    of_draws = _variances_of_differences(observed) / num_draws
    one_draw = sum(_variances_of_differences(per_draw[:, d]) for d in range(num_draws)) / num_draws
    # Both sources count what is peculiar to a draw and an example together; it belongs in once.
    of_both = np.maximum(one_draw - of_examples, 0.0) / (num_draws - 1)
    variance = np.max([of_draws + of_examples - of_both, of_draws, of_examples], axis=0)
    below = of_draws**2 / (num_draws - 1) + of_examples**2 / (num_examples - 1)
    degrees = np.full(below.shape, num_draws - 1.0)
    np.divide(variance**2, below, out=degrees, where=below > 0)
    return _Pairs(observed.mean(axis=1), means, np.sqrt(variance), degrees)


def _variances_of_differences(values: FloatArray) -> FloatArray:
    """Return the variance over columns of every row minus every other, (R, R) from (R, K)."""
    covariance = np.cov(values)
    own = np.diag(covariance)
    variance = own[:, None] + own - 2 * covariance
    # Rounding leaves the variance of a row minus its copy a little beside zero.
    return np.where(variance > 1e-12 * (own[:, None] + own), variance, 0.0)


def _interval(
    pairs: _Pairs, i: int, j: int, *, num_draws: int, lowest: float
) -> tuple[float, float]:
    """Return the 95 % interval of row i minus row j of a metric from `lowest` to 1."""
    if num_draws == 1:
        differences = pairs.resampled[i] - pairs.resampled[j]
        low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)
    alone = j == len(pairs.means) - 1
    bounds = (lowest, 1.0) if alone else (lowest - 1.0, 1.0 - lowest)
    center = pairs.means[i] - pairs.means[j]
    reach = stats.t.ppf((1 + LEVEL) / 2, pairs.degrees[i, j]) * pairs.error[i, j]
    low, high = np.clip([center - reach, center + reach], *bounds)
    return float(low), float(high)


def _p_values(pairs: _Pairs, num_examples: int) -> FloatArray:
    """Return two-sided p-values that methods do not differ, (M, M)."""
    gaps = np.abs(pairs.means[:, None] - pairs.means)[:-1, :-1]
    error = pairs.error[:-1, :-1]
    ratio = np.divide(gaps, error, out=np.where(gaps > 0, np.inf, 0.0), where=error > 0)
    found = 2 * stats.t.sf(ratio, pairs.degrees[:-1, :-1])
    # No test of exchanging two methods' answers on N examples can go lower.
    return np.asarray(np.clip(found, 2.0 ** (1 - num_examples), 1.0))


def _compare(
    scores: _Scores,
    correct: BoolArray,
    *,
    methods: Sequence[str],
    metric: str,
    reference: str | None,
) -> Comparison:
    num_methods, num_draws, num_examples = correct.shape
    pairs = _pairs(scores, num_examples)
    best = int(pairs.means[:-1].argmax())
    base = best if reference is None else list(methods).index(reference)
    if num_draws == 1 and metric == "accuracy":
        test = "mcnemar"
        p_values = np.array([[mcnemar(a, b) for b in correct[:, 0]] for a in correct[:, 0]])
    else:
        test = "bootstrap"
        p_values = _p_values(pairs, num_examples)
    adjusted = np.zeros_like(p_values)
    upper = np.triu_indices(num_methods, 1)
    adjusted[upper] = holm(p_values[upper])
    adjusted += adjusted.T
    between = scores.observed.var(axis=1, ddof=1) if num_draws > 1 else None
    within = scores.resampled.var(axis=2, ddof=1).mean(axis=1)
    interval = partial(
        _interval, pairs, num_draws=num_draws, lowest=-1.0 if metric == "mcc" else 0.0
    )
    return Comparison(
        metric=metric,
        num_draws=num_draws,
        num_examples=num_examples,
        best=methods[best],
        scores=[
            MethodScore(
                method=name,
                mean=float(pairs.means[i]),
                interval=interval(i, num_methods),
                draws=tuple(scores.observed[i].tolist()),
                between_draws=None if between is None else float(between[i]),
                within_draws=float(within[i]),
            )
            for i, name in enumerate(methods)
        ],
        differences=[
            Difference(
                method=name,
                difference=float(pairs.means[i] - pairs.means[base]),
                interval=interval(i, base),
                p_value=float(p_values[i, base]),
                adjusted_p_value=float(adjusted[i, base]),
                test=test,
            )
            for i, name in enumerate(methods)
            if i != base
        ],
    )
