"""What every method of adaptation is to the rest of the house.

A method is bound to a task (and mostly to a model), learns from labelled examples in steps, at
once, or not at all, and then turns texts into probabilities of the labels. Evaluation, prediction
and validation only ever call `probabilities`.

Legend: N examples, L labels; of several questions the labels of all, side by side.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.errors import SettingsError
from taskfit.method_base import MethodSettings, TrainedInSteps, TrainedOnLabels
from taskfit.methods.targets import balanced_weights, target_matrix
from taskfit.settings import RunSettings
from taskfit.tasks import Task
from taskfit.tasks.questions import Asked

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from taskfit.methods.losses import LossSum
    from taskfit.methods.objective import Item, Objective
    from taskfit.models.causal_model import CausalModel
    from taskfit.models.load import LoadedModel
    from taskfit.models.padded import EncodedRow
    from taskfit.tasks import BareEncoder, EncodedExample, PromptEncoder

FloatArray = NDArray[np.float64]
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class MethodState:
    """What a fitted method needs for prediction, besides the model's weights.

    Attributes:
        values: Plain JSON values.
        arrays: Numbers by name.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StartingPoint:
    """What a finished run of the same method learned, for one that goes on from there.

    Attributes:
        weights: Folder of its adapter, or of its whole model.
        labels: Names of its labels, in the order of its scores; empty for several questions.
        state: What its method needed besides the model's weights.
    """

    weights: Path
    labels: Sequence[str]
    state: MethodState


@dataclass(frozen=True, slots=True)
class MethodContext:
    """What a method is made from.

    Attributes:
        settings: All settings of the run.
        asked: The task of one question, or several questions.
        demonstrations: Labelled examples for the prompt, taken out of training.
        model: The causal language model, or None for methods without one.
        saved: Folder of weights that the method itself saved, to predict with; None: it is fitted.
        start: What training goes on from; None: the model as it is.
        marks_ends: Whether label words of which one starts another are scored with their ends, see
            `PromptEncoder`; runs of earlier versions learned them without.
    """

    settings: RunSettings
    asked: Asked
    demonstrations: Sequence[Example]
    model: "LoadedModel | None"
    saved: Path | None = None
    start: StartingPoint | None = None
    marks_ends: bool = True

    @property
    def task(self) -> Task:
        """Return the task of one question."""
        assert isinstance(self.asked, Task), "several questions for what serves one"
        return self.asked

    def need_model(self) -> "LoadedModel":
        """Return the model of a method that has one."""
        assert self.model is not None, "a method that reads a model got none"
        return self.model


@dataclass(frozen=True, slots=True)
class Reading:
    """Texts as a method reads them.

    Attributes:
        items: Each text as token ids; of an encoder perhaps only those that are long.
        max_length: Most tokens of one, its prompt and answer with it.
        encoder: What makes prompts of texts; None: they go in without one.
    """

    items: "Sequence[EncodedExample | EncodedRow]"
    max_length: int
    encoder: "PromptEncoder | BareEncoder | None" = None


class MethodTraits:
    """What every row of the table of methods says of itself, before there is data or a model.

    Attributes:
        serves_multi_label: Whether a text may have several labels.
        learns: Whether it needs labelled training examples, beyond its demonstrations.
    """

    serves_multi_label: ClassVar[bool] = False
    learns: ClassVar[bool] = True


class Method(MethodTraits, ABC):
    """A way from texts to probabilities of labels."""

    # What reads frozen features for it, if anything does: `CachedFeatures`.
    _readers: Sequence[Any] = ()

    def __init__(self, context: MethodContext) -> None:
        """Bind to task and model.

        Raises:
            SettingsError: If the method cannot serve the task.
        """
        self.context = context
        self.settings: MethodSettings = context.settings.method
        several = any(task.multi_label for task in context.asked.tasks.values())
        if several and not self.serves_multi_label:
            raise SettingsError(
                f"method {self.settings.name} gives a text one label, but task.multi_label is set. "
                "Use head, probe, tfidf, majority or encoder."
            )

    @property
    def task(self) -> Task:
        """Return the task of one question."""
        return self.context.task

    @abstractmethod
    def probabilities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> FloatArray:
        """Return the probability of every label, (N, L).

        Rows sum to 1 for each question, unless a text may have several labels. A row of NaN is no
        answer.

        Args:
            examples: Texts; labels are not looked at.
            advance: Called with the number of examples just finished.
        """

    def readings(self, examples: Sequence[Example]) -> list[Reading]:
        """Return texts as they are read: no model runs for it, and any thread may ask.

        Empty where nothing reads tokens, or prompts are only known once a model has run.
        """
        return [one for reader in self._readers for one in reader.readings(examples)]

    def prepare(self, train: Sequence[Example], validation: Sequence[Example]) -> None:
        """Learn what is learned at once, before any training in steps.

        Raises:
            TaskfitError: If the examples do not allow it.
        """

    def dry_run(self, examples: Sequence[Example]) -> None:
        """Predict a few examples before anything is learned, so that what will fail fails now."""

    def state(self) -> MethodState:
        """Return what prediction needs besides the model's weights."""
        return MethodState()

    def restore(self, state: MethodState) -> None:
        """Continue from `state`."""

    def notes(self) -> Sequence[str]:
        """Return what people should know of how it reads the task, in sentences."""
        return []

    def report(self) -> Mapping[str, Any]:
        """Return what else is worth recording about the predictions made, as JSON values."""
        return {}

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """Return what makes tokens of its texts; None where nothing does."""
        return None if self.context.model is None else self.context.model.tokenizer

    @property
    def cached_seconds(self) -> float:
        """Return the seconds of this method's work that an earlier run did and a cache kept."""
        return float(sum(reader.cached_seconds for reader in self._readers))

    @property
    def num_parameters(self) -> int:
        """Return the number of weights used in prediction."""
        return 0


class Trainable(ABC):
    """What training in steps needs of a method, whatever it makes of examples."""

    @property
    @abstractmethod
    def module(self) -> "nn.Module":
        """Return the model in training."""

    @property
    def tree(self) -> "CausalModel | None":
        """Return what runs its token trees; None: it has none."""
        return None

    @abstractmethod
    def make_trainable(self) -> "dict[str, nn.Parameter]":
        """Choose or add the weights to train; return them by name."""

    @abstractmethod
    def tokens_run(self) -> int:
        """Return the unique tokens run so far."""

    @abstractmethod
    def save_weights(self, folder: Path) -> None:
        """Write the trained weights of the model, or its adapter, into a folder."""

    def weights_changed(self) -> None:  # noqa: B027
        """Forget what was computed with earlier weights; nothing, unless a subclass keeps any."""

    def release(self) -> bool:
        """Take what was trained off the model; return whether the model is as it was before."""
        return False

    def compile(self) -> None:  # noqa: B027
        """Compile the layers in place, where that is possible."""


class TrainedMethod(Method, Trainable):
    """A method whose weights are trained in steps by the loop.

    Attributes:
        needs_labels: Whether the texts it is trained on must have labels.
    """

    needs_labels: ClassVar[bool] = True
    settings: TrainedInSteps
    # Question -> weights of its labels, where they are asked for.
    _class_weights: Mapping[str, FloatArray] = MappingProxyType({})

    def prepare(self, train: Sequence[Example], validation: Sequence[Example]) -> None:
        """Measure class weights, where they are asked for."""
        settings = self.settings
        if isinstance(settings, TrainedOnLabels) and settings.class_weights == "balanced":
            self._class_weights = {
                name: balanced_weights(
                    target_matrix([example.of(name) for example in train], task.label_names),
                    multi_label=task.multi_label,
                )
                for name, task in self.context.asked.tasks.items()
            }

    def dry_run(self, examples: Sequence[Example]) -> None:
        """Predict a few examples with the weights as they are."""
        self.probabilities(examples)

    def weighted(self, loss: "Callable[..., Tensor]", *, question: str = "") -> "LossSum":
        """Return a loss of `losses.py` with the class weights and focal factor of the settings."""
        import torch

        weights = None
        if question in self._class_weights:
            device = next(self.module.parameters()).device
            weights = torch.from_numpy(self._class_weights[question]).float().to(device)
        gamma = self.settings.focal_gamma if isinstance(self.settings, TrainedOnLabels) else 0.0
        return partial(loss, class_weights=weights, focal_gamma=gamma)

    @abstractmethod
    def encode(self, examples: Sequence[Example]) -> "Sequence[Item]":
        """Turn training examples into items of the loop."""

    @abstractmethod
    def objective(self) -> "Objective[Any]":
        """Return the loss."""

    def rendered(self, examples: Sequence[Example]) -> list[str]:
        """Return training examples as the model sees them, supervised tokens in guillemets."""
        return []
