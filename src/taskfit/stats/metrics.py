"""Metrics of a classifier's probabilities, with intervals.

Legend: N examples, C classes, B bootstrap resamples.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats
from sklearn.metrics import confusion_matrix, f1_score, log_loss

from taskfit.stats.arrays import BoolArray, FloatArray, IntArray
from taskfit.stats.bootstrap import percentile_interval, resample, resample_counts

METRICS = ("accuracy", "mcc", "macro_f1")
NUM_BINS = 15
# Probabilities are clipped here before taking logarithms, so that one certain mistake costs 35 nats
# and not infinity.
SMALLEST = 1e-15


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well probabilities fit the gold labels of one evaluation set.

    Attributes:
        num_examples: N.
        accuracy: Share of examples whose most probable label is right.
        mcc: Matthews correlation coefficient, multi-class (Gorodkin 2004).
        macro_f1: F1 averaged over the classes that occur in gold or predictions.
        log_loss: Mean of -log p(gold) (nats).
        ece: Expected calibration error, 15 equal-width bins over the top label's probability
            (Guo et al. 2017, equation 3).
        confusion_matrix: Counts, rows gold, columns predicted, in the order of `labels`.
        labels: Names of the classes.
        intervals: 95 % interval of each metric over examples: Wilson 1927 for accuracy, the
            bootstrap for the others.
        num_unanswered: Examples to which the method gave no answer. They count as wrong in every
            metric (as an answer that is never right), with even odds in log loss, and stand in no
            column of the confusion matrix.
        multi_label: Whether an example may have several labels; see `evaluate_multi_label`.
    """

    num_examples: int
    accuracy: float
    mcc: float
    macro_f1: float
    log_loss: float
    ece: float
    confusion_matrix: list[list[int]]
    labels: list[str]
    intervals: dict[str, tuple[float, float]]
    num_unanswered: int = 0
    multi_label: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Evaluation":
        """Make an evaluation from `to_dict`."""
        intervals = {name: (low, high) for name, (low, high) in data["intervals"].items()}
        return cls(**{**data, "intervals": intervals})


@dataclass(frozen=True, slots=True)
class Reliability:
    """Confidence against accuracy by bin; bins without examples are left out.

    Attributes:
        confidence: Mean probability of the top label, (bins,).
        accuracy: Share of right answers, (bins,).
        count: Examples, (bins,).
    """

    confidence: FloatArray
    accuracy: FloatArray
    count: IntArray


def evaluate_probabilities(
    probabilities: FloatArray, gold: IntArray, *, labels: Sequence[str], seed: int = 0
) -> Evaluation:
    """Measure probabilities against gold labels.

    Args:
        probabilities: Rows sum to 1, or are NaN where there is no answer, (N, C).
        gold: Indices of the right classes, (N,).
        labels: Names of the C classes.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If there is no example, shapes do not fit, or a probability is not finite.
    """
    if probabilities.shape != (len(gold), len(labels)) or not len(gold):
        raise ValueError(
            f"{probabilities.shape} probabilities do not fit {len(gold)} examples of "
            f"{len(labels)} classes; both must be there, a row an example, a column a class."
        )
    unanswered: BoolArray = np.asarray(np.isnan(probabilities).all(axis=1))
    if not np.isfinite(probabilities[~unanswered]).all():
        raise ValueError("Some probabilities are not finite.")
    # Even odds where there is no answer.
    filled = np.where(unanswered[:, None], 1 / len(labels), probabilities)
    # No answer is one more class, the last, which is never the right one.
    predicted = np.where(unanswered, len(labels), filled.argmax(axis=1))
    classes = np.arange(len(labels) + 1)
    clipped = np.clip(filled, SMALLEST, 1.0)
    clipped /= clipped.sum(axis=1, keepdims=True)
    matrix = confusion_matrix(gold, predicted, labels=classes)
    hits, of_gold, of_predicted = (
        x[None].astype(np.float64) for x in (np.diag(matrix), matrix.sum(1), matrix.sum(0))
    )
    answered, right = ~unanswered, predicted == gold
    present = np.setdiff1d(np.union1d(gold, predicted), [len(labels)])
    return Evaluation(
        num_examples=len(gold),
        accuracy=float(right.mean()),
        # scikit-learn's warns where gold and predictions are one class.
        mcc=float(mcc_from_counts(hits, of_gold, of_predicted, len(gold))[0]),
        macro_f1=float(f1_score(gold, predicted, labels=present, average="macro", zero_division=0)),
        log_loss=float(log_loss(gold, clipped, labels=classes[:-1])),
        ece=binned_error(filled[answered].max(axis=1), right[answered]),
        confusion_matrix=matrix[:-1, :-1].tolist(),
        labels=list(labels),
        intervals=_bootstrap(clipped, gold, predicted, len(labels) + 1, seed),
        num_unanswered=int(unanswered.sum()),
    )


def reliability(probabilities: FloatArray, gold: IntArray) -> Reliability:
    """Return accuracy by bins of confidence, 15 of equal width; (N, C) and (N,)."""
    confidence = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == gold).astype(float)
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    count = np.bincount(bins, minlength=NUM_BINS)
    used = count > 0
    return Reliability(
        confidence=np.bincount(bins, confidence, NUM_BINS)[used] / count[used],
        accuracy=np.bincount(bins, right, NUM_BINS)[used] / count[used],
        count=count[used],
    )


def binned_error(confidence: FloatArray, right: BoolArray) -> float:
    """Return the expected calibration error of confidences, (N,), and whether each was right.

    0 where nothing was answered.
    """
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    # Of each bin the sum of differences; the bin's share of N cancels its mean.
    gaps = np.bincount(bins, right - confidence, NUM_BINS)
    return float(np.abs(gaps).sum() / max(len(confidence), 1))


def _bootstrap(
    probabilities: FloatArray, gold: IntArray, predicted: IntArray, num_classes: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Return 95 % intervals: of accuracy Wilson's, of the others percentiles over resamples.

    MCC and F1 depend on the confusion matrix only, so its cells are resampled instead of the
    examples. Resamples of nothing but right answers are all alike, which would say that no text
    like these is ever wrong; there the low ends are those of Wilson's share of mistakes, spread
    evenly over the wrong classes.
    """
    generator = np.random.default_rng(seed)
    cells = np.bincount(gold * num_classes + predicted, minlength=num_classes**2)
    used = np.flatnonzero(cells)
    counts = np.concatenate(list(resample_counts(cells[used], generator)))
    rows, columns = np.divmod(used, num_classes)  # gold and predicted class of each cell
    per_class = np.eye(num_classes)
    gold_counts = counts @ per_class[rows]  # (B, C)
    predicted_counts = counts @ per_class[columns]
    hits = counts @ (per_class[rows] * (rows == columns)[:, None])
    losses = -np.log(probabilities[np.arange(len(gold)), gold])
    share = binomial_interval(int((gold == predicted).sum()), len(gold), method="wilson")
    statistics = {
        "mcc": mcc_from_counts(hits, gold_counts, predicted_counts, len(gold)),
        # The last class is no answer, which has no F1 of its own.
        "macro_f1": macro_f1_from_counts(
            hits[:, :-1], gold_counts[:, :-1], predicted_counts[:, :-1]
        ),
        "log_loss": resample(lambda drawn: losses[drawn].mean(axis=1), len(gold), generator),
    }
    intervals = {name: percentile_interval(values) for name, values in statistics.items()}
    if (gold == predicted).all() and len(used) > 1:
        matrix = with_mistakes(np.bincount(gold, minlength=num_classes - 1), 1 - share[0])
        sums = np.diag(matrix)[None], matrix.sum(1)[None], matrix.sum(0)[None]
        intervals["mcc"] = (float(mcc_from_counts(*sums, len(gold))[0]), 1.0)
        intervals["macro_f1"] = (float(macro_f1_from_counts(*sums)[0]), 1.0)
    return {"accuracy": share, **intervals}


def with_mistakes(gold: IntArray, share: float) -> FloatArray:
    """Return the confusion matrix (C, C) of `gold` examples of each class (C,), C above 1.

    A share of each class's examples is spread evenly over the other classes.
    """
    wrong = gold * share / (len(gold) - 1)
    matrix = np.repeat(wrong[:, None], len(gold), axis=1)
    np.fill_diagonal(matrix, gold * (1 - share))
    return matrix


def mcc_from_counts(
    hits: FloatArray, gold: FloatArray, predicted: FloatArray, total: int
) -> FloatArray:
    """Return Gorodkin's multi-class MCC of many confusion matrices, each (B, C); 0 if undefined."""
    covariance = hits.sum(1) * total - (gold * predicted).sum(1)
    spread = (total**2 - (predicted**2).sum(1)) * (total**2 - (gold**2).sum(1))
    mcc: FloatArray = np.zeros(len(hits))
    np.divide(covariance, np.sqrt(spread), out=mcc, where=spread > 0)
    return mcc


def macro_f1_from_counts(hits: FloatArray, gold: FloatArray, predicted: FloatArray) -> FloatArray:
    """Return macro F1 over the classes present, of many confusion matrices, each (B, C)."""
    both = gold + predicted
    f1 = np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0)
    return np.asarray(f1.sum(1) / np.maximum((both > 0).sum(1), 1))


def binomial_interval(
    successes: int, trials: int, *, method: Literal["wilson", "exact"]
) -> tuple[float, float]:
    """Return the 95 % interval of a share.

    Args:
        successes: What is counted.
        trials: Among which, at least one.
        method: `wilson` (Wilson 1927), or `exact` (Clopper and Pearson 1934).
    """
    interval = stats.binomtest(successes, trials).proportion_ci(method=method)
    return float(interval.low), float(interval.high)
