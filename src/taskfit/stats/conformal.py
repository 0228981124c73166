"""Prediction sets that hold the right label with a chosen probability, by split conformal.

The score of an example is 1 - p(right label) (least ambiguous sets: Sadinle, Lei and Wasserman
2019). Of n held-out examples the k-th smallest score, k = ceil((n + 1) c), is the threshold: a
label is in the set if its score is not above it. For a new example that is exchangeable with the
held-out ones, the chance that its label is in is at least c, and at most c + 1 / (n + 1) before
the most probable label is put into an empty set (Angelopoulos and Bates 2021, theorem D.1).
The chance is over held-out and new examples together; it says nothing about other data.

Legend: N examples, L labels, n held-out examples.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from taskfit.errors import SettingsError
from taskfit.stats.arrays import BoolArray, FloatArray, IntArray
from taskfit.stats.metrics import binomial_interval

LEVELS = (0.8, 0.9, 0.95)


@dataclass(frozen=True, slots=True)
class AchievedCoverage:
    """How often prediction sets held the right label on labelled examples.

    Attributes:
        coverage: What was asked for.
        achieved: Share of sets with the right label.
        interval: Its 95 % interval (Wilson 1927), over the evaluated examples alone.
        mean_size: Mean number of labels in a set.
        single: Share of sets of one label.
    """

    coverage: float
    achieved: float
    interval: tuple[float, float]
    mean_size: float
    single: float


def conformal_scores(probabilities: FloatArray, gold: IntArray) -> FloatArray:
    """Return 1 - p(right label) of each example, (N,); infinite where there is no answer.

    Args:
        probabilities: (N, L), rows of NaN where there is no answer.
        gold: Indices of the right labels, (N,).
    """
    right = probabilities[np.arange(len(gold)), gold]
    return np.where(np.isnan(right), np.inf, 1 - right)


def threshold(scores: FloatArray, coverage: float) -> float:
    """Return the score up to which labels are in the set.

    Args:
        scores: Of held-out examples, (n,).
        coverage: Requested chance that the right label is in, between 0 and 1.

    Raises:
        SettingsError: If the coverage is not between 0 and 1, or n is too small for it.
    """
    place = _place(len(scores), check_coverage(coverage))
    if place > len(scores):
        raise SettingsError(
            f"A coverage of {coverage:g} takes at least {num_needed(coverage)} held-out examples; "
            f"there are {len(scores)}.{_at_most(len(scores))}"
        )
    return float(np.sort(scores)[place - 1])


def class_thresholds(
    scores: FloatArray, gold: IntArray, coverage: float, *, num_labels: int
) -> FloatArray:
    """Return a threshold for each label, (L,), so that the coverage holds for every label.

    Also called Mondrian conformal prediction (Vovk 2013; Sadinle et al. 2019, section 2.2).

    Args:
        scores: Of held-out examples, (n,).
        gold: Indices of their labels, (n,).
        coverage: Requested chance, given the right label, that it is in.
        num_labels: L.

    Raises:
        SettingsError: As `threshold`, for the label with the fewest examples.
    """
    check_coverage(coverage)
    counts = np.bincount(gold, minlength=num_labels)
    fewest = int(counts.min())
    if _place(fewest, coverage) > fewest:
        raise SettingsError(
            f"A coverage of {coverage:g} for every label takes at least {num_needed(coverage)} "
            f"held-out examples of each; one label has {fewest}.{_at_most(fewest)}"
        )
    return np.array([threshold(scores[gold == label], coverage) for label in range(num_labels)])


def prediction_sets(probabilities: FloatArray, limit: float | FloatArray) -> BoolArray:
    """Return which labels are in each set, (N, L).

    The most probable label always is, so no set is empty; without an answer, all labels are.

    Args:
        probabilities: (N, L), rows of NaN where there is no answer.
        limit: Of `threshold`, or of `class_thresholds`.
    """
    unanswered: BoolArray = np.asarray(np.isnan(probabilities).any(axis=1))
    filled = np.where(unanswered[:, None], 0.0, probabilities)
    chosen: BoolArray = np.asarray((1 - filled <= limit) | unanswered[:, None])
    chosen[np.arange(len(filled)), filled.argmax(axis=1)] = True
    return chosen


def achieved_coverage(sets: BoolArray, gold: IntArray, *, coverage: float) -> AchievedCoverage:
    """Measure prediction sets, (N, L), against the right labels, (N,)."""
    sizes = sets.sum(axis=1)
    held = int(sets[np.arange(len(gold)), gold].sum())
    return AchievedCoverage(
        coverage=coverage,
        achieved=held / len(gold),
        interval=binomial_interval(held, len(gold), method="wilson"),
        mean_size=float(sizes.mean()),
        single=float((sizes == 1).mean()),
    )


def num_needed(coverage: float) -> int:
    """Return the fewest held-out examples with which a coverage can be promised."""
    share = _exact(coverage)
    return math.ceil(share / (1 - share))


def check_coverage(coverage: float) -> float:
    """Return a coverage that lies between 0 and 1.

    Raises:
        SettingsError: If it does not.
    """
    if not 0 < _exact(coverage) < 1:
        raise SettingsError(
            f"The requested coverage is {coverage:g}. It is a share between 0 and 1 and neither of "
            "them; 0.9 is a usual value."
        )
    return coverage


def _place(count: int, coverage: float) -> int:
    return math.ceil((count + 1) * _exact(coverage))


def _exact(coverage: float) -> Fraction:
    # 0.55 * 20 is a little more than 11 in binary, and would ask for the twelfth score.
    return Fraction(coverage).limit_denominator(10**6) if math.isfinite(coverage) else Fraction(0)


def _at_most(count: int) -> str:
    # Rounded down, so that what is advised can be had.
    most = math.floor(1000 * count / (count + 1)) / 1000
    more = "old out more (data.max_validation, data.validation_fraction)."
    return f" Ask for at most {most:g}, or h{more}" if count else f" H{more}"
