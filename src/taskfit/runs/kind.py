"""What is particular to a kind of run: labels, or answers as text.

`fit` is the same for all of them and calls these methods in their order.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from taskfit.methods.adapted import AdaptedModel
from taskfit.methods.method import Method
from taskfit.models.load import LoadedModel
from taskfit.runs.origin import Origin
from taskfit.runs.saved import Weights
from taskfit.runs.seen import Seen
from taskfit.screen import Screen
from taskfit.settings import RunSettings
from taskfit.stats import Evaluation
from taskfit.training.checkpoint import TrainingState
from taskfit.training.memory import MemoryAccount
from taskfit.training.trackers import Trackers

F = TypeVar("F")


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured on the evaluation sets.

    Attributes:
        evaluations: Metrics by set (SET/QUESTION where there are several).
        metrics: All that trackers get, by SET/METRIC.
        seconds: Time by set.
        details: What else the record keeps.
    """

    evaluations: dict[str, Evaluation]
    metrics: dict[str, float]
    seconds: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is to learn from.

    Attributes:
        num_train: Training examples.
        num_labels: Classes; 0 where there are none.
        mean_words: Words of a training text, on average.
    """

    num_train: int
    num_labels: int
    mean_words: float


class RunKind(ABC, Generic[F]):
    """A run under way.

    Attributes:
        settings: Its settings; `fit` puts those in numbers in their place once the data are read.
        folder: Its folder.
        screen: What it shows.
        name: How tables call it.
        memory: Its memory account; `fit` opens it before `load`.
        fitted: What it fits; set by `load`.
        origin: The finished run that it goes on from; set by `fit` before `read`.
    """

    origin: Origin | None = None
    memory: MemoryAccount
    fitted: F

    def __init__(self, settings: RunSettings, folder: Path, screen: Screen, name: str) -> None:
        """Keep what a run is started with."""
        self.settings = settings
        self.folder = folder
        self.screen = screen
        self.name = name

    @abstractmethod
    def read(self) -> Mapping[str, str]:
        """Read the data; return the hash of each set by name.

        Raises:
            TaskfitError: If settings or data do not allow the run.
        """

    @abstractmethod
    def seen(self) -> Seen:
        """Return which text stands in which set, for runs that go on from this one."""

    @abstractmethod
    def tell(self) -> None:
        """Say what the data are, and check what can be checked of them."""

    @property
    @abstractmethod
    def trains(self) -> bool:
        """Return whether the run trains in steps."""

    @abstractmethod
    def size(self) -> Size:
        """Return how much there is to learn from, by which `settle` chooses the length."""

    @abstractmethod
    def load(self, model: LoadedModel | None) -> None:
        """Load the model, unless it is given or none is read, and make what is fitted."""

    @abstractmethod
    def start(self, *, resume: bool) -> None:
        """Do what comes before training: run the longest texts once, measure what it starts from.

        Args:
            resume: Whether the run goes on.
        """

    @abstractmethod
    def train(self, trackers: Trackers) -> tuple[TrainingState, int]:
        """Fit; return where training ended and the number of weights trained."""

    @abstractmethod
    def save(self) -> None:
        """Write all that prediction needs."""

    @abstractmethod
    def measure(self, *, baselines: bool) -> Measured:
        """Measure on the evaluation sets, and write the predictions.

        Args:
            baselines: Whether the run is measured beside baselines.
        """

    @property
    @abstractmethod
    def method(self) -> Method | AdaptedModel:
        """Return what is trained or read."""

    @property
    @abstractmethod
    def model(self) -> LoadedModel | None:
        """Return the language model, or None where the method reads none."""

    @property
    @abstractmethod
    def model_name(self) -> str:
        """Return the model as the user named it."""

    @property
    @abstractmethod
    def task_name(self) -> str:
        """Return name and version of the task."""

    @property
    @abstractmethod
    def num_train(self) -> int:
        """Return how many labelled examples were learned from."""

    @property
    def num_demonstrations(self) -> int:
        """Return how many labelled examples stand in the prompt."""
        return 0

    @property
    def weights(self) -> Weights:
        """Return what was trained."""
        return self.settings.adapter.weights if self.trains else "none"

    @property
    def cached_seconds(self) -> float:
        """Return what the run would have taken in addition without cached features."""
        return 0.0

    def latency(self) -> float | None:
        """Return the median seconds to predict one text by itself; None: not measured."""
        return None

    def clean(self) -> None:
        """Remove what only resuming needs."""
