"""Were forecasts of a learning curve right? The largest sizes, forecast from the smaller ones.

Legend: S numbers of labels, D draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from taskfit.stats.arrays import FloatArray
from taskfit.stats.learning_curve import LEVEL, ROUNDING, fit_learning_curve


@dataclass(frozen=True, slots=True)
class BackTest:
    """A forecast of a size that was measured but held out from the fit.

    Attributes:
        fitted_up_to: Largest number of labels that the curve was fitted to.
        num_labels: The held-out size.
        forecast: Score forecast for it.
        interval: 95 % interval for the mean of its draws, their own noise included.
        score: Mean over its draws.
        covered: Whether the score lies in the interval.
    """

    fitted_up_to: float
    num_labels: float
    forecast: float
    interval: tuple[float, float]
    score: float
    covered: bool


def back_test(sizes: Sequence[float], scores: FloatArray, *, seed: int = 0) -> list[BackTest]:
    """Forecast the largest sizes from the smaller ones and compare with what was measured.

    Every curve of the k smallest sizes, k from 3, forecasts all sizes above them. The forecast is
    of an expected score, so its interval is widened by the noise of the measured mean (in
    quadrature, at the standard error of the largest size fitted).

    Args:
        sizes: As in `fit_learning_curve`, (S,).
        scores: Likewise, (S, D).
        seed: Seed of the bootstrap.

    Returns:
        A case for each curve and held-out size; none where no curve could be fitted.

    Raises:
        ValueError: As `fit_learning_curve`.
    """
    n = np.asarray(sizes, np.float64)
    order = np.argsort(n)
    n, scores = n[order], scores[order]
    means, counts = np.nanmean(scores, axis=1), (~np.isnan(scores)).sum(axis=1)
    cases = []
    for kept in range(3, len(n)):
        curve = fit_learning_curve(n[:kept].tolist(), scores[:kept], seed=seed)
        for i, forecast in enumerate(curve.forecast(n[kept:].tolist()), start=kept):
            if forecast.score is None or forecast.interval is None:
                continue
            noise = float(curve.errors[-1] * np.sqrt(counts[kept - 1] / counts[i]))
            reach = float(stats.norm.ppf((1 + LEVEL) / 2)) * noise
            low = forecast.score - float(np.hypot(forecast.score - forecast.interval[0], reach))
            high = forecast.score + float(np.hypot(forecast.interval[1] - forecast.score, reach))
            score = float(means[i])
            covered = low - ROUNDING <= score <= high + ROUNDING
            last, size = float(n[kept - 1]), float(n[i])
            cases.append(BackTest(last, size, forecast.score, (low, high), score, covered))
    return cases
