"""A metric by the number of labels: a power law, and what more labels would bring.

Arrays in, numbers out. A metric is one of `METRICS`, whose best value is 1; its error is 1 less it.

Legend: S numbers of labels, D draws, B resamples, G exponents tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from taskfit.errors import SettingsError
from taskfit.stats.arrays import FloatArray
from taskfit.stats.bootstrap import NUM_RESAMPLES

LEVEL = 0.95
WORTHWHILE = 0.01
HELPS = "more labels would help"
LITTLE = "little to gain"
UNKNOWN = "cannot tell"
# Exponents of published learning curves lie well inside (Hestness et al. 2017: 0.07 to 0.35).
LOWEST_EXPONENT, HIGHEST_EXPONENT = 0.02, 4.0
NUM_EXPONENTS = 60
# The variance over the draws of one size is averaged with that of all as if it had this many
# degrees of freedom more: of two or three draws alone it is nearly arbitrary.
PRIOR_DEGREES = 4
ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Forecast:
    """The expected score of a run with so many labels, the mean over draws.

    Attributes:
        num_labels: Size of the training set.
        score: The metric; None where no curve could be fitted.
        interval: 95 % interval of that mean, not of a single run; None likewise.
    """

    num_labels: float
    score: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Gain:
    """What more labels would bring.

    Attributes:
        n_now, n_then: Numbers of labels.
        gain: Expected score at `n_then` less that at `n_now`; None where no curve could be fitted.
        interval: Its 95 % interval; None likewise.
        verdict: `more labels would help` if the interval lies at or above the gain that is worth
            while, `little to gain` if it lies below, else `cannot tell`, as where there is no
            curve or the scores fall.
        reason: Why the curve is not a fitted power law; None where it is.
    """

    n_now: float
    n_then: float
    gain: float | None
    interval: tuple[float, float] | None
    verdict: str
    reason: str | None


@dataclass(frozen=True, slots=True, eq=False)
class LearningCurve:
    """The curve error(n) = a + b n^-c.

    Attributes:
        sizes: Numbers of labels in rising order, (S,).
        scores: Mean of the metric over draws, (S,).
        errors: Standard errors of these means, (S,); NaN where nothing shows the spread.
        asymptote: a, the error that no number of labels removes; None where no curve was fitted.
        scale: b; 0 for a flat curve.
        exponent: c; None for a flat curve.
        resamples: a, b and c of curves fitted to resampled means, (B, 3); B is 0 without a curve.
        rising: Whether the scores rise with the number of labels beyond chance.
        falling: Whether they fall beyond chance.
        reason: Why the curve is flat or missing; None where it is a fitted power law.
    """

    sizes: FloatArray
    scores: FloatArray
    errors: FloatArray
    asymptote: float | None
    scale: float | None
    exponent: float | None
    resamples: FloatArray = field(repr=False)
    rising: bool
    falling: bool
    reason: str | None

    def forecast(self, num_labels: Sequence[float]) -> list[Forecast]:
        """Return the expected score at some numbers of labels, with 95 % percentile intervals.

        The interval (Efron and Tibshirani 1993, chapter 13) holds if the law does; the further
        beyond the largest size, the less the data can say whether it does.

        Args:
            num_labels: Sizes of training sets, above 0.

        Raises:
            SettingsError: If a number of labels is not above 0.
        """
        if any(n <= 0 for n in num_labels):
            raise SettingsError(f"Numbers of labels are above 0; {list(num_labels)} are not.")
        if self.asymptote is None:
            return [Forecast(n, None, None) for n in num_labels]
        return [Forecast(n, *_with_interval(self._scores(n))) for n in num_labels]

    def gain(self, n_now: float, n_then: float, *, worthwhile: float = WORTHWHILE) -> Gain:
        """Return what more labels would bring, with a 95 % interval and a verdict in words.

        A fitted power law always rises, so a gain above 0 is no evidence. The verdict asks for a
        gain that is worth while: if the whole interval reaches it, `more labels would help`; if
        none of it does, `little to gain`; otherwise `cannot tell`. Scores that fall beyond chance
        are no learning curve: `cannot tell`. The interval is a percentile interval as in
        `forecast`; for curves that truly fall to an error of 0 it covers less often than that
        of the score (74 to 93 % in simulations, elsewhere 87 to 100 %).

        Args:
            n_now: Number of labels there are.
            n_then: Number of labels there might be.
            worthwhile: The smallest gain worth the labels, in the metric's unit.

        Raises:
            SettingsError: Unless 0 < n_now < n_then and the worthwhile gain is above 0.
        """
        if not (0 < n_now < n_then and worthwhile > 0):
            raise SettingsError(
                f"From {n_now:g} to {n_then:g} labels for a gain of {worthwhile:g}: give a number "
                "of labels above 0, a larger one, and a gain above 0."
            )
        if self.asymptote is None:
            return Gain(n_now, n_then, None, None, UNKNOWN, self.reason)
        gain, (low, high) = _with_interval(self._scores(n_then) - self._scores(n_now))
        if self.falling or low < worthwhile <= high:
            verdict = UNKNOWN
        else:
            verdict = HELPS if low >= worthwhile else LITTLE
        return Gain(n_now, n_then, gain, (low, high), verdict, self.reason)

    def _scores(self, n: float) -> FloatArray:
        """Return the score of the curve, then of the resampled ones, (1 + B,)."""
        own = (self.asymptote or 0.0, self.scale or 0.0, self.exponent or 0.0)
        a, b, c = np.vstack((own, self.resamples)).T
        return np.asarray(1 - a - b * n**-c)


def fit_learning_curve(
    sizes: Sequence[float], scores: FloatArray, *, seed: int = 0
) -> LearningCurve:
    """Fit the error as a power law of the number of labels, a + b n^-c with a, b >= 0 and c > 0.

    The law is that of Cortes et al. (1993) and Hestness et al. (2017); means over draws are
    weighted by their precision as by Figueroa et al. (2012). For a given c the best a and b are
    linear least squares in closed form, so only c is searched (variable projection, Golub and
    Pereyra 1973), over its whole range: no start is needed and no local optimum can be returned.

    Uncertainty is a parametric bootstrap: means over draws vary by their standard error with
    Student's tails, and every resample is fitted anew. (Resampling two or three draws themselves
    gives intervals that cover too rarely.) The variance of each size is drawn towards that of all
    (Smyth 2004, moderated variances) and raised where the curve misses the means
    by more than it explains (Birge 1932). With one draw a size, the misses are all there is.
    Draws of different sizes count as independent.

    There is no curve with fewer than three sizes, nor with three where nothing shows the spread.
    Scores whose trend over log n is not above 0 in at least 95 % of the resamples get a flat
    curve at their mean; both are said in `reason`.

    Args:
        sizes: Different numbers of labels, above 0, (S,).
        scores: Metric at most 1, NaN where a draw is missing, at least one a size, (S, D).
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If shapes do not fit, a size repeats or is not above 0, a size has no score,
            or a score is above 1 or infinite.
    """
    n, errors = _checked(sizes, scores)
    means = np.nanmean(errors, axis=1)
    spread, degrees = _spread(errors)
    reason = _too_few(len(n), degrees)
    if reason:
        known = np.sqrt(spread) if degrees else np.full(len(n), np.nan)
        none = np.empty((0, 3))
        return LearningCurve(n, 1 - means, known, None, None, None, none, False, False, reason)
    weights = 1 / spread
    a, b, c = (float(value) for value in _fit(n, means[None], weights)[0])
    if len(n) > 3:
        excess = float(weights @ (means - a - b * n**-c) ** 2) / (len(n) - 3)
        spread = spread * (max(excess, 1.0) if degrees else excess)
    drawn = _resampled(means, spread, degrees or len(n) - 3, np.random.default_rng(seed))
    slopes = _slopes(n, drawn, weights)  # of the error
    rising = bool(np.quantile(slopes, LEVEL) < -ROUNDING)
    falling = bool(np.quantile(slopes, 1 - LEVEL) > ROUNDING)
    return LearningCurve(
        sizes=n,
        scores=1 - means,
        errors=np.sqrt(spread),
        asymptote=a if rising else float(np.average(means, weights=weights)),
        scale=b if rising else 0.0,
        exponent=c if rising else None,
        resamples=_fit(n, drawn, weights),
        rising=rising,
        falling=falling,
        reason=None if rising else _not_rising(n, 1 - means, falling=falling),
    )


def _resampled(
    means: FloatArray, spread: FloatArray, degrees: int, generator: np.random.Generator
) -> FloatArray:
    """Return means with noise of these variances, with Student's tails, (B, S)."""
    tails = np.sqrt(degrees / generator.chisquare(degrees, (NUM_RESAMPLES, 1)))
    noise = generator.standard_normal((NUM_RESAMPLES, len(means))) * tails * np.sqrt(spread)
    return np.clip(means + noise, 0.0, max(1.0, means.max()))


def _checked(sizes: Sequence[float], scores: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return sizes in rising order and their errors, (S,) and (S, D)."""
    n = np.asarray(sizes, np.float64)
    if scores.ndim != 2 or scores.shape[0] != len(n) or not scores.size:
        raise ValueError(
            f"Scores of shape {scores.shape} do not fit {len(n)} sizes; they are (sizes, draws)."
        )
    if (n <= 0).any() or len(np.unique(n)) < len(n):
        raise ValueError(f"Sizes are above 0 and different; {n.tolist()} are not.")
    if np.isnan(scores).all(axis=1).any():
        raise ValueError("Every size needs the score of at least one draw.")
    if (scores > 1).any() or np.isinf(scores).any():
        raise ValueError("Scores are finite and at most 1, the value of a method without error.")
    order = np.argsort(n)
    return n[order], 1 - scores[order]


def _spread(errors: FloatArray) -> tuple[FloatArray, int]:
    """Return the variance of the mean of each size, (S,), and its degrees of freedom.

    Ones and 0 where no size has two different draws: then only ratios of the variances are known.
    """
    counts = (~np.isnan(errors)).sum(axis=1)
    misses = errors - np.nanmean(errors, axis=1, keepdims=True)
    squares = np.nansum(misses**2, axis=1)
    degrees = int((counts - 1).sum())
    if not squares.sum() > 1e-20:
        return 1 / counts, 0
    pooled = squares.sum() / degrees
    moderated = (PRIOR_DEGREES * pooled + squares) / (PRIOR_DEGREES + counts - 1)
    return moderated / counts, degrees


def _too_few(num_sizes: int, degrees: int) -> str | None:
    if num_sizes < 3:
        return (
            f"A curve of three parameters needs at least 3 numbers of labels; there are "
            f"{num_sizes}."
        )
    if num_sizes == 3 and not degrees:
        return (
            "3 numbers of labels without spread over draws fit many curves exactly and show no "
            "chance; at least 4 numbers of labels or 2 draws are needed."
        )
    return None


def _not_rising(n: FloatArray, scores: FloatArray, *, falling: bool) -> str:
    ends = f"from {scores[0]:.3f} at {n[0]:g} labels to {scores[-1]:.3f} at {n[-1]:g}"
    if falling:
        return f"The score falls beyond chance, {ends}; more labels are not what is missing."
    return f"The score does not rise beyond chance, {ends}; the curve is flat at its mean."


def _slopes(n: FloatArray, values: FloatArray, weights: FloatArray) -> FloatArray:
    """Return weighted regression slopes over log n, up to a positive factor; (B,) from (B, S)."""
    weights = weights / weights.sum()
    return np.asarray(values @ (weights * (np.log(n) - weights @ np.log(n))))


def _with_interval(values: FloatArray) -> tuple[float, tuple[float, float]]:
    """Return the first value and the percentile interval of the others, widened to hold it."""
    low, high = np.quantile(values[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    point = float(values[0])
    return point, (min(float(low), point), max(float(high), point))


def _fit(n: FloatArray, errors: FloatArray, weights: FloatArray) -> FloatArray:
    """Return a, b and c of every row's best curve, (B, 3) from (S,), (B, S) and (S,)."""
    unit = np.exp(np.log(n).mean())  # numbers of labels in this unit keep b and n^-c near 1
    rows = np.arange(len(errors))
    tried = np.broadcast_to(
        np.geomspace(LOWEST_EXPONENT, HIGHEST_EXPONENT, NUM_EXPONENTS), (len(rows), NUM_EXPONENTS)
    )
    # Each round searches between the neighbours of the last one's best, ten times as finely.
    for _ in range(4):
        a, b, loss = _linear_fit((n / unit) ** -tried[..., None], errors, weights)
        best = loss.argmin(axis=1)
        found = np.stack((a[rows, best], b[rows, best], tried[rows, best]), axis=1)
        low = tried[rows, np.maximum(best - 1, 0)]
        high = tried[rows, np.minimum(best + 1, tried.shape[1] - 1)]
        tried = np.linspace(low, high, 21, axis=1)
    found[:, 1] *= unit ** found[:, 2]
    return found


def _linear_fit(
    powers: FloatArray, errors: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return a, b >= 0 and the weighted squared misses of error = a + b power, each (B, G).

    Args:
        powers: n^-c, (B, G, S).
        errors: (B, S).
        weights: (S,).
    """
    weights = weights / weights.sum()
    mean_power = powers @ weights  # (B, G)
    mean_error = (errors @ weights)[:, None]  # (B, 1)
    square = powers**2 @ weights
    product = np.einsum("bgs,bs->bg", powers, errors * weights)
    b = (product - mean_power * mean_error) / (square - mean_power**2)
    a = mean_error - b * mean_power
    # Beyond a bound the best lies on it, as the misses are convex in a and b.
    a, b = np.where(a < 0, 0.0, a), np.where(a < 0, product / square, b)
    a, b = np.where(b < 0, mean_error, a), np.maximum(b, 0.0)
    # The squares of the errors alone are the same for every exponent.
    loss = a**2 - 2 * a * mean_error - 2 * b * product + 2 * a * b * mean_power + b**2 * square
    return a, b, loss
