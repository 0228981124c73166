"""Losses of classifiers against PyTorch's own, and what weights and focus do."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from taskfit.methods.losses import classification_loss_sum, multi_label_loss_sum
from taskfit.methods.targets import balanced_weights

SCORES = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
GOLD = torch.tensor([0, 1, 2, 2, 1, 0])
ONE_HOT = functional.one_hot(GOLD, 3).double()
WEIGHTS = torch.tensor([0.5, 1.0, 3.0])


def test_one_hot_targets_give_cross_entropy_with_class_weights_too() -> None:
    plain = classification_loss_sum(SCORES, ONE_HOT, class_weights=None, focal_gamma=0)
    assert plain == pytest.approx(float(functional.cross_entropy(SCORES, GOLD, reduction="sum")))
    weighted = classification_loss_sum(SCORES, ONE_HOT, class_weights=WEIGHTS, focal_gamma=0)
    expected = functional.cross_entropy(SCORES, GOLD, weight=WEIGHTS, reduction="sum")
    assert weighted == pytest.approx(float(expected))


def test_focus_takes_weight_from_what_is_right_and_none_from_what_is_wrong() -> None:
    sure = torch.tensor([[20.0, 0.0, 0.0], [0.0, 20.0, 0.0]])
    target = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])

    def each(gamma: float) -> list[float]:
        return [
            float(classification_loss_sum(s[None], t[None], class_weights=None, focal_gamma=gamma))
            for s, t in zip(sure / 10, target, strict=True)
        ]

    plain, focal = each(0.0), each(2.0)
    probability = torch.softmax(sure / 10, dim=1)[:, 0]
    for found, before, p in zip(focal, plain, probability, strict=True):
        assert found == pytest.approx(float((1 - p) ** 2) * before, rel=1e-5)


def test_the_focal_loss_has_a_finite_gradient_at_certainty() -> None:
    scores = torch.tensor([[500.0, 0.0]], requires_grad=True)
    target = torch.tensor([[1.0, 0.0]])
    classification_loss_sum(scores, target, class_weights=None, focal_gamma=2.0).backward()
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_two_exclusive_labels_judged_alone_are_binary_cross_entropies(gamma: float) -> None:
    targets = (SCORES > 0.3).double()
    found = multi_label_loss_sum(SCORES, targets, class_weights=WEIGHTS, focal_gamma=gamma)
    p = torch.sigmoid(SCORES.double())
    right = torch.where(targets > 0, p, 1 - p)
    weights = torch.where(targets > 0, WEIGHTS.double(), torch.ones(()))
    expected = -(weights * (1 - right) ** gamma * right.log()).mean(dim=1).sum()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_balanced_weights_are_scikit_learns() -> None:
    gold = np.array([0] * 7 + [1] * 2 + [2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=gold)
    np.testing.assert_allclose(balanced_weights(np.eye(3)[gold], multi_label=False), expected)
    several = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(balanced_weights(several, multi_label=True), [1 / 3, 3.0])
