"""Answer only where the method is sure: risk by coverage, and a threshold that keeps a precision.

Arrays in, numbers out. Confidence is any score of a method's answer in [0, 1], larger where it is
surer; NaN where there is no answer, which counts as abstained at every threshold.

Legend: N examples, A answered examples, K different confidences.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from scipy import stats

from taskfit.errors import SettingsError
from taskfit.stats.arrays import BoolArray, FloatArray, IntArray
from taskfit.stats.metrics import binomial_interval

LEVEL = 0.95
# The sequence of thresholds steps down by this share of the answered examples.
NUM_STEPS = 100
# It starts where this is the chance to pass, if a quarter of the errors allowed are made.
START_POWER = 0.8


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Risk of the surest answers, by how many are given.

    Attributes:
        thresholds: The different confidences from high to low; answered is whatever reaches the
            threshold, (K,).
        coverage: Share of all N examples answered, (K,).
        risk: Share of wrong answers among the answered, (K,).
        aurc: Area under the curve, the mean risk over coverages; None without an answer.
    """

    thresholds: FloatArray
    coverage: FloatArray
    risk: FloatArray
    aurc: float | None


@dataclass(frozen=True, slots=True)
class AbstentionThreshold:
    """The lowest threshold that keeps a requested precision, as held-out examples show.

    Attributes:
        wanted_precision: What was asked for.
        confidence_level: Chance that the promise holds.
        threshold: Answer where confidence reaches it; None where no threshold can be promised.
        precision: Share of right answers among the answered held-out examples; None likewise.
        precision_lower_bound: One-sided lower bound at the confidence level; None likewise.
        coverage: Share of examples answered; 0 where there is no threshold.
        coverage_interval: 95 % interval of the coverage; None where there is no threshold.
        num_answered: Held-out examples that are answered.
        reason: Why there is no threshold; None where there is one.
    """

    wanted_precision: float
    confidence_level: float
    threshold: float | None = None
    precision: float | None = None
    precision_lower_bound: float | None = None
    coverage: float = 0.0
    coverage_interval: tuple[float, float] | None = None
    num_answered: int = 0
    reason: str | None = None


def risk_coverage(confidence: FloatArray, correct: BoolArray) -> RiskCoverage:
    """Return the risk-coverage curve and the area under it.

    The curve is El-Yaniv and Wiener's (2010); the area is the mean over k = 1..A of the risk of
    the k surest answers (Geifman, Uziel and El-Yaniv 2019, AURC). Equally sure answers
    are given together: between two points of the curve the risk is its mean over their orders, so
    that the order of the examples changes nothing. Examples without an answer bound the coverage
    and are in no mean.

    Args:
        confidence: In [0, 1], NaN where there is no answer, (N,).
        correct: Whether the answer is right; not looked at where there is none, (N,).

    Raises:
        ValueError: If there is no example, shapes do not fit, or a confidence is out of range.
    """
    thresholds, answered, wrong = _steps(confidence, correct)
    ranks = np.arange(1, answered.max(initial=0) + 1)  # (A,)
    # Within a group of equals, errors come evenly.
    errors = np.interp(ranks, np.append(0, answered), np.append(0, wrong))
    return RiskCoverage(
        thresholds=thresholds,
        coverage=answered / len(confidence),
        risk=wrong / answered,
        aurc=float((errors / ranks).mean()) if len(ranks) else None,
    )


def threshold_for_precision(
    confidence: FloatArray, correct: BoolArray, *, precision: float, confidence_level: float = LEVEL
) -> AbstentionThreshold:
    """Return the lowest threshold at which precision is at least the requested, with a guarantee.

    Thresholds are tested from high to low, each by Clopper and Pearson's lower bound (1934) on
    the precision of what it answers; the last one before the first that fails is chosen. A fixed
    sequence needs no correction for many tests, so with probability `confidence_level` over
    held-out examples the chosen threshold keeps the precision (Angelopoulos et al. 2021, "Learn
    then Test", fixed sequence testing). The sequence depends on the confidences only, never on
    `correct`: it steps down by hundredths of the answered, from where a good method would pass.
    Given the confidences it holds however they relate to being right, as the binomial bounds the
    tail of unequal chances (Hoeffding 1956). Held-out examples must not have been used to train,
    choose or calibrate the method.

    Args:
        confidence: Of held-out examples, in [0, 1], NaN where there is no answer, (N,).
        correct: Whether the answer is right; not looked at where there is none, (N,).
        precision: Requested share of right answers among the answered, in (0, 1).
        confidence_level: Requested chance that the promise holds, in (0, 1).

    Raises:
        SettingsError: If precision or confidence level is not between 0 and 1.
        ValueError: If there is no example, shapes do not fit, or a confidence is out of range.
    """
    _check_share("precision", precision)
    _check_share("confidence level", confidence_level)
    thresholds, answered, wrong = _steps(confidence, correct)
    refused = AbstentionThreshold(precision, confidence_level)
    num_answered = int(answered.max(initial=0))
    fewest = _fewest(precision, confidence_level)
    if num_answered < fewest:
        reason = (
            f"{num_answered} of {len(confidence)} held-out examples are answered; to show this "
            f"precision takes at least {fewest}, even without a mistake."
        )
        return dataclasses.replace(refused, reason=reason)
    right = answered - wrong
    bounds = lower_bound(right, answered, confidence_level=confidence_level)
    tested = _sequence(answered, _start(fewest, num_answered, precision, confidence_level))
    passed = bounds[tested] >= precision
    if not passed[0]:
        first = tested[0]
        reason = (
            f"Of the {answered[first]} surest answers {right[first]} are right, a precision "
            f"of at least {bounds[first]:.3f} at {confidence_level:g} confidence."
        )
        return dataclasses.replace(refused, reason=reason)
    last = int(tested[len(passed) - 1 if passed.all() else passed.argmin() - 1])
    count = int(answered[last])
    return dataclasses.replace(
        refused,
        threshold=_between(thresholds, last),
        precision=float(right[last] / count),
        precision_lower_bound=float(bounds[last]),
        coverage=count / len(confidence),
        coverage_interval=binomial_interval(count, len(confidence), method="exact"),
        num_answered=count,
    )


def lower_bound(successes: IntArray, trials: IntArray, *, confidence_level: float) -> FloatArray:
    """Return Clopper and Pearson's one-sided lower bounds of binomial shares.

    The bound is the 1 - level quantile of Beta(k, n - k + 1), 0 for k = 0 (Clopper and Pearson
    1934; Brown, Cai and DasGupta 2001, section 4.2.1).

    Args:
        successes: k, (K,).
        trials: n, (K,).
        confidence_level: Chance that the bound is below the share.
    """
    k = np.asarray(successes, np.float64)
    bounds = stats.beta.ppf(1 - confidence_level, np.maximum(k, 1), trials - k + 1)
    return np.where(k > 0, bounds, 0.0)


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise SettingsError(
            f"The requested {name} is {value:g}. It lies between 0 and 1 and is neither; 0.95 is a "
            "usual value."
        )


def _steps(confidence: FloatArray, correct: BoolArray) -> tuple[FloatArray, IntArray, IntArray]:
    """Return different confidences from high to low, answers and mistakes down to each, (K,)."""
    if confidence.shape != correct.shape or confidence.ndim != 1 or not len(confidence):
        raise ValueError(
            f"{confidence.shape} confidences do not fit {correct.shape} answers; both are of "
            "shape (examples,), at least one."
        )
    answered = ~np.isnan(confidence)
    given = confidence[answered]
    if ((given < 0) | (given > 1)).any():
        raise ValueError("Confidences lie between 0 and 1, or are NaN where there is no answer.")
    values, group = np.unique(given, return_inverse=True)
    counts = np.bincount(group, minlength=len(values))[::-1]
    wrong = np.bincount(group[~correct[answered]], minlength=len(values))[::-1]
    return values[::-1], counts.cumsum(), wrong.cumsum()


def _fewest(precision: float, confidence_level: float) -> int:
    """Return how many right answers without a mistake reach the precision."""
    n = int(np.ceil(np.log(1 - confidence_level) / np.log(precision)))
    # The logarithms' rounding may miss by one.
    ones = np.array([n, n + 1])
    reached = lower_bound(ones, ones, confidence_level=confidence_level) >= precision
    return int(ones[reached.argmax()])


def _start(fewest: int, num_answered: int, precision: float, confidence_level: float) -> int:
    """Return how many answers the first test takes.

    One mistake among the fewest would end the sequence before it began. So it starts at the
    first count where a method that makes a quarter of the errors allowed passes with chance
    `START_POWER`, or where its chance is best.
    """
    counts = np.arange(fewest, num_answered + 1)
    # The most mistakes at which n answers pass: the bound reaches the precision where the
    # binomial tail P(at most m mistakes; n, 1 - precision) is at most 1 - level.
    allowed = stats.binom.ppf(1 - confidence_level, counts, 1 - precision)
    passes = stats.binom.cdf(allowed, counts, 1 - precision) <= 1 - confidence_level
    allowed = np.where(passes, allowed, allowed - 1)
    power = np.asarray(stats.binom.cdf(allowed, counts, (1 - precision) / 4))
    reached = power >= START_POWER
    return int(counts[reached.argmax() if reached.any() else power.argmax()])


def _sequence(answered: IntArray, start: int) -> IntArray:
    """Return the places of the thresholds to test, from high to low."""
    steps = np.ceil(answered[-1] * np.arange(1, NUM_STEPS + 1) / NUM_STEPS).astype(int)
    return np.unique(np.searchsorted(answered, np.append(start, steps[steps > start])))


def _between(confidence: FloatArray, place: int) -> float:
    """Return the lowest threshold that answers the same held-out examples as the one at `place`.

    What lies strictly above the next confidence is a fresh sample of what a threshold just above
    it answers; the lowest of them is not, as it was picked for being the lowest.
    """
    if place == len(confidence) - 1:
        return 0.0
    return float(np.nextafter(confidence[place + 1], 1.0))
