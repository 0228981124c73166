"""Confident learning: which labels of a table are probably wrong, from out-of-sample probabilities.

Northcutt, Jiang and Chuang 2021, "Confident learning: estimating uncertainty in dataset labels"
(arXiv:1911.00068). Legend: N examples, L labels, y~ the given label, y* the true one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskfit.stats.arrays import BoolArray, FloatArray

Labels = NDArray[np.integer]
# Probabilities that differ by less are the same.
TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class LabelIssues:
    """What confident learning says of the labels of a table.

    Attributes:
        suspected: Whether the label of each example is suspected to be wrong, (N,).
        suggested: The label that stands against the given one: the most probable other, (N,).
        joint: Estimated number of examples of each given (row) and true label (column), (L, L); row
            i sums to the number of examples that are given label i.
        score: Self-confidence, the probability of the given label; the least is worst, (N,).
    """

    suspected: BoolArray
    suggested: Labels
    joint: NDArray[np.int64]
    score: FloatArray

    @property
    def ranked(self) -> Labels:
        """Return the suspected examples, the worst first."""
        found = np.flatnonzero(self.suspected)
        return found[np.argsort(self.score[found], kind="stable")]


def find_label_issues(labels: Labels, probabilities: FloatArray) -> LabelIssues:
    """Find labels that are probably wrong, by pruning as the estimated noise rates ask for.

    Of the examples given label i, as many as the joint says are truly j go: those with the largest
    margin p(j | x) - p(i | x) (section 4.4, "prune by noise rate"). An example whose given label is
    the most probable one never goes.

    Args:
        labels: Place of the given label of each example, (N,).
        probabilities: Of each label, by fits that have not seen the example, (N, L).

    Raises:
        ValueError: If shapes do not fit, or a probability is not finite.
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(f"labels {labels.shape} do not fit probabilities {probabilities.shape}")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities must be finite")
    rows = np.arange(len(labels))
    own = probabilities[rows, labels]
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    joint = confident_joint(labels, probabilities)
    suspected = np.zeros(len(labels), bool)
    for given, counts in enumerate(_leaving_one(joint)):
        members = np.flatnonzero(labels == given)
        if len(members) < 2:
            continue
        for true in np.flatnonzero(counts):
            if true != given:
                margin = probabilities[members, true] - own[members]
                order = np.argsort(-margin, kind="stable")
                suspected[members[order[: counts[true]]]] = True
    suspected &= own < probabilities.max(axis=1)
    return LabelIssues(suspected, others.argmax(axis=1), joint, own)


def confident_thresholds(labels: Labels, probabilities: FloatArray) -> FloatArray:
    """Return the mean probability of each label over the examples that are given it, (L,).

    Equation 2: t_j = mean of p(y~ = j | x) over x with y~ = j. A label that no example has gets
    infinity: nothing is confidently of it.
    """
    given = labels[:, None] == np.arange(probabilities.shape[1])
    counts = given.sum(axis=0)
    sums = np.where(given, probabilities, 0.0).sum(axis=0)
    means = np.full(len(counts), np.inf)
    np.divide(sums, counts, out=means, where=counts > 0)
    # A threshold of 0 would call everything confident.
    return np.asarray(np.maximum(means, 2 * TOLERANCE), np.float64)


def confident_joint(labels: Labels, probabilities: FloatArray) -> NDArray[np.int64]:
    """Return the estimated number of examples of each given (row) and true label, (L, L).

    Equation 1: an example counts as truly j if p(j | x) is at least the threshold of j; of several
    such labels the most probable one is taken, and an example without any is not counted.
    Equation 3: rows are then scaled to the number of examples of each given label.
    """
    size = probabilities.shape[1]
    is_confident = probabilities >= confident_thresholds(labels, probabilities) - TOLERANCE
    guess = np.where(is_confident, probabilities, -np.inf).argmax(axis=1)
    counted = is_confident.any(axis=1)
    counts = np.zeros((size, size), np.int64)
    np.add.at(counts, (labels[counted], guess[counted]), 1)
    # Every label is taken to be right at least once, so that no row is empty.
    np.fill_diagonal(counts, np.maximum(counts.diagonal(), 1))
    totals = np.bincount(labels, minlength=size)
    scaled = counts / counts.sum(axis=1, keepdims=True) * totals[:, None]
    return np.stack([_rounded(row, total) for row, total in zip(scaled, totals, strict=True)])


def _rounded(values: FloatArray, total: int) -> NDArray[np.int64]:
    """Round numbers so that their sum is kept, changing those that rounding moved the most."""
    found = np.round(values).astype(np.int64)
    missing = total - int(found.sum())
    order = np.argsort(values - found, kind="stable")
    changed = order[::-1][:missing] if missing > 0 else order[:-missing]
    found[changed] += np.sign(missing)
    return found


def _leaving_one(joint: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the joint with at least one right example of each label, the errors fewer by that."""
    right = joint.diagonal()
    short = np.maximum(1 - right, 0)
    kinds = np.maximum(np.count_nonzero(joint, axis=1) - 1, 1)
    found: NDArray[np.int64] = np.maximum(joint - (short / kinds)[:, None], 0).astype(np.int64)
    np.fill_diagonal(found, np.maximum(right, 1))
    return found
