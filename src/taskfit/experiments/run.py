"""A run under way: what its stages hand to each other."""

from dataclasses import dataclass
from pathlib import Path

from taskfit.experiments.classifier import Classifier
from taskfit.experiments.prepare import PreparedData
from taskfit.experiments.screen import Screen
from taskfit.settings import RunSettings
from taskfit.training import MemoryAccount


@dataclass(slots=True)
class Run:
    """A run under way.

    Attributes:
        settings: Its settings.
        folder: Its folder.
        data: Its examples.
        classifier: What it fits.
        memory: Its memory account.
        screen: What it shows.
        name: How tables call it.
        started: When it started (time.perf_counter).
    """

    settings: RunSettings
    folder: Path
    data: PreparedData
    classifier: Classifier
    memory: MemoryAccount
    screen: Screen
    name: str
    started: float
