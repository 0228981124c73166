"""Metrics, calibration and intervals: arrays in, numbers out."""

from taskfit.evaluation.metrics import (
    METRICS,
    Evaluation,
    Reliability,
    evaluate_probabilities,
    reliability,
)

__all__ = ["METRICS", "Evaluation", "Reliability", "evaluate_probabilities", "reliability"]
