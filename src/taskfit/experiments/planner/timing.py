"""Time of an epoch: arithmetic over rate.

A token costs two operations for every weight it is multiplied with in the forward pass, two for the
gradient of inputs, and two more for the gradient of the weights where these are trained (Kaplan et
al. 2020, arXiv:2001.08361, section 2.1; Hoffmann et al. 2022, arXiv:2203.15556, appendix F). So an
adapter on a frozen base costs 4 a weight, full training 6, and gradient checkpointing 2 more.
Products inside attention are left out: under a tenth of the whole up to some 4,000 tokens.
"""

from dataclasses import dataclass

import torch

from taskfit.experiments.planner.cards import Card
from taskfit.experiments.planner.model import ModelCount
from taskfit.experiments.planner.tokens import SCORE_TOKEN_BUDGET, Epoch, Workload
from taskfit.settings import RunSettings


@dataclass(frozen=True, slots=True)
class TimePlan:
    """Predicted time of an epoch.

    Attributes:
        flops: Operations for our unique tokens.
        padded_flops: Operations of the padded recipe: every row padded to its batch, the LM head
            at every position.
        seconds: For our unique tokens.
        padded_seconds: For the padded recipe.
        before_flops: Operations of what is scored once before the first step, such as the
            reference of preferences; 0 if nothing is.
        before_seconds: For that.
        rate: Of matrix products on the card (FLOP/s).
        utilization: Share of it that is assumed.
    """

    flops: float
    padded_flops: float
    seconds: float
    padded_seconds: float
    before_flops: float
    before_seconds: float
    rate: float
    utilization: float


def plan_time(
    settings: RunSettings,
    count: ModelCount,
    epoch: Epoch,
    workload: Workload,
    *,
    card: Card,
    dtype: torch.dtype,
    trains: bool,
) -> TimePlan:
    """Predict the time of an epoch, or of one pass for a method that only reads the model.

    Args:
        settings: Of the run.
        count: The model's parameters.
        epoch: What an epoch runs.
        workload: The examples.
        card: The device.
        dtype: Of the arithmetic.
        trains: Whether weights are trained.
    """
    # Directions: forward, gradient of inputs, gradient of weights; and forward once more.
    passes = 2 if trains else 1
    again = int(trains and settings.training.gradient_checkpointing)
    full = int(trains and settings.adapter.weights == "full")
    per_token = 2 * (passes + full + again) * count.num_body
    per_token += 2 * (3 + again) * count.num_adapter
    per_row = 2 * (passes + full) * count.num_head
    flops = per_token * epoch.num_unique + per_row * epoch.num_read
    padded_flops = (per_token + per_row) * epoch.num_padded
    before = before_passes = 0
    if workload.scores_before:
        before = 2 * (count.num_body * epoch.num_unique + count.num_head * epoch.num_read)
        before_passes = -(-epoch.num_unique // SCORE_TOKEN_BUDGET)
    rate, utilization = card.rate(dtype), card.utilization(dtype)
    # 4-bit weights are expanded for every product: half a byte read, a weight of the compute
    # format written and read again.
    expanding = 0.0
    if count.num_packed and card.bandwidth:
        expanding = count.num_packed * (0.5 + 2 * dtype.itemsize) / (card.bandwidth * 1e9)
    in_step = expanding * (passes + again)
    steps = -(-workload.num_examples // settings.training.batch_size)
    return TimePlan(
        flops=flops,
        padded_flops=padded_flops,
        seconds=flops / (rate * utilization) + in_step * epoch.num_passes,
        padded_seconds=padded_flops / (rate * utilization) + in_step * steps,
        before_flops=before,
        before_seconds=before / (rate * utilization) + expanding * before_passes,
        rate=rate,
        utilization=utilization,
    )
