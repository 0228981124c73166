"""The training loop and what it needs: optimizer, schedule, checkpoints, memory account."""

from taskfit.training.checkpoint import Checkpoints, TrainingState
from taskfit.training.compiling import compile_pays
from taskfit.training.log import TrainingLog
from taskfit.training.loop import TrainingJob, Validation, train
from taskfit.training.memory import MemoryAccount

__all__ = [
    "Checkpoints",
    "MemoryAccount",
    "TrainingJob",
    "TrainingLog",
    "TrainingState",
    "Validation",
    "compile_pays",
    "train",
]
