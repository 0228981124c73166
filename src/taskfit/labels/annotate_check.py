"""What an annotator's labels are worth: agreement with people's, and calibration.

Legend: N texts, L labels, B resamples.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import cohen_kappa_score, precision_recall_fscore_support
from sklearn.model_selection import KFold, StratifiedKFold

from taskfit.stats import Evaluation, evaluate_probabilities, reliability
from taskfit.stats.arrays import FloatArray, IntArray
from taskfit.stats.bootstrap import percentile_interval, resample_counts
from taskfit.stats.metrics import Reliability, with_mistakes
from taskfit.stats.temperature import TemperatureFit, apply_temperature, fit_temperature

FOLDS = 5


@dataclass(frozen=True, slots=True)
class LabelAgreement:
    """How often the annotator gives one label, and how often it is right.

    Attributes:
        label: Its name.
        num_human: Texts that people gave it.
        precision: Share of the annotator's that are people's.
        recall: Share of people's that are the annotator's.
        f1: Their harmonic mean.
    """

    label: str
    num_human: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """An annotator against people on the same texts.

    Attributes:
        evaluation: The metrics of its probabilities; no answer counts as wrong.
        kappa: Cohen's kappa (Cohen 1960): agreement beyond what the frequencies give by chance.
        kappa_interval: Its 95 % interval, over resampled texts.
        brier: Mean squared distance of the probabilities from what people said, summed over the
            labels (Brier 1950): 0 is best; no answer counts as undecided.
        reliability: Confidence against accuracy by bins, of the texts with an answer; None: none.
        by_label: One entry a label.
    """

    evaluation: Evaluation
    kappa: float
    kappa_interval: tuple[float, float]
    brier: float
    reliability: Reliability | None
    by_label: list[LabelAgreement]


def measure_agreement(
    probabilities: FloatArray, gold: IntArray, *, labels: list[str], seed: int = 0
) -> Agreement:
    """Measure an annotator's probabilities against people's labels.

    Args:
        probabilities: Rows sum to 1, or are NaN where there is no answer, (N, L).
        gold: Indices of people's labels, (N,).
        labels: Names of the L labels.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: As `evaluate_probabilities`.
    """
    evaluation = evaluate_probabilities(probabilities, gold, labels=labels, seed=seed)
    answered = np.isfinite(probabilities[:, 0])
    filled = np.where(answered[:, None], probabilities, 1 / len(labels))
    # No answer is one more class, as in the metrics.
    predicted = np.where(answered, filled.argmax(axis=1), len(labels))
    squared = (filled - np.eye(len(labels))[gold]) ** 2
    places = np.arange(len(labels))
    columns = precision_recall_fscore_support(gold, predicted, labels=places, zero_division=0)
    kept = probabilities[answered], gold[answered]
    return Agreement(
        evaluation=evaluation,
        kappa=_kappa(gold, predicted),
        kappa_interval=_kappa_interval(gold, predicted, len(labels) + 1, evaluation, seed),
        brier=float(squared.sum(axis=1).mean()),
        reliability=reliability(*kept) if answered.any() else None,
        by_label=[
            LabelAgreement(name, int(n), float(precision), float(recall), float(f1))
            for name, precision, recall, f1, n in zip(labels, *columns, strict=True)
        ],
    )


def cross_fitted(
    probabilities: FloatArray, gold: IntArray, *, seed: int = 0
) -> tuple[FloatArray, TemperatureFit]:
    """Return probabilities at temperatures fitted without them, and that of all of them.

    Each fifth is divided by the temperature of the other four, so that what is measured on the
    result is what the temperature of all does to other texts.

    Args:
        probabilities: Rows sum to 1, or are NaN where there is no answer, (N, L).
        gold: Indices of people's labels, (N,).
        seed: Seed of the draw of the folds.
    """
    whole = fit_temperature(probabilities, gold)
    if whole.reason is not None:
        return probabilities, whole
    rarest = np.bincount(gold)[np.unique(gold)].min()
    kind = StratifiedKFold if rarest >= FOLDS else KFold
    found = probabilities.copy()
    for rest, part in kind(FOLDS, shuffle=True, random_state=seed).split(probabilities, gold):
        fitted = fit_temperature(probabilities[rest], gold[rest])
        found[part] = apply_temperature(probabilities[part], fitted.temperature)
    return found, whole


def _kappa(gold: IntArray, predicted: IntArray) -> float:
    """Return Cohen's kappa; 1 where both say one and the same label throughout."""
    if len(np.union1d(gold, predicted)) == 1:
        return 1.0
    return float(cohen_kappa_score(gold, predicted))


def _kappa_interval(
    gold: IntArray, predicted: IntArray, num_classes: int, evaluation: Evaluation, seed: int
) -> tuple[float, float]:
    """Return the 95 % percentile interval of kappa over resampled texts.

    Where all are right, resamples are too; there its low end is that of Wilson's share of
    mistakes, spread evenly over the wrong labels, as for the other metrics.
    """
    cells, counts = np.unique(gold * num_classes + predicted, return_counts=True)
    rows, columns = np.divmod(cells, num_classes)
    if (rows == columns).all() and len(cells) > 1:
        matrix = with_mistakes(counts, 1 - evaluation.intervals["accuracy"][0])
        hits, of_gold, of_predicted = np.diag(matrix).sum(), matrix.sum(1), matrix.sum(0)
        low = _kappa_of(np.array([hits]), of_gold[None], of_predicted[None], len(gold))
        return float(low[0]), 1.0
    drawn = np.concatenate(list(resample_counts(counts, np.random.default_rng(seed))))
    per_class = np.eye(num_classes)
    hits = drawn @ (rows == columns).astype(np.float64)  # (B,)
    found = _kappa_of(hits, drawn @ per_class[rows], drawn @ per_class[columns], len(gold))
    return percentile_interval(found)


def _kappa_of(hits: FloatArray, gold: FloatArray, predicted: FloatArray, total: int) -> FloatArray:
    """Return kappa of many confusion matrices: right ones (B,), sums of rows and columns (B, C)."""
    agreed, chance = hits / total, (gold * predicted).sum(axis=1) / total**2
    found = np.divide(agreed - chance, 1 - chance, out=np.ones_like(agreed), where=chance < 1)
    return np.asarray(found)
