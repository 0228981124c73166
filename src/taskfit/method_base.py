"""What the settings of several methods share; those of each method are in `method_settings.py`."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from taskfit.settings_base import Section

# Sections of which some methods read nothing, or a part.
GUARDED = ("tuning", "remote", "adapter", "training")
# What is kept of every run and held out in it, and how a base model is held and run.
EVERY_RUN = ("training.tensorboard", "training.trackers", "training.early_stopping")
BASE_MODEL = ("adapter.weights", "adapter.double_quantization", "training.score_token_budget")


class MethodSettings(Section):
    """What holds for every method, whether it has a setting for it or not.

    Attributes:
        reads: What it reads of the sections `GUARDED`: whole sections, or `section.key`.
        reads_with: Section -> the setting of its own, and the value, with which it reads it too.
        is_tuning: Whether it learns from rows of text, not from labels.
    """

    reads: ClassVar[tuple[str, ...]] = EVERY_RUN
    reads_with: ClassVar[Mapping[str, tuple[str, str]]] = {}
    is_tuning: ClassVar[bool] = False

    name: str
    """The method."""

    @property
    def reads_model(self) -> bool:
        """Return whether a causal language model must be loaded."""
        return True

    @property
    def shows_demonstrations(self) -> bool:
        """Return whether demonstrations stand in a prompt, and so are taken out of training."""
        return False

    @property
    def shown(self) -> int | None:
        """Return how many demonstrations are asked for; None: the task's own number."""
        return None

    @property
    def chosen_by(self) -> Literal["fixed", "random", "balanced"] | None:
        """Return how demonstrations for all texts are chosen; None: there are none such."""
        return None

    @property
    def retrieves(self) -> bool:
        """Return whether every text has demonstrations of its own."""
        return False

    @property
    def reads_bare_text(self) -> bool:
        """Return whether features are those of the text without the task's prompt."""
        return False

    @property
    def takes_prior(self) -> bool:
        """Return whether a prior is measured on training texts."""
        return False

    @property
    def blended(self) -> tuple[str, ...]:
        """Return the features of the probes that it is blended with."""
        return ()

    @property
    def read_features(self) -> tuple[str, ...]:
        """Return whose features it reads itself: `model`, or encoders."""
        return ()

    @property
    def encoders(self) -> tuple[str, ...]:
        """Return the encoders that it reads, by itself or in its blend, each once."""
        names = (*self.read_features, *self.blended)
        return tuple(dict.fromkeys(name for name in names if name != "model"))

    @property
    def word_loss(self) -> Literal["labels", "vocabulary", "branches"]:
        """Return what the loss of label words is over."""
        return "labels"


class Shows(MethodSettings):
    """A method whose prompts may show labelled examples."""

    num_demonstrations: int | None = Field(default=None, ge=0)
    """Labelled examples shown in the prompt. None: the task's own number."""
    demonstrations: Literal["fixed", "random", "balanced", "nearest"] = "balanced"
    """Which training examples those are."""

    @property
    def shown(self) -> int | None:
        """Return how many demonstrations are asked for."""
        return self.num_demonstrations

    @property
    def shows_demonstrations(self) -> bool:
        """Return that demonstrations stand in the prompt."""
        return True

    @property
    def chosen_by(self) -> Literal["fixed", "random", "balanced"] | None:
        """Return how demonstrations are chosen, unless every text has its own."""
        return None if self.demonstrations == "nearest" else self.demonstrations

    @property
    def retrieves(self) -> bool:
        """Return whether the nearest examples are shown."""
        return self.demonstrations == "nearest"


class ShowsSame(Shows):
    """A method whose prompts all show the same examples."""

    demonstrations: Literal["fixed", "random", "balanced"] = "balanced"
    """fixed: the first of the training set; random: a seeded draw; balanced: the same number of
    every class, as far as it goes. The order is seeded."""


class ReadsOptions(MethodSettings):
    """A method that reads label words behind a prompt which may list them as options."""

    option_orders: int = Field(default=1, ge=1)
    """Orders in which a prompt with `{options}`, or a question, lists its options, the given one
    first; their probabilities are averaged, in prediction as in every measurement. With as many as
    there are options every one stands at every place once. More than there are: all."""


class ReadsFeatures(ShowsSame):
    """A method that reads a text's features, in the task's prompt or by itself."""

    prompt: bool = True
    """Put the text into the task's prompt where the model reads it; false: the text alone."""

    @property
    def shows_demonstrations(self) -> bool:
        """Return whether the prompt is used."""
        return self.prompt and self.reads_model

    @property
    def reads_bare_text(self) -> bool:
        """Return whether the prompt is left out."""
        return not self.prompt


class Learns(MethodSettings):
    """A classifier that learns from labels or texts."""

    blend: list[str] | None = Field(default=None, max_length=2)
    """Average the probabilities with those of probes on these features: `model` (its last hidden
    state before training, behind the same prompt), or encoders (`minilm`, a hub id, a folder);
    weights from held-out texts where there are enough, else equal. None: no blending, except that
    `method.name=auto` takes [model, minilm]."""

    @property
    def blended(self) -> tuple[str, ...]:
        """Return the features of the probes."""
        return tuple(self.blend or ())


class WeighsClasses(MethodSettings):
    """A classifier that may weigh classes."""

    class_weights: Literal["none", "balanced"] = "none"
    """balanced: an example counts in inverse proportion to how frequent its class is in training;
    the mean weight is 1."""


class TrainedInSteps(Learns):
    """A classifier that the loop trains."""

    reads: ClassVar[tuple[str, ...]] = ("adapter", "training")

    sampling: Literal["all", "balanced"] = "all"
    """all: every example once an epoch; balanced: as many draws an epoch, each class equally often,
    with replacement."""


class TrainedOnLabels(TrainedInSteps, WeighsClasses):
    """A classifier that the loop trains with labels as targets."""

    focal_gamma: float = Field(default=0.0, ge=0)
    """Exponent of the focal loss, which gives examples that are right already less weight; 0: plain
    cross-entropy."""


class Retrieves(MethodSettings):
    """A method that looks for similar texts."""

    retriever: str = "minilm"
    """What measures the similarity of texts: `model` (the model's own hidden states), or an
    encoder: `minilm`, a hub id, a folder."""


class Generates(MethodSettings):
    """A method that may read a label out of a generated text."""

    max_new_tokens: int = Field(default=16, ge=1)
    """Most tokens of a generated answer (tokens)."""


class WithoutModel(MethodSettings):
    """A method without a causal language model here."""

    @property
    def reads_model(self) -> bool:
        """Return that no causal language model is loaded."""
        return False
