"""One run: prepare, fit, measure, predict, its folder."""

from taskfit.runs.classifier import Classifier
from taskfit.runs.fit import FittedRun, fit
from taskfit.runs.predict import evaluate_file, predict_file
from taskfit.runs.records import RunResult, write_results_csv

__all__ = [
    "Classifier",
    "FittedRun",
    "RunResult",
    "evaluate_file",
    "fit",
    "predict_file",
    "write_results_csv",
]
