"""Curate instruction data: a pipeline of named steps, each counted, each resumable."""

from taskfit.curate.pipeline import CurateResult, curate
from taskfit.curate.settings import CurateSettings, SourceSettings, load_curate_settings
from taskfit.curate.work import StepResult

__all__ = [
    "CurateResult",
    "CurateSettings",
    "SourceSettings",
    "StepResult",
    "curate",
    "load_curate_settings",
]
