"""The training loop, all of it, in plain PyTorch.

The loop does not know which method it trains. It asks an `Objective` to cut a batch into forward
passes and for the summed loss of each; it divides once by what the whole step counts (examples, or
learned tokens), clips once, and steps once. So neither the token budget nor padding nor batch mates
can change the gradient; nor can the number of processes, each of which adds the gradient of its
share of the step (`distributed.py`).
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taskfit.errors import TrainingError
from taskfit.methods.objective import Item, Objective, padded_tokens
from taskfit.models.out_of_memory import is_out_of_memory
from taskfit.models.quantize import count_parameters
from taskfit.settings import TrainingSettings, known
from taskfit.training.checkpoint import Checkpoints, SavePace, TrainingState
from taskfit.training.choice import is_worse
from taskfit.training.distributed import (
    any_process,
    max_over_processes,
    on_main,
    rank,
    share_of_step,
    sum_over_processes,
)
from taskfit.training.diverged import (
    blamed_on_training,
    check_last,
    check_weights,
    loss_not_finite,
)
from taskfit.training.length import count_steps
from taskfit.training.log import TrainingLog
from taskfit.training.memory import MemoryAccount
from taskfit.training.optim import MasterOptimizer, learning_rate_at
from taskfit.training.seeds import seed_generators, step_seed
from taskfit.training.sharding import ShardedModel

VALIDATIONS_PER_RUN = 5
TOKEN_BUDGET = 2048
SHARDED_MEMORY = (
    "Memory ran out in a sharded model, where one process cannot start a step over by itself. Set "
    "a smaller training.token_budget or training.gradient_checkpointing=true, or take more GPUs."
)


@dataclass(frozen=True, slots=True)
class Validation:
    """A validation's outcome.

    Attributes:
        loss: Mean loss per example (nats).
        losses: What the choice of weights looks at: a proper score of each example, lower is
            better, (N,); None: `loss` alone.
        metrics: Everything worth recording.
    """

    loss: float
    metrics: Mapping[str, float]
    losses: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """All that one training needs.

    Attributes:
        model: Whose trainable parameters are trained.
        parameters: Those parameters by name.
        objective: The method's loss.
        items: Encoded training examples.
        validate: Scores the validation set with the current weights; None without one.
        settings: The loop's settings.
        seed: Seed of data order and dropout.
        checkpoints: Where to save and resume.
        log: The record.
        memory: The memory account.
        count_tokens: Returns the unique tokens run so far.
        sampling: Probability of each item at each draw, (N,), with replacement; None: every item
            once an epoch.
        sharded: The model divided over processes; None: whole in each of them.
        warm_up: Computes what all steps reuse; called once before the first, after a resume too.
        validates_start: Whether the weights before the first step are validated like any others.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    objective: Objective[Any]
    items: Sequence[Item]
    validate: Callable[[], Validation] | None
    settings: TrainingSettings
    seed: int
    checkpoints: Checkpoints
    log: TrainingLog
    memory: MemoryAccount
    count_tokens: Callable[[], int]
    sampling: NDArray[np.float64] | None = None
    sharded: ShardedModel | None = None
    warm_up: Callable[[], None] | None = None
    validates_start: bool = True


def train(job: TrainingJob) -> TrainingState:
    """Train, from the last checkpoint if there is one; leave the chosen weights in the model.

    Raises:
        TrainingError: On a loss that is not finite (before the update), on weights or scores that
            are not (before they are saved), or if a single example does not fit into memory.
    """
    settings, log, batch_size = job.settings, job.log, known(job.settings.batch_size)
    optimizer = MasterOptimizer(job.parameters, settings)
    total_steps = count_steps(len(job.items), settings)
    eval_every = settings.eval_every_steps or max(1, math.ceil(total_steps / VALIDATIONS_PER_RUN))
    pace = SavePace(job.parameters.values(), settings.save_every_steps, eval_every, total_steps)
    state = TrainingState(
        token_budget=settings.token_budget or max(TOKEN_BUDGET, job.objective.largest(job.items))
    )
    if (saved := job.checkpoints.load()) is not None:
        state, tensors = saved
        optimizer.load_state_tensors(tensors)
        pace.goes_on_from(state)
        log.rewind(state.step)
    else:
        log.rewind(-1)  # what a run wrote that was killed before its first checkpoint
        _dry_run(job, optimizer, state)
    if job.warm_up is not None:
        started = time.perf_counter()
        job.warm_up()
        state.seconds += time.perf_counter() - started
    if state.step == 0 and job.validate is not None and job.validates_start:
        # The weights that training starts from may be the best.
        _validate(job, job.validate, optimizer, state)
    job.model.train()

    while state.step < total_steps and not state.stopped:
        started, tokens_before = time.perf_counter(), job.count_tokens()
        batch = [job.items[i] for i in batch_indices(len(job.items), state.step, job)]
        loss = accumulate_gradient(job, batch, optimizer, state)
        grad_norm = optimizer.clip(settings.max_grad_norm)
        # A scaled gradient that overflows is expected now and then; that step is left out.
        overflows = optimizer.loss_scale is not None and not math.isfinite(grad_norm)
        if not math.isfinite(loss) or (not math.isfinite(grad_norm) and not overflows):
            raise TrainingError(loss_not_finite(loss, grad_norm, state.step, batch))
        learning_rate = learning_rate_at(state.step, total_steps=total_steps, settings=settings)
        optimizer.step(learning_rate)

        state.step += 1
        tokens = round(sum_over_processes(job.count_tokens() - tokens_before))
        seconds = time.perf_counter() - started
        state.num_tokens += tokens
        state.num_padded_tokens += padded_tokens(batch)
        state.seconds += seconds
        log.write(
            {
                "kind": "step",
                "step": state.step,
                "total_steps": total_steps,
                "epoch": state.step * batch_size / len(job.items),
                "loss": loss,
                **job.objective.step_metrics(),
                "learning_rate": learning_rate,
                "grad_norm": None if overflows else grad_norm,
                "is_skipped": overflows,
                "tokens": tokens,
                "tokens_per_second": tokens / seconds,
                "memory_bytes": round(max_over_processes(job.memory.current())),
                "seconds": state.seconds,
            }
        )

        last = state.step == total_steps
        if job.validate is not None and (last or state.step % eval_every == 0):
            started = time.perf_counter()
            _validate(job, job.validate, optimizer, state)
            state.seconds += time.perf_counter() - started
        elif last and job.sharded is None:
            check_last(job.objective, batch, state.step)
        if pace.is_due(state):
            _save(job, optimizer, state, pace)

    if settings.keep == "best" and state.best_losses and state.best_step < state.step:
        optimizer.load_weights(job.checkpoints.load_best(state.best_step))
    job.model.eval()
    return state


def _save(
    job: TrainingJob, optimizer: MasterOptimizer, state: TrainingState, pace: SavePace
) -> None:
    """Save a checkpoint, unless its weights are not finite: it would replace one that is good."""
    if job.sharded is None:
        check_weights(job.parameters, state.step)
    with pace.saving(state):
        job.checkpoints.save(state, optimizer.state_tensors(moments=not pace.is_end(state)))


def accumulate_gradient(
    job: TrainingJob,
    batch: Sequence[Item],
    optimizer: MasterOptimizer,
    state: TrainingState,
) -> float:
    """Add up the gradient of a step's mean loss over its forward passes; return that loss.

    When memory runs out, the step starts over with half the token budget: the same examples, the
    same sum, hence the same gradient. Of several processes each runs its share of the examples.
    """
    share = [batch[i] for i in share_of_step(batch, job.objective)]
    count = job.objective.count(batch)
    while True:
        # One seed a step: dropout needs no state in checkpoints, and a repeated step repeats it.
        seed_generators(step_seed(job.seed, state.step, rank()))
        total, failed = 0.0, False
        try:
            job.objective.start_step(state.step)
            passes = forward_passes(job, batch, share, state.token_budget)
            total = run_passes(job, passes, optimizer, count=count)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if job.sharded is not None:
                raise TrainingError(SHARDED_MEMORY) from error
            failed = True
        if not any_process(failed):
            optimizer.sum_gradients()
            return sum_over_processes(total)
        optimizer.clear()
        halve_budget(job, batch, state)


def run_passes(
    job: TrainingJob,
    passes: Sequence[tuple[list[Item], float]],
    optimizer: MasterOptimizer,
    *,
    count: float,
) -> float:
    """Add up the gradient of a step over its forward passes; return the loss.

    Args:
        job: The training.
        passes: See `forward_passes`.
        optimizer: Collects the gradient.
        count: What the summed loss is divided by.
    """
    # A function of its own, so that what a pass keeps for its backward pass is given back when
    # memory runs out, before the step starts over.
    total = torch.zeros((), dtype=torch.float64)
    for items, weight in passes:
        loss = loss_sum(job, items) * (weight / count)
        optimizer.scale_loss(loss).backward()  # type: ignore[no-untyped-call]
        optimizer.collect_gradients()
        # Read once a step: a GPU would stand still while the next tree is built.
        total = total + loss.detach()
    return total.item()


def forward_passes(
    job: TrainingJob, batch: Sequence[Item], share: Sequence[Item], token_budget: int
) -> list[tuple[list[Item], float]]:
    """Cut this process's share of a step into forward passes, each with the weight of its loss.

    A sharded model is gathered by all processes together, so whoever has fewer passes runs an
    example of the step once more, for nothing.
    """
    plan = job.objective.plan(share, token_budget) if share else []
    passes = [([share[i] for i in piece], 1.0) for piece in plan]
    if job.sharded is not None:
        missing = round(max_over_processes(len(passes))) - len(passes)
        shortest = min(batch, key=lambda item: item.num_tokens)
        passes += [([shortest], 0.0)] * missing
    return passes


def loss_sum(job: TrainingJob, items: Sequence[Item]) -> Tensor:
    """Return the summed loss of the examples of one forward pass (nats)."""
    if job.sharded is None:
        return job.objective.loss_sum(items)
    loss: Tensor = job.sharded(lambda: job.objective.loss_sum(items))
    return loss


def halve_budget(job: TrainingJob, batch: Sequence[Item], state: TrainingState) -> None:
    """Halve the token budget after memory ran out, down to the longest single example.

    Raises:
        TrainingError: If it cannot be halved any further.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    smallest = job.objective.largest(batch)
    if smallest >= state.token_budget:
        raise TrainingError(
            f"Memory does not suffice for a single example of {smallest} tokens. Shorten texts "
            "with model.max_length, or use a smaller model."
        )
    state.token_budget = max(smallest, state.token_budget // 2)
    job.log.write(
        {
            "kind": "note",
            "step": state.step,
            "text": f"out of memory; token budget halved to {state.token_budget}",
        }
    )


def batch_indices(num_items: int, step: int, job: TrainingJob) -> list[int]:
    """Return the examples of a step: a function of seed and step, nothing else."""
    size = known(job.settings.batch_size)
    per_epoch = math.ceil(num_items / size)
    epoch, index = divmod(step, per_epoch)
    return [int(i) for i in _order(num_items, epoch, job)[index * size : (index + 1) * size]]


def _order(num_items: int, epoch: int, job: TrainingJob) -> NDArray[np.int64]:
    generator = np.random.default_rng([job.seed, epoch])
    if job.sampling is None:
        return generator.permutation(num_items)
    return generator.choice(num_items, num_items, p=job.sampling)


def _dry_run(job: TrainingJob, optimizer: MasterOptimizer, state: TrainingState) -> None:
    """Run the longest step without an update, so that what will fail fails now."""
    started = time.perf_counter()
    size, total_steps = known(job.settings.batch_size), count_steps(len(job.items), job.settings)
    reached = job.items
    if total_steps * size < len(job.items):  # the longest of all may never come
        reached = [job.items[i] for i in _order(len(job.items), 0, job)[: total_steps * size]]
    longest = sorted(reached, key=lambda item: -item.num_tokens)[:size]
    job.model.train()
    loss = accumulate_gradient(job, longest, optimizer, state)
    optimizer.clear()
    if not math.isfinite(loss):
        raise TrainingError(loss_not_finite(loss, 0.0, 0, longest))
    if optimizer.note is not None:
        job.log.write({"kind": "note", "step": 0, "text": optimizer.note})
    job.log.write(
        {
            "kind": "start",
            "step": 0,
            "total_steps": total_steps,
            "num_train": len(job.items),
            "num_trainable": sum(p.numel() for p in job.parameters.values()),
            "num_parameters": count_parameters(job.model),
            "num_shortened": sum(item.num_tokens_cut > 0 for item in job.items),
            "longest_step_seconds": time.perf_counter() - started,
            "loss_before": loss,
            "token_budget": state.token_budget,
        }
    )


def _validate(
    job: TrainingJob,
    validate: Callable[[], Validation],
    optimizer: MasterOptimizer,
    state: TrainingState,
) -> None:
    """Validate, keep the weights if they are the best so far, decide on early stopping."""
    with blamed_on_training(state.step):
        here = validate() if job.sharded is None else job.sharded.evaluate(validate)
    # One process's numbers for all, so that all go on or stop together.
    validation = on_main(lambda: here)
    job.model.train()
    losses = [validation.loss] if validation.losses is None else validation.losses.tolist()
    improved = not state.best_losses or fmean(losses) < fmean(state.best_losses)
    kept = improved or not is_worse(losses, state.best_losses)
    if improved:
        state.best_losses = losses
    if kept:
        state.best_step = state.step
        state.bad_validations = 0
        if job.settings.keep == "best":
            job.checkpoints.save_best(state.step, optimizer.weight_tensors())
    else:
        state.bad_validations += 1
        patience = job.settings.early_stopping
        state.stopped = patience is not None and state.bad_validations >= patience
    job.log.write(
        {
            "kind": "validation",
            "step": state.step,
            "loss": validation.loss,
            **validation.metrics,
            "is_kept": kept,
        }
    )
