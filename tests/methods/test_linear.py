"""Logistic regression: the minimum that scikit-learn finds, in whatever coordinates."""

from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from taskfit.methods.linear import STRENGTHS, LinearModel, fit_linear
from taskfit.methods.softmax_fit import minimise


def blobs(num_classes: int) -> tuple[Any, Any]:
    """Examples of classes around their centres: features and class."""
    generator = np.random.default_rng(0)
    gold = np.repeat(np.arange(num_classes), 20)
    centres = generator.normal(size=(num_classes, 5)) * 2
    return centres[gold] + generator.normal(size=(len(gold), 5)), gold


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("sparse", [False, True])
def test_one_hot_targets_give_scikit_learns_regression(num_classes: int, sparse: bool) -> None:
    features, gold = blobs(num_classes)
    given = csr_matrix(features) if sparse else features
    found = fit_linear(given, np.eye(num_classes)[gold], multi_label=False, balanced=False, seed=0)
    assert found.strength in STRENGTHS
    reference = LogisticRegression(C=found.strength, max_iter=5000, tol=1e-8).fit(features, gold)
    np.testing.assert_allclose(
        found.probabilities(given), reference.predict_proba(features), atol=1e-4
    )


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("width", [12, 150])
@pytest.mark.parametrize("balanced", [False, True])
def test_features_along_principal_directions_give_what_features_as_they_are_give(
    num_classes: int, width: int, balanced: bool
) -> None:
    generator = np.random.default_rng(num_classes + 10)
    _, gold = blobs(num_classes)
    gold = gold[: len(gold) - 5]
    # Of very different variances, correlated, far from 0, and one that says nothing.
    signal = generator.normal(size=(num_classes, width))[gold]
    mixed = (signal + generator.normal(size=signal.shape)) / np.sqrt(1 + np.arange(width))
    features = mixed @ np.linalg.qr(generator.normal(size=(width, width)))[0] + 3
    features[:, 0] = 1.0
    targets = np.eye(num_classes)[gold]

    def fit(given: Any) -> LinearModel:
        return fit_linear(given, targets, multi_label=False, balanced=balanced, seed=0)

    rotated = fit(features)
    plain = fit(csr_matrix(features))
    assert rotated.strength == plain.strength
    np.testing.assert_allclose(
        rotated.probabilities(features), plain.probabilities(features), atol=1e-4
    )
    again = fit(features.copy())
    np.testing.assert_array_equal(again.weight, rotated.weight)
    np.testing.assert_array_equal(again.bias, rotated.bias)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_a_share_of_a_label_counts_as_an_example_of_that_weight(num_classes: int) -> None:
    features, gold = blobs(num_classes)
    targets = 0.8 * np.eye(num_classes)[gold] + 0.2 * np.eye(num_classes)[(gold + 1) % num_classes]
    found = fit_linear(features, targets, multi_label=False, balanced=False, seed=0)
    rows, labels = np.nonzero(targets)
    reference = LogisticRegression(C=found.strength, max_iter=5000, tol=1e-8)
    reference.fit(features[rows], labels, sample_weight=targets[rows, labels])
    np.testing.assert_allclose(
        found.probabilities(features), reference.predict_proba(features), atol=1e-4
    )


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_convex_function_is_minimised_from_near_and_far(kind: type) -> None:
    generator = np.random.default_rng(0)
    factor: Any = generator.normal(size=(30, 20)).astype(kind)
    curvature = factor.T @ factor / 30
    centre: Any = generator.normal(size=20).astype(kind)

    def loss(x: Any, gradient: Any) -> float:
        away = x - centre
        np.matmul(curvature, away, out=gradient)
        value = float(away @ gradient) / 2 + float(np.logaddexp(away, -away).sum())
        gradient += np.tanh(away)
        return value

    for size in (0.0, 0.1, 1.0, 100.0):
        start: Any = (centre + generator.normal(size=20) * size).astype(kind)
        before = start.copy()
        found = minimise(loss, start, tolerance=1e-12)
        np.testing.assert_allclose(found, centre, atol=1e-2 if kind is np.float32 else 1e-5)
        np.testing.assert_array_equal(start, before)


def test_labels_that_never_occur_get_no_probability() -> None:
    features, gold = blobs(2)
    targets = np.eye(4)[gold * 2]
    found = fit_linear(features, targets, multi_label=False, balanced=False, seed=0)
    probabilities = found.probabilities(features)
    assert probabilities[:, [1, 3]].max() < 1e-6
    assert (probabilities.argmax(axis=1) == gold * 2).mean() > 0.9
    only = fit_linear(
        features, np.eye(2)[np.zeros_like(gold)], multi_label=False, balanced=False, seed=0
    )
    assert only.probabilities(features)[:, 0].min() > 0.999


def test_balanced_weights_move_the_boundary_towards_the_frequent_class() -> None:
    generator = np.random.default_rng(1)
    gold = np.array([0] * 90 + [1] * 10)
    features = generator.normal(size=(100, 2)) + gold[:, None]
    targets = np.eye(2)[gold]
    plain, balanced = (
        fit_linear(features, targets, multi_label=False, balanced=b, seed=0) for b in (False, True)
    )
    assert (
        (balanced.probabilities(features)[:, 1]).mean()
        > plain.probabilities(features)[:, 1].mean() + 0.1
    )
