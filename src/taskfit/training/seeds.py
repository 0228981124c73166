"""Seeds of what is drawn in a step: functions of the run's seed and the step, nothing else."""

import numpy as np
import torch


def step_seed(seed: int, step: int, process: int = 0) -> int:
    """Return the seed of a step's dropout, well apart from its neighbours' and other processes'."""
    # SeedSequence does not tell [a, b] from [a, b, 0]: the first process draws as a single one.
    return int(np.random.SeedSequence([seed, step, process]).generate_state(1)[0])


def seed_generators(seed: int) -> None:
    """Seed what draws on the CPU and, where they are in use, on the GPUs."""
    # `torch.manual_seed` also notes, for each kind of device that is not in use, the call stack: a
    # millisecond a step.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
