"""Logistic regression with cross-validated strength, for the probe and TF-IDF.

scikit-learn fits it; only numbers are kept, so that nothing is ever unpickled.

Legend: N examples, D features, L labels.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import expit, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold, StratifiedKFold
from threadpoolctl import threadpool_limits

from taskfit.methods.losses import balanced_weights

FloatArray = NDArray[np.float64]
Matrix = NDArray[Any] | csr_matrix
# From strong to weak regularisation.
STRENGTHS = tuple(float(c) for c in 10.0 ** np.arange(-4, 4))
FOLDS = 5
MAX_ITERATIONS = 1000


@dataclass(frozen=True, slots=True)
class LinearModel:
    """A fitted linear classifier.

    Attributes:
        weight: (L, D).
        bias: (L,).
        multi_label: Whether each label is judged by itself.
        strength: The inverse regularisation that cross-validation chose.
    """

    weight: FloatArray
    bias: FloatArray
    multi_label: bool
    strength: float

    def probabilities(self, features: Matrix) -> FloatArray:
        """Return label probabilities of (N, D) features, (N, L)."""
        scores = np.asarray(features @ self.weight.T) + self.bias
        return np.asarray(expit(scores) if self.multi_label else softmax(scores, axis=1))


def fit_linear(
    features: Matrix, targets: FloatArray, *, multi_label: bool, balanced: bool, seed: int
) -> LinearModel:
    """Fit with the strength that has the least log loss in five-fold cross-validation.

    A target that is a distribution counts as one example of each label with its share as weight.

    Args:
        features: (N, D), dense or sparse.
        targets: Weights of the labels, (N, L).
        multi_label: Fit each label by itself.
        balanced: Weigh classes in inverse proportion to frequency.
        seed: Seed of the folds.
    """
    # Products this small lose more to waking threads than they gain, by far on a busy machine.
    with threadpool_limits(1):
        return _fit_linear(features, targets, multi_label, balanced, seed)


def _fit_linear(
    features: Matrix, targets: FloatArray, multi_label: bool, balanced: bool, seed: int
) -> LinearModel:
    if multi_label:
        fits = [
            _fit_binary(features, targets[:, label], balanced=balanced, seed=seed)
            for label in range(targets.shape[1])
        ]
        strengths = [strength for _, _, strength in fits]
        return LinearModel(
            weight=np.stack([weight for weight, _, _ in fits]),
            bias=np.array([bias for _, bias, _ in fits]),
            multi_label=True,
            strength=float(np.exp(np.mean(np.log(strengths)))),
        )
    class_weights = balanced_weights(targets, multi_label=False) if balanced else None
    strength = _choose_strength(features, targets, class_weights, seed)
    *_, (weight, bias) = _fit_path(features, targets, class_weights, _up_to(strength))
    return LinearModel(weight, bias, multi_label=False, strength=strength)


def _up_to(strength: float) -> list[float]:
    """Return the path of strengths that ends with one: each fit starts from the one before."""
    return [c for c in STRENGTHS if c <= strength] or [strength]


def _fit_binary(
    features: Matrix, present: FloatArray, *, balanced: bool, seed: int
) -> tuple[FloatArray, float, float]:
    """Fit one label against the rest; return weight, bias and strength."""
    targets = np.stack((1 - present, present), axis=1)
    found = fit_linear(features, targets, multi_label=False, balanced=balanced, seed=seed)
    # Of two softmax scores only the difference counts.
    weight = found.weight[1] - found.weight[0]
    return weight, float(found.bias[1] - found.bias[0]), found.strength


def _choose_strength(
    features: Matrix, targets: FloatArray, class_weights: FloatArray | None, seed: int
) -> float:
    classes = targets.argmax(axis=1)
    counts = np.bincount(classes)
    folds = min(FOLDS, len(targets))
    if folds < 2 or len(np.unique(classes)) < 2:
        return 1.0
    rarest = int(counts[counts > 0].min())
    splitter = (
        StratifiedKFold(folds, shuffle=True, random_state=seed)
        if rarest >= folds
        else KFold(folds, shuffle=True, random_state=seed)
    )
    losses = np.zeros(len(STRENGTHS))
    for train, test in splitter.split(np.zeros(len(classes)), classes):
        path = _fit_path(features[train], targets[train], class_weights, STRENGTHS)
        for place, (strength, (weight, bias)) in enumerate(zip(STRENGTHS, path, strict=True)):
            model = LinearModel(weight, bias, multi_label=False, strength=strength)
            probabilities = np.clip(model.probabilities(features[test]), 1e-15, 1)
            probabilities /= probabilities.sum(axis=1, keepdims=True)
            losses[place] += float(
                log_loss(classes[test], probabilities, labels=np.arange(targets.shape[1]))
            ) * len(test)
    return STRENGTHS[int(losses.argmin())]


def _fit_path(
    features: Matrix,
    targets: FloatArray,
    class_weights: FloatArray | None,
    strengths: Sequence[float],
) -> list[tuple[FloatArray, FloatArray]]:
    """Return weight (L, D) and bias (L,) for each strength, from strong regularisation to weak.

    Labels that never occur get a score far below all others.
    """
    rows, labels = np.nonzero(targets)
    weights = targets[rows, labels]
    if class_weights is not None:
        weights = weights * class_weights[labels]
    num_labels, width = targets.shape[1], features.shape[1]
    present = np.unique(labels)
    if len(present) == 1:
        bias = np.full(num_labels, -30.0)
        bias[present[0]] = 0.0
        return [(np.zeros((num_labels, width)), bias)] * len(strengths)
    picked = features[rows]
    model = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)
    path = []
    for strength in strengths:
        model.set_params(C=strength)
        with warnings.catch_warnings():
            # The weakest strengths may not converge; cross-validation judges what came out.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(picked, labels, sample_weight=weights)
        weight, bias = np.zeros((num_labels, width)), np.full(num_labels, -30.0)
        if len(present) == 2:
            weight[present[1]], bias[present] = model.coef_[0], (0.0, float(model.intercept_[0]))
        else:
            weight[present], bias[present] = model.coef_, model.intercept_
        path.append((weight, bias))
    return path
