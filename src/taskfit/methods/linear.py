"""Logistic regression with cross-validated strength, for the probe and TF-IDF.

It is that of scikit-learn, multinomial with L2 regularisation. Only numbers are kept, so that
nothing is ever unpickled.

Legend: N examples, D features, R principal directions of them, L labels.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import expit, softmax
from sklearn.model_selection import KFold, StratifiedKFold
from threadpoolctl import threadpool_limits

from taskfit.data import Example
from taskfit.method_base import WeighsClasses
from taskfit.methods.method import Advance, FloatArray, Method, MethodState
from taskfit.methods.softmax_fit import SoftmaxFit
from taskfit.methods.targets import balanced_weights, target_matrix

Matrix = NDArray[Any] | csr_matrix
# From strong to weak regularisation.
STRENGTHS = tuple(float(c) for c in 10.0 ** np.arange(-4, 4))
FOLDS = 5
# Share of the loss that a fit may leave to gain: the final one, and those that are only compared.
TOLERANCE, ROUGH_TOLERANCE = 1e-11, 1e-5
# The path ends at so many strengths after the best.
PATIENCE = 2
# The score of labels that never occur.
NEVER = -30.0
# Directions with a smaller share of the largest variance are rounding.
LEAST_VARIANCE = 1e-13


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


class LinearMethod(Method):
    """A logistic regression on numbers that are read of the texts."""

    serves_multi_label = True
    settings: WeighsClasses
    _linear: LinearModel | None = None

    @abstractmethod
    def _read(self, examples: Sequence[Example], advance: Advance | None = None) -> Matrix:
        """Return what the regression sees of texts, (N, D)."""

    def _fit(self, features: Matrix, train: Sequence[Example]) -> None:
        """Fit to the features of labelled examples, (N, D)."""
        self._linear = fit_linear(
            features,
            target_matrix(train, self.task.label_names),
            multi_label=self.task.multi_label,
            balanced=self.settings.class_weights == "balanced",
            seed=self.context.settings.seed,
        )

    def probabilities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> FloatArray:
        """Return the probabilities of the logistic regression, (N, L)."""
        assert self._linear is not None
        if not examples:
            return np.empty((0, len(self.task.labels)))
        return self._linear.probabilities(self._read(examples, advance))

    def state(self) -> MethodState:
        """Return the linear layer."""
        assert self._linear is not None
        return MethodState(
            values={"strength": self._linear.strength},
            arrays={"weight": self._linear.weight, "bias": self._linear.bias},
        )

    def restore(self, state: MethodState) -> None:
        """Continue with a fitted linear layer."""
        weight, bias = (np.asarray(state.arrays[name], np.float64) for name in ("weight", "bias"))
        strength = float(state.values["strength"])
        self._linear = LinearModel(weight, bias, self.task.multi_label, strength)

    @property
    def num_parameters(self) -> int:
        """Return the weights of the regression."""
        return 0 if self._linear is None else self._linear.weight.size + self._linear.bias.size


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
        if isinstance(features, csr_matrix):
            return _fit(features, targets, multi_label, balanced, seed)
        mean, directions = _principal_directions(features)
        rotated = (features - mean) @ directions
        found = _fit(rotated, targets, multi_label, balanced, seed)
        weight = found.weight @ directions.T
        return LinearModel(weight, found.bias - weight @ mean, multi_label, found.strength)


def _principal_directions(features: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    """Return the mean of features, (D,), and their principal directions, (D, R), R less than N.

    To fit along them is exact: a rotation changes no length, so no penalty, and outside of what
    examples span a regularised weight is 0. They are fewer than the features where these are more
    than the examples, and along each the loss curves by what its variance says.
    """
    mean = np.asarray(features.mean(axis=0), np.float64)
    centred = features - mean
    is_wide = centred.shape[1] > centred.shape[0]
    variances, vectors = np.linalg.eigh(centred @ centred.T if is_wide else centred.T @ centred)
    kept = variances > LEAST_VARIANCE * variances[-1]
    vectors = vectors[:, kept]
    return mean, centred.T @ vectors / np.sqrt(variances[kept]) if is_wide else vectors


def _fit(
    features: Matrix, targets: FloatArray, multi_label: bool, balanced: bool, seed: int
) -> LinearModel:
    if multi_label:
        pairs = [np.stack((1 - present, present), axis=1) for present in targets.T]
        fits = [_fit(features, pair, False, balanced, seed) for pair in pairs]
        return LinearModel(
            # Of two softmax scores only the difference counts.
            weight=np.stack([one.weight[1] - one.weight[0] for one in fits]),
            bias=np.array([one.bias[1] - one.bias[0] for one in fits]),
            multi_label=True,
            strength=float(np.exp(np.mean(np.log([one.strength for one in fits])))),
        )
    weights = targets
    if balanced:
        weights = targets * balanced_weights(targets, multi_label=False)
    classes = targets.argmax(axis=1)
    folds = _folds(classes, seed)
    strength = _choose_strength(features, weights, classes, folds) if folds else 1.0
    final = _Fit(features, weights)
    # The rough fits tell the last one where to begin, and where the loss curves.
    for weaker in (c for c in STRENGTHS if c <= strength):
        final.fit(weaker, tolerance=ROUGH_TOLERANCE)
    return final.fit(strength, tolerance=TOLERANCE)


def _folds(classes: NDArray[np.intp], seed: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return the examples of training and test of each fold; none where nothing can be compared."""
    counts = np.bincount(classes)
    folds = min(FOLDS, len(classes))
    if folds < 2 or len(np.unique(classes)) < 2:
        return []
    rarest = int(counts[counts > 0].min())
    splitter = (
        StratifiedKFold(folds, shuffle=True, random_state=seed)
        if rarest >= folds
        else KFold(folds, shuffle=True, random_state=seed)
    )
    return list(splitter.split(np.zeros(len(classes)), classes))


def _choose_strength(
    features: Matrix,
    weights: FloatArray,
    classes: NDArray[np.intp],
    folds: Sequence[tuple[NDArray[Any], NDArray[Any]]],
) -> float:
    """Return the strength of least log loss of the most likely labels over the folds, summed."""
    # Half the digits, half the time; other folds would change the third digit of a loss.
    rough = features.astype(np.float32)
    fits = [_Fit(rough[train], weights[train]) for train, _ in folds]
    losses: list[float] = []
    for strength in STRENGTHS:
        loss = 0.0
        for fit, (_, test) in zip(fits, folds, strict=True):
            model = fit.fit(strength, tolerance=ROUGH_TOLERANCE)
            gold = model.probabilities(features[test])[np.arange(len(test)), classes[test]]
            loss -= float(np.log(np.maximum(gold, 1e-15)).sum())
        losses.append(loss)
        if len(losses) > int(np.argmin(losses)) + PATIENCE:
            break
    return STRENGTHS[int(np.argmin(losses))]


class _Fit:
    """Some examples, fitted with one strength after the other: each begins where the last ended."""

    def __init__(self, features: Matrix, weights: FloatArray) -> None:
        self._shape = weights.shape[1], features.shape[1]
        self._labels = np.flatnonzero(weights.any(axis=0))
        self._problem: SoftmaxFit | None = None
        if len(self._labels) > 1:
            self._problem = SoftmaxFit(features, weights[:, self._labels])
            self._found = self._problem.start

    def fit(self, strength: float, *, tolerance: float) -> LinearModel:
        """Return the fitted model; labels that never occur get a score far below all others."""
        weight, bias = np.zeros(self._shape), np.full(self._shape[0], NEVER)
        bias[self._labels[0]] = 0.0
        if self._problem is not None:
            self._found = self._problem.solve(strength, self._found, tolerance=tolerance)
            rows = self._labels[-len(self._found) :]
            weight[rows], bias[rows] = self._found[:, :-1], self._found[:, -1]
        return LinearModel(weight, bias, multi_label=False, strength=strength)
