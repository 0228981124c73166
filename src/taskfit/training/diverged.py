"""Whether training ran away: losses, weights or scores that are not finite, and what to do."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from taskfit.errors import TrainingError
from taskfit.methods.objective import Item, Objective
from taskfit.models.whole import NotFiniteError, refuse_infinite

ADVICE = (
    "Start a new run with a lower training.learning_rate, or compute in model.dtype=float32 or "
    "bfloat16 instead of float16."
)


def loss_not_finite(loss: float, grad_norm: float, step: int, batch: Sequence[Item]) -> str:
    """Return the message of a step whose loss or gradient is not finite, before its update."""
    return (
        f"Loss {loss} with gradient norm {grad_norm} at step {step + 1}, before the update "
        f"({_names(batch)}). The weights are still those of step {step}. {ADVICE}"
    )


@contextmanager
def blamed_on_training(step: int) -> Iterator[None]:
    """Turn scores that are not finite after a step into an error of the training.

    Before the first step they are the model's own.

    Raises:
        TrainingError: Naming the step.
    """
    try:
        yield
    except NotFiniteError as error:
        if step == 0:
            raise
        raise TrainingError(
            f"Training ran away: after step {step} {error.found}. Nothing was saved of this step; "
            f"an earlier checkpoint stays as it was. {ADVICE}"
        ) from error


@torch.no_grad()
def check_last(objective: Objective[Any], batch: Sequence[Item], step: int) -> None:
    """Raise if the loss after the last step is not finite, where no validation looks at it.

    Args:
        objective: The loss; of a sharded model it cannot be run by one process.
        batch: Examples of that step; the shortest is run.
        step: The last step.

    Raises:
        TrainingError: Naming the step.
    """
    shortest = [min(batch, key=lambda item: item.num_tokens)]
    objective.start_step(step)
    with blamed_on_training(step):
        loss = float(objective.loss_sum(shortest))
        if not math.isfinite(loss):
            raise NotFiniteError(f"the loss is {loss} ({_names(shortest)})")


def check_weights(parameters: Mapping[str, Tensor], step: int) -> None:
    """Raise if trained weights are not finite.

    Raises:
        TrainingError: Naming step and weights.
    """
    with blamed_on_training(step):
        refuse_infinite(parameters, "the model")


def _names(batch: Sequence[Item]) -> str:
    more = ", ..." if len(batch) > 5 else ""
    return f"examples {', '.join(item.id for item in batch[:5])}{more}"
