"""The section `method`: how the model is adapted and read. All others are in `settings.py`.

It is a union told apart by `name`: each method has a class with the settings that it reads and no
others. What several methods read stands once, in `method_base.py`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from taskfit.method_base import (
    BASE_MODEL,
    EVERY_RUN,
    Generates,
    Learns,
    MethodSettings,
    ReadsFeatures,
    ReadsOptions,
    Retrieves,
    Shows,
    ShowsSame,
    TrainedInSteps,
    TrainedOnLabels,
    WeighsClasses,
    WithoutModel,
)

# Methods that learn from rows of text, not from labels.
TUNING = ("sft", "dpo")
TUNED = (
    *("adapter", "training", "tuning.kind", "tuning.columns", "tuning.chat_template"),
    *("tuning.num_samples", "tuning.max_new_tokens"),
)


class _Head(TrainedOnLabels, ReadsFeatures):
    start: Literal["auto", "zero", "probe", "words"] = "auto"
    """Where the linear head starts: zero: undecided; probe: a logistic regression on the model's
    features before training (Kumar et al. 2022, arXiv:2202.10054), made less sure; words: the LM
    head's rows of the label words; auto: probe for fewer than 200 training texts, which it helps,
    else zero."""


class AutoSettings(_Head):
    """What did best on data like these (docs/methods.md): head, or label_words for questions."""

    name: Literal["auto"] = "auto"


class InContextSettings(ReadsOptions, Retrieves, Shows):
    """No training: label words read behind the prompt."""

    reads: ClassVar[tuple[str, ...]] = (*EVERY_RUN, *BASE_MODEL)

    name: Literal["in_context"]
    demonstrations: Literal["fixed", "random", "balanced", "nearest"] = "balanced"
    """fixed: the first of the training set; random: a seeded draw; balanced: the same number of
    every class, as far as it goes; nearest: for each text the most similar training texts, the most
    similar last, as `method.retriever` measures it. The order is seeded."""
    prompt: bool = True
    """With retriever=model: measure the similarity of texts in the task's prompt; false: of the
    texts alone."""
    num_orders: int = Field(default=1, ge=1)
    """Seeded orders of the demonstrations whose probabilities are averaged."""
    calibration: Literal["none", "contextual", "pmi", "batch"] = "none"
    """contextual: divide by the mean over content-free inputs; pmi: divide by the probability after
    the line without text, instruction and demonstrations; batch: subtract the mean log-probability
    over training texts (up to `data.max_validation`, labels unseen)."""
    length_normalization: bool | None = None
    """Divide the log-probability of a label word by its number of tokens. None: only where a label
    word starts another one and neither demonstrations nor a chat template nor a calibration say
    how answers end."""

    @property
    def per_token(self) -> bool | None:
        """Return whether words are scored per token; None: that hangs on the words."""
        calibrated = self.calibration != "none"
        return (
            False if self.length_normalization is None and calibrated else self.length_normalization
        )

    @property
    def reads_bare_text(self) -> bool:
        """Return whether the prompt is left out where the model measures similarity."""
        return not self.prompt

    @property
    def takes_prior(self) -> bool:
        """Return whether the calibration reads training texts."""
        return self.calibration == "batch"

    @property
    def read_features(self) -> tuple[str, ...]:
        """Return what measures similarity, where it is measured."""
        return (self.retriever,) if self.retrieves else ()


class LabelWordsSettings(ReadsOptions, TrainedOnLabels, ShowsSame):
    """The prompt of in_context, trained to be followed by the label's word."""

    name: Literal["label_words"]
    loss: Literal["labels", "vocabulary", "branches"] | None = None
    """labels: over the probabilities of the task's label words; vocabulary: over the whole
    vocabulary (as in the published recipe); branches: at each branch of the tree of label words
    over the tokens that may follow, in training and in prediction. For words of one token that is
    the same as labels; for many labels of several tokens it is far cheaper. None: branches."""
    shuffle_options: bool = False
    """Train every text behind another order of the options each time it is seen, drawn by the
    seed, so that answers hang less on the order."""

    @property
    def word_loss(self) -> Literal["labels", "vocabulary", "branches"]:
        """Return what the loss is over, with the default filled in."""
        return self.loss or "branches"


class HeadSettings(_Head):
    """A linear head on the last token's hidden state, trained together with the model."""

    name: Literal["head"]


class LabelTextSettings(Generates, TrainedOnLabels, ShowsSame):
    """The label as generated text, trained with its end token."""

    name: Literal["label_text"]
    decoding: Literal["exact", "greedy", "free"] = "exact"
    """exact: the label whose text is most probable; greedy: token by token along the tree of
    labels; free: generate up to `max_new_tokens` and parse it, which may give no answer."""

    @property
    def word_loss(self) -> Literal["labels", "vocabulary", "branches"]:
        """Return that the loss is over the vocabulary."""
        return "vocabulary"


class DistillSettings(TrainedInSteps, ShowsSame):
    """A student without context learns from a teacher with it, or from one outside."""

    reads_with: ClassVar[Mapping[str, tuple[str, str]]] = {"remote": ("teacher", "remote")}

    name: Literal["distill"]
    loss: Literal["labels", "vocabulary"] | None = None
    """What of teacher and student is compared: the probabilities of the task's label words, or
    those of the whole vocabulary. None: labels."""
    calibration: Literal["none", "batch"] = "none"
    """batch: subtract the teacher's mean log-probability over training texts (up to
    `data.max_validation`, labels unseen)."""
    teacher: Literal["frozen", "self", "soft_labels", "remote"] = "frozen"
    """frozen: the model before training; self: the student itself, with context; soft_labels: the
    shares in the columns of `data.soft_labels`, such as `taskfit label` writes; remote: the
    endpoint of section `remote`, asked about every text before the first step, labels unseen."""
    contexts: Literal["fixed", "redrawn"] = "fixed"
    """Demonstrations of the teacher: the same all along, or drawn anew each step."""
    student_instruction: bool | None = None
    """Let the student keep the task's instruction; it never has demonstrations. None: yes with a
    teacher outside (soft_labels, remote), else no."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides the scores of teacher and student before the softmax."""

    @property
    def word_loss(self) -> Literal["labels", "vocabulary", "branches"]:
        """Return what the loss is over, with the default filled in."""
        return self.loss or "labels"

    @property
    def is_taught_outside(self) -> bool:
        """Return whether the teacher is another model than the student's."""
        return self.teacher in ("soft_labels", "remote")

    @property
    def keeps_instruction(self) -> bool:
        """Return whether the student sees the task's instruction."""
        given = self.student_instruction
        return self.is_taught_outside if given is None else given

    @property
    def shows_demonstrations(self) -> bool:
        """Return whether the teacher reads a prompt here."""
        return self.teacher != "soft_labels"

    @property
    def takes_prior(self) -> bool:
        """Return whether the teacher's calibration reads training texts."""
        return self.calibration == "batch"


class ProbeSettings(Learns, WeighsClasses, ReadsFeatures):
    """Logistic regression on frozen features."""

    reads: ClassVar[tuple[str, ...]] = (*EVERY_RUN, *BASE_MODEL)

    name: Literal["probe"]
    features: str = "model"
    """What the logistic regression reads: `model` (the model's own last hidden state), an encoder
    (`minilm`, a hub id, a folder), or `both`: those of the model and of MiniLM."""

    @property
    def reads_model(self) -> bool:
        """Return whether the model's own features are read."""
        return self.features in ("model", "both")

    @property
    def read_features(self) -> tuple[str, ...]:
        """Return whose features are read."""
        return ("model", "minilm") if self.features == "both" else (self.features,)


class KnnSettings(Learns, Retrieves, ReadsFeatures):
    """Nearest neighbours in frozen features vote."""

    reads: ClassVar[tuple[str, ...]] = (*EVERY_RUN, *BASE_MODEL)

    name: Literal["knn"]
    num_neighbors: int = Field(default=8, ge=1)
    """Neighbours that vote, weighted by similarity."""

    @property
    def reads_model(self) -> bool:
        """Return whether the model itself measures similarity."""
        return self.retriever == "model"

    @property
    def read_features(self) -> tuple[str, ...]:
        """Return what measures similarity."""
        return (self.retriever,)


class MajoritySettings(WithoutModel, Learns):
    """The labels' frequencies in training, without a language model."""

    name: Literal["majority"]


class TfidfSettings(WithoutModel, Learns, WeighsClasses):
    """TF-IDF with logistic regression, without a language model."""

    name: Literal["tfidf"]


class EncoderSettings(WithoutModel, TrainedOnLabels):
    """A fine-tuned encoder; all its weights are trained."""

    reads: ClassVar[tuple[str, ...]] = ("training",)

    name: Literal["encoder"]
    encoder: str = "minilm"
    """Which model: `minilm` (packaged), a hub id, or a folder."""

    @property
    def read_features(self) -> tuple[str, ...]:
        """Return the encoder that is tuned."""
        return (self.encoder,)


class RemoteMethodSettings(WithoutModel, Generates, ShowsSame):
    """An OpenAI-compatible endpoint (section `remote`)."""

    reads: ClassVar[tuple[str, ...]] = (*EVERY_RUN, "remote")

    name: Literal["remote"]


class SftSettings(MethodSettings):
    """Texts and answers learned as they are (section `tuning`)."""

    reads: ClassVar[tuple[str, ...]] = (*TUNED, "tuning.turns")
    is_tuning: ClassVar[bool] = True

    name: Literal["sft"]


class DpoSettings(MethodSettings):
    """Better and worse answers (section `tuning`)."""

    reads: ClassVar[tuple[str, ...]] = (*TUNED, "tuning.beta")
    is_tuning: ClassVar[bool] = True

    name: Literal["dpo"]


AnyMethod = Annotated[
    AutoSettings | InContextSettings | LabelWordsSettings | HeadSettings | LabelTextSettings
    | DistillSettings | ProbeSettings | KnnSettings | MajoritySettings | TfidfSettings
    | EncoderSettings | RemoteMethodSettings | SftSettings | DpoSettings,
    Field(discriminator="name"),
]  # fmt: skip

METHOD_SETTINGS: dict[str, type[MethodSettings]] = {
    get_args(kind.model_fields["name"].annotation)[0]: kind
    for kind in get_args(get_args(AnyMethod)[0])
}


def method_settings(name: str, **values: Any) -> MethodSettings:  # noqa: ANN401 - any setting
    """Return the settings of a method, checked; those that are not given have their defaults."""
    return METHOD_SETTINGS[name].model_validate({**values, "name": name})


def as_method(method: MethodSettings, name: str, **changes: Any) -> MethodSettings:  # noqa: ANN401
    """Return the settings of another method, which takes over what both read."""
    fields = METHOD_SETTINGS[name].model_fields.keys() - {"name"}
    shared = {key: value for key, value in method if key in fields}
    return method_settings(name, **{**shared, **changes})
