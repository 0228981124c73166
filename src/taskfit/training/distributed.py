"""One run in several processes, as `torchrun` starts them: who writes, who has which share.

Without `torchrun`, every function here returns what it was given and costs nothing. With it, all
processes run the same program on the same data; each takes its share of a step, of the validation
set and of the evaluation sets. The main process (rank 0) alone writes the run's folder: the others
are lent an empty one that is thrown away.

Values that steer the run go over main memory (gloo), gradients on GPUs over NCCL.
"""

import contextlib
import functools
import json
import os
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist

from taskfit.errors import (
    CheckpointError,
    DataError,
    SettingsError,
    TaskfitError,
    TrainingError,
)
from taskfit.method_settings import DistillSettings
from taskfit.methods.objective import Item, Objective
from taskfit.models.load import resolve_device, under_torchrun
from taskfit.settings import RunSettings

T = TypeVar("T")

# Others wait while the main process downloads a model or writes one; a process that died is noticed
# by torchrun, not by this.
TIMEOUT = timedelta(hours=4)
# Gradients are summed in pieces of this size, so that no second copy of all of them is needed.
BUCKET_BYTES = 32 * 2**20


@contextlib.contextmanager
def process_group(folder: Path, settings: RunSettings) -> Iterator[Path]:
    """Join the processes of one run under `torchrun`; do nothing without it.

    Args:
        folder: The run's folder.
        settings: All settings of the run.

    Yields:
        The folder that this process may write: the run's in the main process, an empty one that
        is deleted at the end in the others. Inside another `process_group`, the folder as given.

    Raises:
        SettingsError: If the settings do not suit several processes.
    """
    if not under_torchrun() or dist.is_initialized():
        yield folder
        return
    check_settings(settings)
    where = resolve_device(settings.model.device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        sections = settings.model_dump(mode="json")
        check_same("settings", {name: json.dumps(found) for name, found in sections.items()})
        if is_main():
            yield folder
        else:
            with tempfile.TemporaryDirectory(prefix="taskfit-") as scratch:
                yield Path(scratch)
        # Nobody leaves while the main process is still writing: it would lose its connections.
        _checked(dist.barrier)
    finally:
        dist.destroy_process_group()


def check_settings(settings: RunSettings) -> None:
    """Check that a run can be divided over processes.

    Raises:
        SettingsError: If not.
    """
    training, reason = settings.training, ""
    method = settings.method
    if method.name == "remote":
        reason = "method.name=remote asks a server, and every process would ask it again"
    elif isinstance(method, DistillSettings) and method.teacher == "remote":
        reason = (
            "method.teacher=remote asks a server, and every process would ask it again; ask it "
            "with `taskfit label`, and learn from its file with method.teacher=soft_labels"
        )
    elif settings.search.requested:
        reason = "a search for settings runs in one process; search first, then fit what it found"
    elif training.sharding == "full" and settings.adapter.weights == "qlora":
        reason = (
            "training.sharding=full cannot divide weights in 4 bits. Use adapter.weights=lora or "
            "full, or training.sharding=none, where every process holds the 4-bit model"
        )
    elif training.sharding == "full" and training.optimizer != "adamw":
        reason = (
            f"training.sharding=full divides the moments of training.optimizer=adamw only; "
            f"{training.optimizer} keeps them in blocks that a cut would break. Leave one of the "
            "two out"
        )
    elif training.sharding == "full" and settings.model.compile == "on":
        reason = "training.sharding=full runs its layers uncompiled. Leave model.compile out"
    if reason:
        raise SettingsError(f"Under torchrun: {reason}.")


def num_processes() -> int:
    """Return the number of processes of this run (the world size)."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return which process of the run this is, counted from 0 over all machines."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Return whether this is the process that writes and shows."""
    return rank() == 0


def on_main(action: Callable[[], T]) -> T:
    """Do something in the main process only; every process gets its result.

    Raises:
        TaskfitError: The action's own, in every process.
    """
    if num_processes() == 1:
        return action()
    outcome: list[Any] = [None, None]
    failure: Exception | None = None
    if is_main():
        try:
            outcome[0] = action()
        except Exception as error:
            failure = error
            known = isinstance(error, TaskfitError)
            outcome[1] = error if known else TrainingError(f"The main process failed: {error!r}")
    _checked(lambda: dist.broadcast_object_list(outcome, src=0))
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def first_on_each_machine(action: Callable[[], T]) -> T:
    """Do something in every process, first in one of each machine.

    What the first fetches and keeps on disk is there for the others.

    Raises:
        TaskfitError: The action's own.
    """
    if num_processes() == 1:
        return action()
    result: list[T] = []
    if int(os.environ["LOCAL_RANK"]) == 0:
        result.append(_together(action))
    else:
        _together(lambda: None)
        result.append(action())
    return result[0]


def _together(action: Callable[[], T]) -> T:
    """Do something; if it fails in one process, it fails in all."""
    failure: Exception | None = None
    result: list[T] = []
    try:
        result.append(action())
    except TaskfitError as error:
        failure = error
    failures = [found for found in gather(failure) if found is not None]
    if failures:
        raise failure or failures[0]
    return result[0]


def gather(value: T) -> list[T]:
    """Return every process's value, in the order of their ranks."""
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * num_processes()
    _checked(lambda: dist.all_gather_object(values, value))
    return values


def sum_over_processes(value: float) -> float:
    """Return the sum of every process's number, the same in all of them."""
    return _reduce(value, dist.ReduceOp.SUM)


def max_over_processes(value: float) -> float:
    """Return the largest of every process's number."""
    return _reduce(value, dist.ReduceOp.MAX)


def any_process(flag: bool) -> bool:
    """Return whether a condition holds in at least one process."""
    return max_over_processes(float(flag)) > 0


def check_same(what: str, value: Mapping[str, str]) -> None:
    """Check that all processes see the same, as the main one does.

    Args:
        what: What it is, for the message.
        value: Hashes by name.

    Raises:
        DataError: Naming a process that sees something else.
    """
    for other, found in enumerate(gather(dict(value))):
        names = sorted(name for name in {**value, **found} if value.get(name) != found.get(name))
        if names:
            raise DataError(
                f"Process {other} sees other {what} than process {rank()}: {', '.join(names)}. "
                "Every machine needs the same files under the same names."
            )


def share_of_step(items: Sequence[Item], objective: Objective[Any]) -> list[int]:
    """Return the examples of a step that this process runs.

    The step is cut into as many forward passes as there are processes, with the smallest token
    budget that allows it. As the objective packs examples of one prefix next to each other, this
    balances unique tokens and keeps shared prefixes together; it is a function of the examples.

    Returns:
        Indices of items; may be empty.
    """
    size = num_processes()
    if size == 1:
        return list(range(len(items)))
    low = high = objective.largest(items)
    while len(objective.plan(items, high)) > size:
        low, high = high + 1, high * 2
    budgets = range(low, high)
    place = bisect_left(budgets, True, key=lambda b: len(objective.plan(items, b)) <= size)
    shares = objective.plan(items, low + place)
    return shares[rank()] if rank() < len(shares) else []


def divided(
    score: Callable[[Sequence[T]], NDArray[np.float64]], examples: Sequence[T]
) -> NDArray[np.float64]:
    """Score examples, each process its share; every process gets all rows in order.

    Args:
        score: Returns one row an example, (share, L).
        examples: All examples, the same in every process, N of them.

    Returns:
        All rows, (N, L).
    """
    size = num_processes()
    if size == 1 or len(examples) < size:
        return score(examples)
    # Every size-th, so that no process has all the long texts of a sorted table.
    parts = gather(score(examples[rank() :: size]))
    rows = np.empty((len(examples), parts[0].shape[1]))
    for other, part in enumerate(parts):
        rows[other::size] = part
    return rows


def sum_tensors(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in buckets of like dtype."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        bucket.append(tensor)
        if sum(t.nbytes for t in bucket) >= BUCKET_BYTES:
            _sum_bucket(bucket)
            bucket = []
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(bucket: Sequence[Tensor]) -> None:
    if len(bucket) == 1 and bucket[0].is_contiguous():
        _checked(lambda: dist.all_reduce(bucket[0]))
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
    _checked(lambda: dist.all_reduce(flat))
    parts = torch.split(flat, [tensor.numel() for tensor in bucket])
    for tensor, part in zip(bucket, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


class TensorsOfMain(Mapping[str, Tensor]):
    """Named tensors that the main process has; asking for one brings it to every process.

    All processes ask for the same names in the same order. One at a time, so that a checkpoint is
    not held in as many copies as there are processes.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Say what there is.

        Args:
            tensors: What the main process has; not looked at in the others.
        """
        self._tensors = tensors
        self._kinds = on_main(lambda: {name: (t.shape, t.dtype) for name, t in tensors.items()})

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor on the CPU, in every process."""
        shape, dtype = self._kinds[name]
        tensor = self._tensors[name].contiguous() if is_main() else torch.empty(shape, dtype=dtype)
        # As bytes, since gloo does not know every dtype; in pieces, since it counts in 32 bits.
        for piece in torch.split(tensor.view(-1).view(torch.uint8), 2**28):
            _checked(functools.partial(dist.broadcast, piece, src=0))
        return tensor

    def __iter__(self) -> Iterator[str]:
        """Iterate over names."""
        return iter(self._kinds)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._kinds)


def _reduce(value: float, operation: Any) -> float:  # noqa: ANN401 - torch's enumeration is untyped
    if num_processes() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64)
    _checked(lambda: dist.all_reduce(tensor, operation))
    return float(tensor)


def _checked(collective: Callable[[], object]) -> None:
    """Run a collective operation; a peer that is gone is the run's end, and no traceback of ours.

    Raises:
        CheckpointError: If the connection to another process broke.
    """
    try:
        collective()
    except RuntimeError as error:
        raise CheckpointError(
            f"Another process of this run has ended ({str(error).splitlines()[0]}). Its own "
            "message says why; continue with --resume and the run's folder."
        ) from error
