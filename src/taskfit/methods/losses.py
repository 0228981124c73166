"""Losses of classifiers: pure functions of scores and targets, summed over examples.

Legend: N examples, L labels.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from taskfit.methods.targets import FloatArray
from taskfit.models.transfer import on_device

# A loss of scores (N, L) and targets (N, L), with class weights and focal factor bound to it.
LossSum = Callable[[Tensor, Tensor], Tensor]


def classification_loss_sum(
    scores: Tensor,
    targets: Tensor,
    *,
    class_weights: Tensor | None = None,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Return the cross-entropy of a distribution over labels, weighted and focal where asked for.

    Sum over examples and labels of -w_y t_y (1 - p_y)^gamma log p_y: cross-entropy with gamma = 0,
    and equation 5 of Lin et al. 2017 (arXiv:1708.02002) with alpha = w.

    Args:
        scores: Before the softmax over labels, (N, L).
        targets: Weights of the labels, rows sum to 1, (N, L).
        class_weights: Weight of each label, (L,); None: all 1.
        focal_gamma: Exponent of the focal factor.
    """
    log_probs = functional.log_softmax(scores.float(), dim=-1)
    return likelihood_loss_sum(
        log_probs, targets, class_weights=class_weights, focal_gamma=focal_gamma
    )


def likelihood_loss_sum(
    log_probs: Tensor,
    targets: Tensor,
    *,
    class_weights: Tensor | None = None,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Return what `classification_loss_sum` does, of log-probabilities.

    Args:
        log_probs: log p_y, finite also where the target is 0, (N, L).
        targets: As there, (N, L).
        class_weights: As there, (L,).
        focal_gamma: As there.
    """
    weights = targets.to(log_probs.dtype)
    if class_weights is not None:
        weights = weights * class_weights
    if focal_gamma:
        weights = weights * (1 - log_probs.exp()).clamp_min(0).pow(focal_gamma)
    return -(weights * log_probs).sum()


def multi_label_loss_sum(
    scores: Tensor,
    targets: Tensor,
    *,
    class_weights: Tensor | None = None,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Return the binary cross-entropy of each label, averaged over labels, summed over examples.

    Args:
        scores: Before the sigmoid, (N, L).
        targets: 1 where a label holds, (N, L).
        class_weights: Weight of each label where it holds, (L,); None: all 1.
        focal_gamma: Exponent of the focal factor, see `classification_loss_sum`.
    """
    scores = scores.float()
    targets = targets.to(scores.dtype)
    losses = functional.binary_cross_entropy_with_logits(
        scores, targets, reduction="none", pos_weight=class_weights
    )
    if focal_gamma:
        right = torch.sigmoid(scores) * targets + torch.sigmoid(-scores) * (1 - targets)
        losses = losses * (1 - right).pow(focal_gamma)
    return losses.mean(dim=-1).sum()


def label_targets(targets: Sequence[FloatArray | None], device: torch.device) -> Tensor:
    """Stack the targets of labelled items, (N, L)."""
    return on_device(np.stack([t for t in targets if t is not None]), device)
