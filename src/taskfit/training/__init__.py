"""The training loop and what it needs: optimizer, schedule, checkpoints, memory account."""

from taskfit.training.checkpoint import Checkpoints, TrainingState
from taskfit.training.compiling import compile_pays
from taskfit.training.distributed import (
    check_same,
    divided,
    first_on_each_machine,
    gather,
    is_main,
    num_processes,
    on_main,
    process_group,
    sum_over_processes,
)
from taskfit.training.log import TrainingLog
from taskfit.training.loop import TrainingJob, Validation, count_steps, train
from taskfit.training.memory import MemoryAccount
from taskfit.training.sharding import ShardedModel

__all__ = [
    "Checkpoints",
    "MemoryAccount",
    "ShardedModel",
    "TrainingJob",
    "TrainingLog",
    "TrainingState",
    "Validation",
    "check_same",
    "compile_pays",
    "count_steps",
    "divided",
    "first_on_each_machine",
    "gather",
    "is_main",
    "num_processes",
    "on_main",
    "process_group",
    "sum_over_processes",
    "train",
]
