"""Several methods on the same examples over several draws: scores, differences, what is chance.

Arrays in, numbers out. A draw is one run of a method with its own seed and training examples;
draw d is the same draw for every method, and all are measured on the same examples.

Legend: M methods, D draws, N examples, C classes, U distinct columns of answers, B resamples.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from taskfit.errors import SettingsError
from taskfit.stats.arrays import BoolArray, FloatArray, IntArray
from taskfit.stats.metrics import METRICS
from taskfit.stats.paired import holm, mcnemar, resampled_scores

LEVEL = 0.95
ALPHA = 0.05


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

    @property
    def significant(self) -> bool:
        """Return whether the two are significantly different, among all pairs of methods."""
        return self.adjusted_p_value < ALPHA

    @property
    def worse(self) -> bool:
        """Return whether the method is significantly worse than the reference."""
        return self.significant and self.difference < 0

    @property
    def worse_alone(self) -> bool:
        """Return whether it would be if this were the only comparison, but is not among all."""
        return self.interval[1] < 0 and not self.significant

    def __neg__(self) -> "Difference":
        low, high = self.interval
        return dataclasses.replace(self, difference=-self.difference, interval=(-high, -low))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Methods side by side.

    Attributes:
        metric: accuracy, mcc or macro_f1.
        num_draws, num_examples: D and N.
        best: The method with the highest mean, the first of equals.
        reference: The method that differences are taken to, at first the best.
        scores: A score a method, in the order given.
        differences: A difference to the reference for every other method, in the order given.
        differences_to: The same of every reference.
    """

    metric: str
    num_draws: int
    num_examples: int
    best: str
    reference: str
    scores: list[MethodScore]
    differences: list[Difference]
    differences_to: dict[str, list[Difference]] = field(repr=False)

    def relative_to(self, reference: str) -> "Comparison":
        """Return the same with differences to another method; ValueError if it is unknown."""
        if reference not in self.differences_to:
            raise ValueError(f"{reference!r} is not in {', '.join(self.differences_to)}.")
        differences = self.differences_to[reference]
        return dataclasses.replace(self, reference=reference, differences=differences)


def compare_methods(
    predicted: IntArray,
    gold: IntArray,
    *,
    methods: Sequence[str],
    metric: str = "accuracy",
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
        seed: Seed of the bootstrap.

    Raises:
        SettingsError: If the metric is unknown.
        ValueError: If shapes do not fit, names repeat, or with fewer than two examples.
    """
    if metric not in METRICS:
        raise SettingsError(
            f"Metric {metric!r} cannot be compared over draws. Choose one of {', '.join(METRICS)}."
        )
    if predicted.ndim != 3 or len(predicted) != len(methods) or 0 in predicted.shape[:2]:
        raise ValueError(
            f"Answers of shape {predicted.shape} do not fit {len(methods)} methods; the shape is "
            "(methods, draws, examples), at least one of each."
        )
    if gold.shape != predicted.shape[2:] or gold.min() < 0 or predicted.min() < -1:
        raise ValueError(
            f"{gold.shape} gold labels do not fit predictions {predicted.shape}: (examples,) and "
            "(methods, draws, examples), gold from 0 and predictions from -1."
        )
    if len(gold) < 2:
        raise ValueError(f"{len(gold)} examples cannot be resampled; at least two can.")
    if len(set(methods)) < len(methods):
        raise ValueError(f"Methods must have different names: {', '.join(methods)}.")
    correct = predicted == gold
    if metric == "accuracy":  # one class and no answer: few cells, whatever the classes were
        predicted, gold = np.where(correct, 0, -1), np.zeros_like(gold)
    return _compare(
        *resampled_scores(predicted, gold, metric, seed), correct, methods=methods, metric=metric
    )


def _compare(
    observed: FloatArray,
    resampled: FloatArray,
    correct: BoolArray,
    *,
    methods: Sequence[str],
    metric: str,
) -> Comparison:
    num_methods, num_draws, num_examples = correct.shape
    between = observed.var(axis=1, ddof=1).tolist() if num_draws > 1 else [None] * num_methods
    within = resampled.var(axis=2, ddof=1).mean(axis=1)
    # A last row of zeros, to take methods by themselves.
    observed, resampled = (
        np.pad(x, [(0, 1)] + [(0, 0)] * (x.ndim - 1)) for x in (observed, resampled)
    )
    means, error, degrees = observed.mean(axis=1), *_errors(observed, resampled, num_examples)
    lowest = -1.0 if metric == "mcc" else 0.0
    low, high = (
        _percentiles(resampled[:, 0])
        if num_draws == 1
        else _student_intervals(means, error, degrees, lowest)
    )
    if num_draws == 1 and metric == "accuracy":
        test = "mcnemar"
        p_values = np.array([[mcnemar(a, b) for b in correct[:, 0]] for a in correct[:, 0]])
    else:
        test = "bootstrap"
        p_values = _p_values(means, error, degrees, num_examples)
    adjusted = _adjusted(p_values)

    def difference(i: int, base: int) -> Difference:
        interval = float(low[i, base]), float(high[i, base])
        p_value, of_all = float(p_values[i, base]), float(adjusted[i, base])
        return Difference(
            methods[i], float(means[i] - means[base]), interval, p_value, of_all, test
        )

    best = methods[int(means[:-1].argmax())]
    differences_to = {
        name: [difference(i, base) for i in range(num_methods) if i != base]
        for base, name in enumerate(methods)
    }
    return Comparison(
        metric=metric,
        num_draws=num_draws,
        num_examples=num_examples,
        best=best,
        reference=best,
        scores=[
            MethodScore(
                method=name,
                mean=float(means[i]),
                interval=(float(low[i, -1]), float(high[i, -1])),
                draws=tuple(observed[i].tolist()),
                between_draws=between[i],
                within_draws=float(within[i]),
            )
            for i, name in enumerate(methods)
        ],
        differences=differences_to[best],
        differences_to=differences_to,
    )


def _errors(
    observed: FloatArray, resampled: FloatArray, num_examples: int
) -> tuple[FloatArray, FloatArray]:
    """Return standard errors and degrees of freedom of every row minus every other, (R, R)."""
    num_draws = observed.shape[1]
    of_examples = _variances_of_differences(resampled.mean(axis=1))
    if num_draws == 1:
        return np.sqrt(of_examples), np.full(of_examples.shape, num_examples - 1.0)
    # Resampling D - 1 of D draws has this variance exactly, so no draws need to be drawn.
    of_draws = _variances_of_differences(observed) / num_draws
    one_draw = sum(map(_variances_of_differences, resampled.swapaxes(0, 1))) / num_draws
    # Both sources count what is peculiar to a draw and an example together; it belongs in once.
    of_both = np.maximum(one_draw - of_examples, 0.0) / (num_draws - 1)
    variance = np.max([of_draws + of_examples - of_both, of_draws, of_examples], axis=0)
    below = of_draws**2 / (num_draws - 1) + of_examples**2 / (num_examples - 1)
    degrees = np.full(below.shape, num_draws - 1.0)
    np.divide(variance**2, below, out=degrees, where=below > 0)
    return np.sqrt(variance), degrees


def _variances_of_differences(values: FloatArray) -> FloatArray:
    """Return the variance over columns of every row minus every other, (R, R) from (R, K)."""
    covariance = np.cov(values)
    own = np.diag(covariance)
    variance = own[:, None] + own - 2 * covariance
    # Rounding leaves the variance of a row minus its copy a little beside zero.
    return np.where(variance > 1e-12 * (own[:, None] + own), variance, 0.0)


def _percentiles(resampled: FloatArray) -> FloatArray:
    """Return the ends of 95 % intervals of every row minus every other, (2, R, R) from (R, B)."""
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return np.stack([np.quantile(row - resampled, ends, axis=1) for row in resampled], axis=1)


def _student_intervals(
    means: FloatArray, error: FloatArray, degrees: FloatArray, lowest: float
) -> FloatArray:
    """Return the same from standard errors, of a metric from `lowest` to 1."""
    center = means[:, None] - means
    reach = stats.t.ppf((1 + LEVEL) / 2, degrees) * error
    bounds = np.full((2, *center.shape), [[[lowest - 1.0]], [[1.0 - lowest]]])
    bounds[:, :, -1] = [[lowest], [1.0]]  # less the row of zeros: the metric itself
    return np.asarray(np.clip([center - reach, center + reach], *bounds))


def _p_values(
    means: FloatArray, error: FloatArray, degrees: FloatArray, num_examples: int
) -> FloatArray:
    """Return two-sided p-values that methods do not differ, (M, M)."""
    gaps, error = np.abs(means[:, None] - means)[:-1, :-1], error[:-1, :-1]
    ratio = np.divide(gaps, error, out=np.where(gaps > 0, np.inf, 0.0), where=error > 0)
    found = 2 * stats.t.sf(ratio, degrees[:-1, :-1])
    # No test of exchanging two methods' answers on N examples can go lower.
    return np.asarray(np.clip(found, 2.0 ** (1 - num_examples), 1.0))


def _adjusted(p_values: FloatArray) -> FloatArray:
    """Return p-values after Holm's correction over all pairs, (M, M)."""
    adjusted, upper = np.zeros_like(p_values), np.triu_indices(len(p_values), 1)
    adjusted[upper] = holm(p_values[upper])
    return adjusted + adjusted.T


def difference_interval(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> tuple[float, float]:
    """Return the interval of the difference of two independent numbers, from their own.

    The method of variance estimates recovery (Zou and Donner 2008, "Construction of confidence
    limits about effect measures", equation 4).

    Args:
        first: The value, the low and the high end of its interval.
        second: Likewise.
    """
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    low = a - b - float(np.hypot(a - a_low, b_high - b))
    high = a - b + float(np.hypot(a_high - a, b - b_low))
    return low, high
