"""Temperature scaling: one number that makes probabilities as sure as they are right.

Probabilities in, probabilities out; the most probable label stays (Guo et al. 2017, "On
Calibration of Modern Neural Networks", section 4.2).

Legend: N examples, L labels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax

from taskfit.stats.arrays import BoolArray, FloatArray, IntArray
from taskfit.stats.metrics import SMALLEST

FEWEST = 20
LOWEST, HIGHEST = 0.05, 1000.0


@dataclass(frozen=True, slots=True)
class TemperatureFit:
    """A fitted temperature.

    Attributes:
        temperature: Divides log-probabilities (of several labels a text: logits); 1 where it could
            not be fitted.
        num_examples: Examples with an answer, from which it was fitted.
        reason: Why it could not be fitted, or None.
    """

    temperature: float
    num_examples: int
    reason: str | None = None


def fit_temperature(probabilities: FloatArray, gold: IntArray) -> TemperatureFit:
    """Fit the temperature of the largest likelihood on held-out examples.

    Args:
        probabilities: Rows sum to 1, or are NaN where there is no answer, (N, L).
        gold: Indices of the right labels, (N,).

    Raises:
        ValueError: If shapes do not fit.
    """
    if probabilities.ndim != 2 or gold.shape != probabilities.shape[:1]:
        raise ValueError(f"{probabilities.shape} probabilities do not fit {gold.shape} labels.")
    answered = ~np.isnan(probabilities).any(axis=1)
    logs, right = _logs(probabilities[answered]), gold[answered]

    def loss(temperature: float) -> float:
        scaled = log_softmax(logs / temperature, axis=1)
        return float(-scaled[np.arange(len(right)), right].mean())

    all_right = bool((logs.argmax(axis=1) == right).all())
    return _fit(loss, len(right), num_kinds=len(np.unique(right)), all_right=all_right)


def fit_multi_label_temperature(probabilities: FloatArray, present: BoolArray) -> TemperatureFit:
    """Fit one temperature for all labels that are judged each by itself.

    Args:
        probabilities: (N, L).
        present: Which labels hold, (N, L).

    Raises:
        ValueError: If shapes do not fit.
    """
    if probabilities.ndim != 2 or probabilities.shape != present.shape:
        raise ValueError(f"{probabilities.shape} probabilities do not fit {present.shape} labels.")
    answered = ~np.isnan(probabilities).any(axis=1)
    # The logit of the answer that is right, label by label.
    margins = np.where(present, 1, -1)[answered] * _logits(probabilities[answered])

    def loss(temperature: float) -> float:
        return float(np.logaddexp(0, -margins / temperature).mean())

    num_kinds, all_right = len(np.unique(present[answered])), bool((margins > 0).all())
    return _fit(loss, len(margins), num_kinds=num_kinds, all_right=all_right)


def apply_temperature(
    probabilities: FloatArray, temperature: float, *, multi_label: bool = False
) -> FloatArray:
    """Return softmax(log p / T), or of several labels a text sigmoid(logit p / T).

    Rows of NaN stay as they are; T = 1 changes nothing at all.

    Args:
        probabilities: (N, L).
        temperature: T, above 0.
        multi_label: Whether a text may have several labels.

    Raises:
        ValueError: If the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"A temperature is above 0; this one is {temperature}.")
    if temperature == 1:
        return probabilities
    if multi_label:
        return np.asarray(expit(_logits(probabilities) / temperature))
    return np.asarray(softmax(_logs(probabilities) / temperature, axis=1))


def _logs(probabilities: FloatArray) -> FloatArray:
    # A vote of zero, as nearest neighbours give it, is a score that can be softened too.
    return np.asarray(np.log(np.maximum(probabilities, SMALLEST)))


def _logits(probabilities: FloatArray) -> FloatArray:
    return np.asarray(logit(np.clip(probabilities, SMALLEST, 1 - SMALLEST)))


def _fit(
    loss: Callable[[float], float], num_examples: int, *, num_kinds: int, all_right: bool
) -> TemperatureFit:
    """Minimize over log T; in 1/T the loss is convex, so it has one valley."""
    reason = None
    if num_examples < FEWEST:
        reason = f"{num_examples} held-out examples have an answer; it takes at least {FEWEST}"
    elif num_kinds < 2:
        reason = f"all {num_examples} held-out examples have the same label"
    elif all_right:
        # The likelihood grows without end as T falls to 0.
        reason = f"all {num_examples} held-out examples are right, which shows no doubt to measure"
    if reason:
        return TemperatureFit(1.0, num_examples, reason)
    bounds = (np.log(LOWEST), np.log(HIGHEST))
    found = minimize_scalar(lambda t: loss(float(np.exp(t))), bounds=bounds, method="bounded")
    temperature = min(float(np.exp(found.x)), 1.0, key=loss)
    return TemperatureFit(temperature, num_examples)
