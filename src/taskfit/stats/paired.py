"""Two classifiers on the same examples: the difference of a metric, exact and corrected tests."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from taskfit.stats.bootstrap import percentile_interval, resample_counts
from taskfit.stats.metrics import FloatArray, IntArray

BoolArray = NDArray[np.bool_]


def paired_bootstrap(
    gold: IntArray, first: IntArray, second: IntArray, *, metric: str, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Return the first's metric minus the second's, with its 95 % percentile interval.

    A paired bootstrap over examples, drawn as counts of every triple (gold, first, second).

    Args:
        gold: Right classes by index, (N,).
        first: Predictions of one classifier, (N,).
        second: Predictions of the other, (N,).
        metric: accuracy, mcc or macro_f1.
        seed: Seed of the bootstrap.
    """
    measure: Callable[..., float] = {
        "accuracy": accuracy_score,
        "mcc": matthews_corrcoef,
        "macro_f1": partial(f1_score, average="macro", zero_division=0),
    }[metric]
    triples, counts = np.unique(np.stack((gold, first, second)), axis=1, return_counts=True)

    def difference(weights: IntArray) -> float:
        drawn, weight = triples[:, weights > 0], weights[weights > 0]
        one, other = (measure(drawn[0], drawn[row], sample_weight=weight) for row in (1, 2))
        return float(one - other)

    blocks = resample_counts(counts, np.random.default_rng(seed))
    resampled = [difference(weights) for block in blocks for weights in block]
    return difference(counts), percentile_interval(resampled)


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
