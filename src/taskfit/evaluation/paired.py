"""Two classifiers on the same examples: the difference of a metric, with its interval."""

from collections.abc import Callable
from functools import partial

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from taskfit.evaluation.metrics import IntArray

NUM_RESAMPLES = 1000


def paired_bootstrap(
    gold: IntArray, first: IntArray, second: IntArray, *, metric: str, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Return the first's metric minus the second's, with its 95 % percentile interval.

    A paired bootstrap over examples. It draws the count of every triple (gold, first, second),
    which is the same distribution as drawing examples.

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

    generator = np.random.default_rng(seed)
    resamples = generator.multinomial(len(gold), counts / len(gold), size=NUM_RESAMPLES)
    low, high = np.quantile([difference(weights) for weights in resamples], [0.025, 0.975])
    return difference(counts), (float(low), float(high))
