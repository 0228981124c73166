"""Classifiers on the same examples: metrics of the same resamples, exact and corrected tests.

Legend: M methods, D draws, N examples, C classes, U distinct columns of answers, B resamples.
"""

import numpy as np
from scipy import sparse, stats

from taskfit.stats.arrays import BoolArray, FloatArray, IntArray
from taskfit.stats.bootstrap import percentile_interval, resample_counts
from taskfit.stats.metrics import macro_f1_from_counts as macro_f1
from taskfit.stats.metrics import mcc_from_counts as mcc


def paired_bootstrap(
    gold: IntArray, first: IntArray, second: IntArray, *, metric: str, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Return the first's metric minus the second's, with its 95 % percentile interval.

    A paired bootstrap over examples; see `resampled_scores`.

    Args:
        gold: Right classes by index, (N,).
        first: Predictions of one classifier, -1 for no answer, (N,).
        second: Predictions of the other, (N,).
        metric: accuracy, mcc or macro_f1.
        seed: Seed of the bootstrap.
    """
    observed, resampled = resampled_scores(np.stack((first, second))[:, None], gold, metric, seed)
    (one, other), (of_one, of_other) = observed[:, 0], resampled[:, 0]
    return float(one - other), percentile_interval(of_one - of_other)


def resampled_scores(
    predicted: IntArray, gold: IntArray, metric: str, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Return scores of every method and draw, (M, D), and on resampled examples, (M, D, B).

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
    shape = (num_methods, num_draws)
    return observed.reshape(shape), resampled.reshape(*shape, -1)


def _indicator(classes: IntArray, num_classes: int) -> sparse.csr_array[np.float64]:
    """Return a matrix that sums columns of cells into classes, (C, U)."""
    place = (classes, np.arange(len(classes)))
    return sparse.csr_array((np.ones(len(classes)), place), shape=(num_classes, len(classes)))


def _sums(indicator: sparse.csr_array[np.float64], weights: FloatArray) -> FloatArray:
    """Return the sums of weights of cells by class, (B, C) from (C, U) and (B, U)."""
    return np.asarray(indicator @ weights.T).T


def mcnemar(first: BoolArray, second: BoolArray) -> float:
    """Return the p-value of McNemar's exact test that two classifiers are right equally often.

    Of the examples that exactly one of them has right, half should be the first's: a two-sided
    binomial test (McNemar 1947; Dietterich 1998, section 3.1, there with the chi-squared
    approximation). 1 if they never disagree.

    Args:
        first: Whether one classifier is right, (N,).
        second: Whether the other is right, (N,).
    """
    only_first, only_one = int((first & ~second).sum()), int((first ^ second).sum())
    return float(stats.binomtest(only_first, only_one).pvalue) if only_one else 1.0


def holm(p_values: FloatArray) -> FloatArray:
    """Return p-values adjusted so that the chance of any false rejection keeps the level.

    The k-th smallest of m is multiplied by m - k + 1; a later one is never below an earlier one
    (Holm 1979, "A simple sequentially rejective multiple test procedure").

    Args:
        p_values: (m,).
    """
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted
