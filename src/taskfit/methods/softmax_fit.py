"""Softmax regression with L2 regularisation from weighted labels, for `linear.py`.

The loss is that of scikit-learn's `LogisticRegression`. It has one minimum, so whatever minimises
it finds the same. L-BFGS does it here, in coordinates in which the loss curves about alike
everywhere, and in few, large arrays that are used again: with a general optimizer half of the time
goes into its bookkeeping and into making arrays.

Legend: N examples, D features, L labels that occur, K fitted scores (L; for two labels 1, the score
of the first being 0), P numbers to fit, K (D + 1).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack

Array = NDArray[Any]
MAX_ITERATIONS = 1000
# Steps of L-BFGS that are remembered; more cost more than they spare.
MEMORY = 8
# Share of the decrease promised by the slope that a step must bring.
SUFFICIENT = 1e-4
# Shortenings of a step after which what it changes is rounding.
MAX_SHORTENINGS = 20
# Cosine of a step and the change of the gradient under which the change is rounding.
FLAT = 1e-7
# A loss below this (nats an example) need not be known to the same share of itself.
LEAST_VALUE = 1e-2
# Where all labels are predicted surely, the loss is not quite flat either.
LEAST_CURVATURE = 1e-4


class SoftmaxFit:
    """The loss of some examples, to be minimised for one strength after the other."""

    def __init__(self, features: Array | csr_matrix, targets: Array) -> None:
        """Take the examples; the number format of the features is that of the arithmetic.

        Args:
            features: (N, D), dense or sparse, float32 or float64.
            targets: Weights of the labels, (N, L), L at least 2.
        """
        kind, ones = features.dtype, np.ones((features.shape[0], 1), features.dtype)
        self._features: Any  # (N, D + 1)
        if isinstance(features, csr_matrix):
            self._features = csr_matrix(hstack((features, csr_matrix(ones))))
            squares = self._features.multiply(self._features)
        else:
            self._features = np.hstack((features, ones))
            squares = self._features**2
        self._variances = np.asarray(squares.mean(axis=0), np.float64).ravel()
        self._total = float(targets.sum())
        self._targets = (targets / self._total).astype(kind)
        self._shares = self._targets.sum(axis=1, keepdims=True)
        self._scores = np.zeros(targets.shape, kind)
        self._probabilities = np.empty(targets.shape, kind)
        self._num_fitted = 1 if targets.shape[1] == 2 else targets.shape[1]

    @property
    def start(self) -> Array:
        """Return weights and biases before any fit, (K, D + 1)."""
        return np.zeros((self._num_fitted, self._features.shape[1]), self._scores.dtype)

    def solve(self, strength: float, start: Array, *, tolerance: float) -> Array:
        """Return the weights, and in the last column the biases, of least loss, (K, D + 1).

        Args:
            strength: Inverse regularisation: scikit-learn's C.
            start: Where to begin, (K, D + 1).
            tolerance: Share of the loss that may still be gained.
        """
        penalty = np.full(start.shape[1], 1 / (strength * self._total))
        penalty[-1] = 0  # the biases
        # The loss curves by about this much along each feature; divided by its root, it curves by
        # about 1 along all of them, which is what L-BFGS starts from.
        curvature = penalty + self._curvature(start) * self._variances
        scale, penalty = (a.astype(start.dtype) for a in (1 / np.sqrt(curvature), penalty))
        point, pull = np.empty_like(start), np.empty_like(start)

        def loss(x: Array, gradient: Array) -> float:
            slope = gradient.reshape(start.shape)
            np.multiply(x.reshape(start.shape), scale, out=point)
            value = self._loss(point, slope)
            np.multiply(point, penalty, out=pull)
            np.add(slope, pull, out=slope)
            np.multiply(slope, scale, out=slope)
            return value + float(np.vdot(point, pull)) / 2

        found = minimise(loss, (start / scale).ravel(), tolerance=tolerance)
        return np.asarray(found.reshape(start.shape) * scale)

    def _predict(self, point: Array) -> float:
        """Write the probabilities of all labels down; return the mean log loss."""
        scores, probabilities = self._scores, self._probabilities
        # In place, as fresh memory of this size costs as much as the product.
        scores[:, -self._num_fitted :] = self._features @ point.T
        scores[:, : -self._num_fitted] = 0
        np.subtract(scores, scores.max(axis=1, keepdims=True), out=scores)
        np.exp(scores, out=probabilities)
        sums = probabilities.sum(axis=1, keepdims=True)
        np.divide(probabilities, sums, out=probabilities)
        # In float64, as a step near the minimum changes less than a sum in float32 can show.
        rows = np.einsum("nl,nl->n", self._targets, scores)
        total = (self._shares * np.log(sums)).sum(dtype=np.float64)
        return float(total) - float(rows.sum(dtype=np.float64))

    def _loss(self, point: Array, gradient: Array) -> float:
        """Return the mean log loss without the penalty; write its gradient, (K, D + 1)."""
        value = self._predict(point)
        errors = self._probabilities
        np.multiply(errors, self._shares, out=errors)
        np.subtract(errors, self._targets, out=errors)
        fitted = errors[:, -self._num_fitted :]
        if isinstance(self._features, np.ndarray):
            np.matmul(fitted.T, self._features, out=gradient)
        else:
            gradient[:] = (self._features.T @ fitted).T
        return value

    def _curvature(self, point: Array) -> float:
        """Return how much the loss curves along a score, on average over examples and labels."""
        self._predict(point)
        spread = 1 - (self._probabilities**2).sum(axis=1)
        # diag(p) - p p' has this trace and L - 1 directions; of two labels one score is fitted.
        num_labels = int(self._targets.shape[1])
        mean = float((self._shares[:, 0] * spread).sum()) / max(num_labels - 1, 2)
        return max(mean, LEAST_CURVATURE / num_labels)


def minimise(loss: Callable[[Array, Array], float], start: Array, *, tolerance: float) -> Array:
    """Minimise a convex function by L-BFGS (Nocedal & Wright 2006, chapter 7).

    Args:
        loss: Returns its value at a point (P,), and writes its gradient there into the second
            array (P,). It should curve by about 1 in all directions.
        start: Where to begin, (P,).
        tolerance: Ends where what is left to gain, by the curvature seen so far, is less than
            this share of the value.

    Returns:
        The point of least loss, (P,).
    """
    point, gradient = start.copy(), np.empty_like(start)
    value, memory = loss(point, gradient), _Memory(start)
    next_point, next_gradient = np.empty_like(start), np.empty_like(start)
    for _ in range(MAX_ITERATIONS):
        step = memory.step(gradient)
        slope = float(gradient @ step)
        if not -slope > 2 * tolerance * max(value, LEAST_VALUE):
            break
        length = 1.0
        for _ in range(MAX_SHORTENINGS):
            np.multiply(step, length, out=next_point)
            np.add(next_point, point, out=next_point)
            next_value = loss(next_point, next_gradient)
            excess = next_value - value - length * slope
            if next_value <= value + SUFFICIENT * length * slope:
                break
            # The minimum of the parabola through what is known, but neither far nor near.
            length *= min(max(-length * slope / (2 * excess), 0.1), 0.5)
        else:
            break
        if not memory.add(next_point - point, next_gradient - gradient):
            break
        value, point, next_point = next_value, next_point, point
        gradient, next_gradient = next_gradient, gradient
    return point


class _Memory:
    """The last steps with the changes of the gradient; gives the next step (ibid., theorem 7.4)."""

    def __init__(self, like: Array) -> None:
        self._steps = np.zeros((MEMORY, len(like)), like.dtype)
        self._changes = np.zeros((MEMORY, len(like)), like.dtype)
        self._products = np.zeros((MEMORY, MEMORY))  # of steps and changes
        self._squares = np.zeros((MEMORY, MEMORY))  # of changes and changes
        self._order: list[int] = []  # places, the oldest first
        self._step = np.empty_like(like)

    def add(self, step: Array, change: Array) -> bool:
        """Remember a step and forget the oldest; return False if it changed nothing but rounding.

        A convex function has a steeper slope, if any, at the end of a step than at its start.
        """
        if not step @ change > FLAT * np.sqrt((step @ step) * (change @ change)):
            return False
        place = self._order.pop(0) if len(self._order) == MEMORY else len(self._order)
        self._steps[place], self._changes[place] = step, change
        self._products[:, place] = self._steps @ change
        self._squares[:, place] = self._squares[place] = self._changes @ change
        self._order.append(place)
        return True

    def step(self, gradient: Array) -> Array:
        """Return minus the inverse Hessian, as far as it is known, times the gradient, (P,)."""
        if not self._order:
            return -gradient
        order, newest = self._order, self._order[-1]
        factor = self._products[newest, newest] / self._squares[newest, newest]
        places = np.ix_(order, order)
        upper = np.triu(self._products[places])
        inverse = np.linalg.inv(upper)
        along = inverse @ (self._steps @ gradient)[order]
        rest = np.diag(upper) * along - factor * (self._changes @ gradient)[order]
        rest += factor * self._squares[places] @ along
        by_step, by_change = np.zeros((2, MEMORY), gradient.dtype)
        by_step[order] = -rest @ inverse
        by_change[order] = factor * along
        np.matmul(by_step, self._steps, out=self._step)
        self._step += by_change @ self._changes
        self._step -= gradient.dtype.type(factor) * gradient
        return self._step
