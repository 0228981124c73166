"""Metrics where a text may have several labels, or none.

Legend: N examples, L labels, B bootstrap resamples.
"""

from collections.abc import Sequence

import numpy as np

from taskfit.stats.arrays import BoolArray, FloatArray, IntArray
from taskfit.stats.bootstrap import percentile_interval, resample
from taskfit.stats.metrics import (
    SMALLEST,
    Evaluation,
    binned_error,
    binomial_interval,
    with_mistakes,
)

THRESHOLD = 0.5


def evaluate_multi_label(
    probabilities: FloatArray,
    present: BoolArray,
    *,
    labels: Sequence[str],
    thresholds: FloatArray | float = THRESHOLD,
    seed: int = 0,
) -> Evaluation:
    """Measure probabilities of labels that are judged each by itself.

    Accuracy is the share of examples with exactly the right set of labels; MCC and F1 are means
    over labels, log loss the mean over examples and labels, ECE is over all of them too. The
    confusion matrix has a row a label: right absences, wrong presences, misses, hits. Log loss and
    ECE are of the probabilities, whatever the thresholds.

    Args:
        probabilities: (N, L).
        present: Which labels hold, (N, L).
        labels: Names of the L labels.
        thresholds: From which probability on a label is given: one, (L,), or (N, L).
        seed: Seed of the bootstrap over examples.

    Raises:
        ValueError: If there is no example, shapes do not fit, or a probability is not finite.
    """
    if probabilities.shape != present.shape or not len(present):
        raise ValueError(f"{probabilities.shape} probabilities do not fit {present.shape} labels.")
    if not np.isfinite(probabilities).all():
        raise ValueError("Some probabilities are not finite.")
    predicted = probabilities >= thresholds
    clipped = np.clip(probabilities, SMALLEST, 1 - SMALLEST)
    losses = -np.where(present, np.log(clipped), np.log1p(-clipped)).mean(axis=1)  # (N,)
    right = (predicted == present).all(axis=1)
    cells = _cells(predicted, present)
    matrix = _matrix(cells)
    mcc, f1 = _mcc_and_f1(matrix)
    intervals = _bootstrap(cells, right, losses, np.random.default_rng(seed))
    return Evaluation(
        num_examples=len(present),
        accuracy=float(right.mean()),
        mcc=float(mcc.mean()),
        macro_f1=float(f1.mean()),
        log_loss=float(losses.mean()),
        ece=binned_error(
            np.maximum(probabilities, 1 - probabilities).ravel(),
            ((probabilities >= THRESHOLD) == present).ravel(),
        ),
        confusion_matrix=matrix.tolist(),
        labels=list(labels),
        intervals=intervals,
        multi_label=True,
    )


def answer_metrics(predicted: BoolArray, present: BoolArray) -> dict[str, float]:
    """Return how right given labels are, without intervals; both (N, L).

    `accuracy`, `mcc` and `macro_f1` are those of `evaluate_multi_label`. `precision` is the mean
    over labels that were given to a text, `recall` over those that a text has; 0 where there is
    none.
    """
    matrix = _matrix(_cells(predicted, present))
    mcc, f1 = _mcc_and_f1(matrix)
    _, wrong, missed, hits = matrix.T
    given, there = hits + wrong, hits + missed
    return {
        "accuracy": float((predicted == present).all(axis=1).mean()),
        "mcc": float(mcc.mean()),
        "macro_f1": float(f1.mean()),
        "precision": float((hits / np.maximum(given, 1)).sum() / max((given > 0).sum(), 1)),
        "recall": float((hits / np.maximum(there, 1)).sum() / max((there > 0).sum(), 1)),
    }


def _cells(predicted: BoolArray, present: BoolArray) -> IntArray:
    """Return each of (present, predicted) as one of four cells, (N, L)."""
    return np.asarray(2 * present.astype(int) + predicted)


def _matrix(cells: IntArray) -> IntArray:
    """Return how often each cell is there, a row a label, (L, 4)."""
    return np.stack([(cells == cell).sum(axis=0) for cell in range(4)], axis=1)


def _bootstrap(
    cells: IntArray,
    right: BoolArray,
    losses: FloatArray,
    generator: np.random.Generator,
) -> dict[str, tuple[float, float]]:
    """Return 95 % intervals: of accuracy Wilson's, of the others percentiles over resamples.

    Where every answer is right, the low ends of MCC and F1 are those of Wilson's share of mistakes
    in each label, as in `evaluate_probabilities`.
    """
    in_cell = [(cells == cell).astype(np.float64) for cell in range(4)]  # (N, L)

    def measure(drawn: IntArray) -> FloatArray:  # (b, N)
        times = _times_drawn(drawn)
        counts = np.stack([times @ cell for cell in in_cell], axis=-1)  # (b, L, 4)
        mcc, f1 = _mcc_and_f1(counts)
        means = (mcc, f1, losses[drawn])
        return np.stack([values.mean(axis=1) for values in means], axis=1)

    values = resample(measure, len(cells), generator)
    columns = zip(("mcc", "macro_f1", "log_loss"), values.T, strict=True)
    intervals = {name: percentile_interval(column) for name, column in columns}
    share = binomial_interval(int(right.sum()), len(right), method="wilson")
    if right.all():
        present = (cells == 3).sum(axis=0)  # (L,)
        counts = [with_mistakes(np.array([len(cells) - n, n]), 1 - share[0]) for n in present]
        mcc, f1 = _mcc_and_f1(np.reshape(counts, (-1, 4)))
        # A label that all or none has is 0 by definition, with mistakes and without.
        intervals["mcc"] = (float(mcc.mean()), intervals["mcc"][1])
        intervals["macro_f1"] = (float(f1.mean()), intervals["macro_f1"][1])
    return {"accuracy": share, **intervals}


def _times_drawn(drawn: IntArray) -> FloatArray:
    """Return how often each example is in each resample, (b, N)."""
    size, num_examples = drawn.shape
    flat = (drawn + num_examples * np.arange(size)[:, None]).ravel()
    counts = np.bincount(flat, minlength=drawn.size).reshape(drawn.shape)
    return counts.astype(np.float64)


def _mcc_and_f1(counts: IntArray | FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return MCC and F1 of each label from its four cells, (..., L, 4); 0 where undefined."""
    tn, fp, fn, tp = np.moveaxis(counts, -1, 0).astype(np.float64)
    spread = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    mcc: FloatArray = np.zeros_like(spread)
    np.divide(tp * tn - fp * fn, spread, out=mcc, where=spread > 0)
    both = 2 * tp + fp + fn
    f1: FloatArray = np.zeros_like(both)
    np.divide(2 * tp, both, out=f1, where=both > 0)
    return mcc, f1
