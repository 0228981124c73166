"""Time of an epoch: arithmetic over rate.

A token costs two operations for every weight it is multiplied with in the forward pass, two for the
gradient of inputs, and two more for the gradient of the weights where these are trained (Kaplan et
al. 2020, arXiv:2001.08361, section 2.1; Hoffmann et al. 2022, arXiv:2203.15556, appendix F). So an
adapter on a frozen base costs 4 a weight, full training 6, and gradient checkpointing 2 more.
Layers below the trained ones run forward only: once for all epochs where what they give out is
kept, else in each step. Products inside attention are left out: under a tenth of the whole up to
some 4,000 tokens.
"""

from dataclasses import dataclass

import torch

from taskfit.plan.cards import Card
from taskfit.plan.frozen import FrozenPlan
from taskfit.plan.model import ModelCount
from taskfit.plan.tokens import SCORE_TOKEN_BUDGET, Epoch, Workload
from taskfit.settings import RunSettings, known
from taskfit.training.loop import TOKEN_BUDGET


@dataclass(frozen=True, slots=True)
class TimePlan:
    """Predicted time of an epoch.

    Attributes:
        flops: Operations for the tokens that run.
        padded_flops: Operations of the padded recipe: every row padded to its batch, the LM head
            at every position.
        seconds: For these tokens.
        padded_seconds: For the padded recipe.
        before_flops: Operations of what runs once before the first step: the reference of
            preferences, and layers that are not trained; 0 if nothing does.
        before_seconds: For that.
        before_tokens: Tokens of that.
        rate: Of matrix products on the card (FLOP/s).
        utilization: Share of it that is assumed.
    """

    flops: float
    padded_flops: float
    seconds: float
    padded_seconds: float
    before_flops: float
    before_seconds: float
    before_tokens: int
    rate: float
    utilization: float


def plan_time(
    settings: RunSettings,
    count: ModelCount,
    epoch: Epoch,
    workload: Workload,
    *,
    frozen: FrozenPlan,
    card: Card,
    dtype: torch.dtype,
) -> TimePlan:
    """Predict the time of an epoch, or of one pass for a method that only reads the model.

    Args:
        settings: Of the run.
        count: The model's parameters.
        epoch: What an epoch runs.
        workload: The examples.
        frozen: What the layers below the trained ones run.
        card: The device.
        dtype: Of the arithmetic.
    """
    # Directions: forward, gradient of inputs, gradient of weights; and forward once more.
    trains, lower = count.num_trainable > 0, count.num_frozen
    passes = 2 if trains else 1
    again = int(trains and settings.training.gradient_checkpointing)
    full = int(trains and settings.adapter.weights == "full")
    per_token = 2 * (passes + full + again) * (count.num_body - lower)
    per_token += 2 * (3 + again) * count.num_adapter
    # With frozen layers the LM head is frozen too.
    per_row = 2 * (passes + full * (not lower)) * count.num_head
    in_step = 2 * lower * (not frozen.num_before)
    flops = (per_token + in_step) * epoch.num_run + per_row * epoch.num_read
    # Who pads keeps no states.
    padded_flops = (per_token + 2 * lower + per_row) * epoch.num_padded
    before, before_tokens = 2 * lower * frozen.num_before, frozen.num_before
    if workload.scores_before:
        before += 2 * (count.num_body * epoch.num_run + count.num_head * epoch.num_read)
        before_tokens += epoch.num_run
    rate, utilization = card.rate(dtype), card.utilization(dtype)
    expanding = _expanding_seconds(count, card, dtype)
    share = lower / count.num_body
    upper = expanding * (passes + again) * (1 - share)
    whole = upper + expanding * share
    once = share * -(-frozen.num_before // TOKEN_BUDGET)
    if workload.scores_before:
        once += -(-epoch.num_run // SCORE_TOKEN_BUDGET)
    steps = -(-workload.num_examples // known(settings.training.batch_size))
    return TimePlan(
        flops=flops,
        padded_flops=padded_flops,
        seconds=flops / (rate * utilization)
        + (upper if frozen.num_before else whole) * epoch.num_passes,
        padded_seconds=padded_flops / (rate * utilization) + whole * steps,
        before_flops=before,
        before_seconds=before / (rate * utilization) + expanding * once,
        before_tokens=before_tokens,
        rate=rate,
        utilization=utilization,
    )


def _expanding_seconds(count: ModelCount, card: Card, dtype: torch.dtype) -> float:
    """Return the time that 4-bit weights take to be expanded for the products of one pass.

    Half a byte is read of each, a weight of the compute format written and read again.
    """
    if not (count.num_packed and card.bandwidth):
        return 0.0
    return count.num_packed * (0.5 + 2 * dtype.itemsize) / (card.bandwidth * 1e9)
