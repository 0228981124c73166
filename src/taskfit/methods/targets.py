"""Targets of labelled examples as numbers, and how much each class counts.

Legend: N examples, L labels.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.errors import DataError

FloatArray = NDArray[np.float64]


def target_matrix(examples: Sequence[Example], labels: Sequence[str]) -> FloatArray:
    """Return the targets of labelled examples, (N, L).

    Raises:
        DataError: If there is none.
    """
    targets = [example.target_vector(labels) for example in examples]
    known = [target for target in targets if target is not None]
    if not known:
        raise DataError("There are no labelled training examples. Give a table or a built-in task.")
    return np.stack(known)


def balanced_weights(targets: FloatArray, *, multi_label: bool) -> FloatArray:
    """Return class weights in inverse proportion to frequency, (L,).

    Args:
        targets: Weights of the labels in training, (N, L).
        multi_label: Weigh each label by absent / present; else scale so that the mean weight of an
            example is 1, as scikit-learn's `balanced` does. A label that never occurs gets 1.
    """
    counts: FloatArray = targets.sum(axis=0)
    total = len(targets) - counts if multi_label else len(targets) / (counts > 0).sum()
    weights: FloatArray = np.ones_like(counts)
    np.divide(total, counts, out=weights, where=counts > 0)
    return weights
