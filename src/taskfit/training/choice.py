"""Which of two states of the weights is better, by the losses of the same validation examples."""

import math
from collections.abc import Sequence

import numpy as np

# Of the standard normal distribution, one-sided 5 %.
ONE_SIDED = 1.645


def is_worse(losses: Sequence[float], best: Sequence[float]) -> bool:
    """Return whether losses of examples are significantly above the best ones of the same examples.

    A paired one-sided test at 5 % (normal approximation). What a few dozen examples cannot tell
    apart is not worse: then the later weights, which have learned from more steps, are kept. The
    comparison is with the lowest mean so far, so that small steps upward do not add up.
    """
    differences = np.asarray(losses) - np.asarray(best)
    if len(differences) < 2:
        return bool(differences.mean() > 0)
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    return bool(differences.mean() > ONE_SIDED * error)
