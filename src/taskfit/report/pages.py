"""The page of a finished run, from what lies in its folder."""

from pathlib import Path

from taskfit.method_settings import TUNING
from taskfit.report.run_page import report_run
from taskfit.report.tuning_page import report_tuning
from taskfit.runs.records import RunResult


def write_page(folder: Path) -> None:
    """Draw the pictures of a finished run and write its `report.html`.

    Raises:
        CheckpointError: If the folder holds no finished run.
    """
    result = RunResult.load(folder)
    page = report_tuning if result.method in TUNING else report_run
    page(folder, result)
