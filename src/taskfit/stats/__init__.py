"""Metrics, calibration and intervals: arrays in, numbers out."""

from taskfit.stats.metrics import (
    METRICS,
    Evaluation,
    Reliability,
    evaluate_probabilities,
    reliability,
)
from taskfit.stats.multi_label import evaluate_multi_label

__all__ = [
    "METRICS",
    "Evaluation",
    "Reliability",
    "evaluate_multi_label",
    "evaluate_probabilities",
    "reliability",
]
