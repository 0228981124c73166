"""Resampled examples, for the uncertainty of any number that is measured on examples.

The bootstrap of Efron 1979: examples are drawn with replacement, as many as there are, and the
spread of a number over such resamples stands for its spread over data.

Legend: N examples, U kinds of examples, B resamples, b resamples of a block.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from taskfit.stats.arrays import FloatArray, IntArray

NUM_RESAMPLES = 1000
BLOCK = 4_000_000  # numbers held at once, 32 MB


def resample(
    statistic: Callable[[IntArray], FloatArray], num_examples: int, generator: np.random.Generator
) -> FloatArray:
    """Return a statistic of resampled examples, (B, ...).

    Args:
        statistic: Takes the places of drawn examples, (b, N); returns a row a resample, (b, ...).
        num_examples: N, above 0.
        generator: Draws the examples.
    """
    return np.concatenate(
        [
            statistic(generator.integers(0, num_examples, (size, num_examples)))
            for size in _blocks(num_examples)
        ]
    )


def resample_counts(counts: IntArray, generator: np.random.Generator) -> Iterator[IntArray]:
    """Yield how often each kind of example occurs in resampled examples, (b, U) at a time.

    The same distribution as drawing the examples, at a cost that does not grow with N: what depends
    on counts alone, such as a confusion matrix, can be resampled so.

    Args:
        counts: Examples of each kind, at least one of each, (U,).
        generator: Draws the counts.
    """
    total = int(counts.sum())
    for size in _blocks(len(counts)):
        yield generator.multinomial(total, counts / total, size=size)


def percentile_interval(values: FloatArray | Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile interval of a number's resamples, (B,)."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _blocks(width: int) -> list[int]:
    """Return the resamples of each block, B in all, so that rows of this width fit in memory."""
    size = max(1, BLOCK // width)
    return [min(size, NUM_RESAMPLES - start) for start in range(0, NUM_RESAMPLES, size)]
