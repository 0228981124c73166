"""Whether two models say the same: what is compared, and how far apart they may be."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from taskfit.errors import CheckpointError

FloatArray = NDArray[np.float64]

# By number format: the largest difference of a label's probability, and the mean difference of the
# log-probability of a next token (nats). In 16 bits every product is rounded, and an adapter that
# changed little is partly rounded away, apart and merged in different ways.
TOLERANCE = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1, "q8_0": 0.1}


@dataclass(frozen=True, slots=True)
class Check:
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

    def require(self, after: str) -> "Check":
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

    def describe(self) -> str:
        """Return one line for people."""
        return (
            f"{self.what} differ by {self.difference:.1e} (allowed: {self.tolerance:g}; "
            f"{self.num_values} values)"
        )


@dataclass(frozen=True, slots=True)
class Exported:
    """What came of an export.

    Attributes:
        checks: What was compared.
        notes: Sentences about it for the card.
        told: Those of them that are said on the screen, too.
        use: What the card's example needs to know, by the names that it has there.
    """

    checks: list[Check]
    notes: list[str]
    told: list[str] = field(default_factory=list)
    use: dict[str, object] = field(default_factory=dict)


def compare(before: FloatArray, after: FloatArray, *, what: str, dtype: str) -> Check:
    """Compare probabilities (N, L), or log-probabilities of tokens (Y,).

    Args:
        before: What the run says.
        after: What the exported model says.
        what: The two that are compared, for people.
        dtype: The number format that decides the tolerance.
    """
    gap = np.abs(before - after)
    if before.ndim == 2:
        kind, difference = "probabilities", gap.max()
    else:
        kind, difference = "log-probabilities of tokens", gap.mean()
    return Check(f"{what}, {kind}", float(difference), TOLERANCE[dtype], gap.size)
