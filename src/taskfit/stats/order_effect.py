"""How much answers hang on the order in which a prompt lists its options.

Legend: O orders, N examples, L labels.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from taskfit.stats.arrays import FloatArray, IntArray
from taskfit.stats.bootstrap import percentile_interval, resample


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over examples with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class OrderEffect:
    """What other orders of the options change.

    Attributes:
        num_examples: N.
        num_orders: O, the given order among them.
        flips: Share of answers in other orders that are not the answer in the given order.
        changed: Share of examples whose answer changes in any other order.
        total_variation: Mean total variation between the probabilities in another order and in the
            given one: half the sum of absolute differences, 0 to 1.
        first: By how much more often than expected the option listed first is chosen.
        last: The same for the option listed last.
        accuracies: Of each order, the given one first; empty where no labels are known.
        mean_accuracy: Of the mean of all orders' probabilities; None where no labels are known.
    """

    num_examples: int
    num_orders: int
    flips: Mean
    changed: float
    total_variation: Mean
    first: Mean
    last: Mean
    accuracies: tuple[float, ...] = ()
    mean_accuracy: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "OrderEffect":
        """Return it from JSON values."""
        estimates = {
            name: Mean(**data[name]) for name in ("flips", "total_variation", "first", "last")
        }
        return cls(**{**data, **estimates, "accuracies": tuple(data["accuracies"])})


def order_effect(
    probabilities: FloatArray, orders: IntArray, *, gold: IntArray | None = None, seed: int = 0
) -> OrderEffect:
    """Compare the answers to the same examples behind options in different orders.

    A place is preferred where the option that stands there is chosen more often than answers that
    do not hang on the order would: the expectation takes each example's answers in all orders, and
    asks in how many of the orders each of them stands at that place. Where every option stands at
    every place equally often, it is 1 / L.

    Args:
        probabilities: Of the labels, the given order first, (O, N, L); O at least 2.
        orders: Label at each place of each order, (O, L).
        gold: Indices of the right labels, (N,); None: they are not known.
        seed: Of the bootstrap over examples.
    """
    answers = probabilities.argmax(axis=2)  # (O, N)
    generator = np.random.default_rng([seed, 9])

    def mean(values: FloatArray) -> Mean:
        """Take one value an example, (N,)."""
        drawn = resample(lambda rows: values[rows].mean(axis=1), len(values), generator)
        return Mean(float(values.mean()), *percentile_interval(drawn))

    def preferred(place: int) -> FloatArray:
        listed = orders[:, place]  # (O,)
        chosen = (answers == listed[:, None]).mean(axis=0)
        expected = (answers[:, None] == listed[None, :, None]).mean(axis=(0, 1))
        return np.asarray(chosen - expected)

    flipped = answers[1:] != answers[:1]
    distances = np.abs(probabilities[1:] - probabilities[:1]).sum(axis=2) / 2
    return OrderEffect(
        num_examples=answers.shape[1],
        num_orders=len(answers),
        flips=mean(flipped.mean(axis=0)),
        changed=float(flipped.any(axis=0).mean()),
        total_variation=mean(distances.mean(axis=0)),
        first=mean(preferred(0)),
        last=mean(preferred(-1)),
        accuracies=() if gold is None else tuple((answers == gold).mean(axis=1).tolist()),
        mean_accuracy=(
            None
            if gold is None
            else float((probabilities.mean(axis=0).argmax(axis=1) == gold).mean())
        ),
    )
