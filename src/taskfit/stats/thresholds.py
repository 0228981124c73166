"""Thresholds per label where a text may have several: for F1, or for a wanted precision or recall.

A probability of one half is where a label is as likely as not. Who wants F1 says yes below that (at
half of the F1 that can be had, if probabilities are right: Lipton et al. 2014, "Optimal
Thresholding of Classifiers to Maximize F1 Measure", arXiv:1402.1892, theorem 1), the more so the
rarer a label is and the fewer texts it was learned from.

Legend: N examples, L labels, K cuts.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import expit, logit

from taskfit.errors import SettingsError
from taskfit.stats.arrays import BoolArray, FloatArray, IntArray
from taskfit.stats.multi_label import THRESHOLD

Goal = Literal["f1", "precision", "recall"]
# A label's own best threshold for F1 counts as much as the common one if so many texts have it.
PULL = 10
# Logits are taken of thresholds between this and 1 minus this.
SMALLEST = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Thresholds:
    """From which probability on each label is given, and what held-out texts say of it.

    Attributes:
        values: A label is given from this probability on, (L,).
        num_present: Held-out texts that have each label, (L,).
        is_reached: Whether they reach the wanted precision or recall, (L,); for F1, whether any of
            them has the label.
    """

    values: FloatArray
    num_present: IntArray
    is_reached: BoolArray


def fit_thresholds(
    probabilities: FloatArray, present: BoolArray, *, goal: Goal, target: float = 0.9
) -> Thresholds:
    """Choose a threshold for each label on held-out texts.

    `f1`: each label's own best F1 over all cuts, pulled on the logit scale to the one threshold
    that is best for the F1 of all labels taken together, by 10 / (10 + texts that have the label):
    of few texts the best cut is mostly chance.

    `precision`: the lowest threshold that has the wanted precision; `recall`: the highest one that
    has the wanted recall. Both count one text more that is wrong: right / (given + 1) and
    right / (present + 1). For recall that is split conformal prediction (Vovk et al. 2005;
    `stats.conformal`): new texts like these keep it on average. For precision it is a guard against
    the luck of the chosen cut, which has no such proof. Where no threshold reaches the target, the
    one that comes closest is taken, though for precision none below one half, and for recall none
    above it. A label that no text has keeps one half.

    Args:
        probabilities: (N, L).
        present: Which labels hold, (N, L).
        goal: What the thresholds are for.
        target: The wanted precision or recall, in (0, 1).

    Raises:
        SettingsError: If the target is not between 0 and 1.
        ValueError: If shapes do not fit, there is no example, or a probability is not finite.
    """
    if probabilities.shape != present.shape or not len(present):
        raise ValueError(f"{probabilities.shape} probabilities do not fit {present.shape} labels.")
    if not np.isfinite(probabilities).all():
        raise ValueError("Some probabilities are not finite.")
    if not 0 < target < 1:
        raise SettingsError(
            f"The wanted {goal} is {target:g}; it lies between 0 and 1 and is neither."
        )
    num_present = present.sum(axis=0)
    columns = list(zip(probabilities.T, present.T, strict=True))
    if goal == "f1":
        own = np.array([_best_f1(*column) for column in columns])
        common = _best_f1(probabilities.ravel(), present.ravel())
        share = num_present / (num_present + PULL)
        values = expit(share * _logit(own) + (1 - share) * _logit(np.array(common)))
        return Thresholds(values, num_present, num_present > 0)
    found = [_reaching(*column, goal=goal, target=target) for column in columns]
    return Thresholds(
        np.array([value for value, _ in found]), num_present, np.array([ok for _, ok in found])
    )


def crossed_thresholds(
    probabilities: FloatArray,
    present: BoolArray,
    folds: IntArray,
    *,
    goal: Goal,
    target: float = 0.9,
) -> FloatArray:
    """Return thresholds for each text that were chosen on the other folds, (N, L).

    So texts that choose the thresholds of a run can tell what such thresholds are worth.

    Args:
        probabilities: (N, L).
        present: Which labels hold, (N, L).
        folds: Fold of each text, (N,); where there is only one, all labels keep one half.
        goal: As for `fit_thresholds`.
        target: As for `fit_thresholds`.
    """
    values = np.full(probabilities.shape, THRESHOLD)
    for fold in np.unique(folds):
        others = folds != fold
        if others.any():
            found = fit_thresholds(probabilities[others], present[others], goal=goal, target=target)
            values[~others] = found.values
    return values


def _cuts(scores: FloatArray, present: BoolArray) -> tuple[FloatArray, IntArray, IntArray]:
    """Return all cuts from high to low, with the texts above each and those of them that are right.

    A cut lies in the middle between two neighbouring scores, the last one between 0 and the lowest.

    Args:
        scores: (N,).
        present: (N,).

    Returns:
        Three arrays, (K,) each.
    """
    levels, group = np.unique(scores, return_inverse=True)
    below = np.concatenate([[0.0], levels[:-1]])
    middle = (levels + below) / 2
    # Of two neighbouring floats the middle may be the lower one, which is not to be above the cut.
    cuts = np.where(middle > below, middle, levels)[::-1]
    counts = np.bincount(group, minlength=len(levels))[::-1]
    right = np.bincount(group[present], minlength=len(levels))[::-1]
    return cuts, counts.cumsum(), right.cumsum()


def _best_f1(scores: FloatArray, present: BoolArray) -> float:
    """Return the cut with the best F1, of several the one nearest to one half.

    One half where there is nothing to find.
    """
    if not present.any():
        return THRESHOLD
    cuts, given, right = _cuts(scores, present)
    f1 = 2 * right / (given + present.sum())
    best = cuts[f1 >= f1.max() - 1e-12]
    return float(best[np.abs(best - THRESHOLD).argmin()])


def _reaching(
    scores: FloatArray, present: BoolArray, *, goal: Goal, target: float
) -> tuple[float, bool]:
    """Return the cut for a wanted precision or recall, and whether it is reached."""
    if not present.any():
        return THRESHOLD, False
    cuts, given, right = _cuts(scores, present)
    if goal == "recall":
        share = right / (present.sum() + 1)
        enough = share >= target
        # Recall only rises on the way down; the first is the one that costs least precision.
        if enough.any():
            return float(cuts[enough.argmax()]), True
        return min(THRESHOLD, float(cuts[share.argmax()])), False
    share = right / (given + 1)
    enough = share >= target
    if not enough.any():
        # What cannot be told from others would else be said of all texts.
        return max(THRESHOLD, float(cuts[np.flatnonzero(share == share.max())[-1]])), False
    return float(cuts[np.flatnonzero(enough)[-1]]), True


def _logit(values: FloatArray) -> FloatArray:
    return np.asarray(logit(np.clip(values, SMALLEST, 1 - SMALLEST)))
