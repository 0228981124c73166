"""The page of a finished run, from what lies in its folder."""

from pathlib import Path

from taskfit.report.run_page import report_run
from taskfit.report.tuning_page import report_tuning
from taskfit.runs.records import RunResult
from taskfit.runs.tuning.data import METHODS


def write_page(folder: Path) -> None:
    """Draw the pictures of a finished run and write its `report.html`.

    Raises:
        CheckpointError: If the folder holds no finished run.
    """
    result = RunResult.load(folder)
    page = report_tuning if result.method in METHODS else report_run
    page(folder, result)
