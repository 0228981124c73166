"""Whether two models say the same: what is compared, and how far apart they may be."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from taskfit.errors import CheckpointError

FloatArray = NDArray[np.float64]

# Largest difference of a label's probability. In 16 bits every product is rounded, and an adapter
# that changed little is partly rounded away, apart and merged in different ways.
PROBABILITY = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}
# Mean difference of the log-probability of a next token (nats).
LOG_PROBABILITY = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1, "q8_0": 0.1}


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far two models are apart on the same texts.

    Attributes:
        what: What was compared.
        difference: The largest one of probabilities, the mean one of log-probabilities.
        tolerance: What is allowed.
        num_values: How many numbers were compared.
    """

    what: str
    difference: float
    tolerance: float
    num_values: int

    def require(self, after: str) -> "Comparison":
        """Return this, or raise if the difference is more than allowed.

        Args:
            after: What was done, for the message.

        Raises:
            CheckpointError: With both numbers.
        """
        if not self.difference <= self.tolerance:
            raise CheckpointError(
                f"The model after {after} does not say the same as the run: {self.what} differ by "
                f"{self.difference:.2g} (allowed: {self.tolerance:g}) over {self.num_values} "
                "values. Nothing was written. Give --dtype float32, or report this model."
            )
        return self

    def called(self, what: str) -> "Comparison":
        """Return the same numbers under another name."""
        return replace(self, what=what)

    def describe(self) -> str:
        """Return one line for people."""
        return (
            f"{self.what} differ by {self.difference:.1e} (allowed: {self.tolerance:g}; "
            f"{self.num_values} values)"
        )


def compare(before: FloatArray, after: FloatArray, *, form: str) -> Comparison:
    """Compare probabilities (N, L), or log-probabilities of tokens (Y,).

    Args:
        before: What the run says.
        after: What the exported model says.
        form: The number format that decides the tolerance.
    """
    gap = np.abs(before - after)
    if before.ndim == 2:
        worst = float(gap.max())
        return Comparison("probabilities", worst, PROBABILITY[form], gap.size)
    mean = float(gap.mean())
    return Comparison("log-probabilities of tokens", mean, LOG_PROBABILITY[form], gap.size)
