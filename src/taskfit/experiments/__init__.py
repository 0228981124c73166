"""Runs and their folders: fit, evaluate, predict, report."""

from taskfit.experiments.classifier import Classifier
from taskfit.experiments.fit import FittedRun, fit
from taskfit.experiments.predict import evaluate_file, predict_file
from taskfit.experiments.quickstart import quickstart
from taskfit.experiments.records import RunResult, write_results_csv
from taskfit.experiments.report import write_report
from taskfit.experiments.screen import Screen, SilentScreen

__all__ = [
    "Classifier",
    "FittedRun",
    "RunResult",
    "Screen",
    "SilentScreen",
    "evaluate_file",
    "fit",
    "predict_file",
    "quickstart",
    "write_report",
    "write_results_csv",
]
