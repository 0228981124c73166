"""What every method of adaptation is to the rest of the house.

A method is bound to a task (and mostly to a model), learns from labelled examples in steps, at
once, or not at all, and then turns texts into probabilities of the labels. Evaluation, prediction
and validation only ever call `probabilities`.

Legend: N examples, L labels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.errors import SettingsError
from taskfit.method_base import MethodSettings, TrainedInSteps
from taskfit.settings import RunSettings
from taskfit.tasks import Task

if TYPE_CHECKING:
    from torch import nn

    from taskfit.methods.objective import Item, Objective
    from taskfit.models.load import LoadedModel
    from taskfit.models.tree_model import TreeModel

FloatArray = NDArray[np.float64]
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class MethodContext:
    """What a method is made from.

    Attributes:
        settings: All settings of the run.
        task: The task.
        demonstrations: Labelled examples for the prompt, taken out of training.
        model: The causal language model, or None for methods without one.
        saved: Folder of weights that the method itself saved, to predict with; None: it is fitted.
    """

    settings: RunSettings
    task: Task
    demonstrations: Sequence[Example]
    model: "LoadedModel | None"
    saved: Path | None = None

    def need_model(self) -> "LoadedModel":
        """Return the model of a method that has one."""
        assert self.model is not None, "a method that reads a model got none"
        return self.model


@dataclass(frozen=True, slots=True)
class MethodState:
    """What a fitted method needs for prediction, besides the model's weights.

    Attributes:
        values: Plain JSON values.
        arrays: Numbers by name.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


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

    def __init__(self, context: MethodContext) -> None:
        """Bind to task and model.

        Raises:
            SettingsError: If the method cannot serve the task.
        """
        self.context = context
        self.task = context.task
        self.settings: MethodSettings = context.settings.method
        if self.task.multi_label and not self.serves_multi_label:
            raise SettingsError(
                f"method {self.settings.name} gives a text one label, but task.multi_label is set. "
                "Use head, probe, tfidf, majority or encoder."
            )

    @abstractmethod
    def probabilities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> FloatArray:
        """Return the probability of every label, (N, L).

        Rows sum to 1, unless a text may have several labels. A row of NaN is no answer.

        Args:
            examples: Texts; labels are not looked at.
            advance: Called with the number of examples just finished.
        """

    def prepare(self, train: Sequence[Example], validation: Sequence[Example]) -> None:
        """Learn what is learned at once, before any training in steps.

        Raises:
            TaskfitError: If the examples do not allow it.
        """

    def rehearse(self, examples: Sequence[Example]) -> None:
        """Predict a few examples before anything is learned, so that what will fail fails now."""

    def state(self) -> MethodState:
        """Return what prediction needs besides the model's weights."""
        return MethodState()

    def restore(self, state: MethodState) -> None:
        """Continue from `state`."""

    def report(self) -> Mapping[str, Any]:
        """Return what else is worth recording about the predictions made, as JSON values."""
        return {}

    @property
    def cached_seconds(self) -> float:
        """Return the seconds of this method's work that an earlier run did and a cache kept."""
        return 0.0

    @property
    def num_parameters(self) -> int:
        """Return the number of weights used in prediction."""
        return 0


class TrainedMethod(Method):
    """A method whose weights are trained in steps by the loop.

    Attributes:
        needs_labels: Whether the texts it is trained on must have labels.
    """

    needs_labels: ClassVar[bool] = True
    settings: TrainedInSteps

    @property
    @abstractmethod
    def module(self) -> "nn.Module":
        """Return the model in training."""

    @property
    def tree(self) -> "TreeModel | None":
        """Return what runs its token trees; None: it has none."""
        return None

    @abstractmethod
    def make_trainable(self) -> "dict[str, nn.Parameter]":
        """Choose or add the weights to train; return them by name."""

    @abstractmethod
    def encode(self, examples: Sequence[Example]) -> "Sequence[Item]":
        """Turn training examples into items of the loop."""

    @abstractmethod
    def objective(self) -> "Objective[Any]":
        """Return the loss."""

    @abstractmethod
    def tokens_run(self) -> int:
        """Return the unique tokens run so far."""

    @abstractmethod
    def save_weights(self, folder: Path) -> None:
        """Write the trained weights of the model, or its adapter, into a folder."""

    def weights_changed(self) -> None:
        """Forget what was computed with earlier weights."""

    def release(self) -> bool:
        """Take what was trained off the model; return whether the model is as it was before."""
        return False

    def compile(self) -> None:
        """Compile the layers in place, where that is possible."""

    def rendered(self, examples: Sequence[Example]) -> list[str]:
        """Return training examples as the model sees them, supervised tokens in guillemets."""
        return []
