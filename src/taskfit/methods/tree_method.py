"""What all methods share that train a causal language model through the token tree."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.special import log_softmax

from taskfit.data import Example
from taskfit.errors import PromptError, SettingsError
from taskfit.method_base import ReadsOptions
from taskfit.methods.adapted import AdaptedModel
from taskfit.methods.branches import BranchWords
from taskfit.methods.calibration import apply_prior
from taskfit.methods.method import Advance, FloatArray, MethodContext, Reading, TrainedMethod
from taskfit.methods.objective import Item
from taskfit.methods.scoring import LabelScorer, WordReader, scores_per_token
from taskfit.tasks import (
    BareEncoder,
    EncodedExample,
    PromptEncoder,
    Task,
    Tokenizer,
    option_orders,
)


class TreeMethod(AdaptedModel, TrainedMethod):
    """A trained classifier on a causal language model.

    Attributes:
        encoder: Turns examples into prompts.
    """

    def __init__(self, context: MethodContext, encoder: PromptEncoder | BareEncoder) -> None:
        """Bind model and encoder."""
        TrainedMethod.__init__(self, context)
        start = None if context.start is None else context.start.weights
        AdaptedModel.__init__(self, context.need_model(), context.settings, start=start)
        self.encoder = encoder

    def encode(self, examples: Sequence[Example]) -> Sequence[Item]:
        """Return prompts with completions as token ids."""
        return self.encoder.encode(examples)

    def readings(self, examples: Sequence[Example]) -> list[Reading]:
        """Return the prompts."""
        return [prompts_of(self.encoder, examples)]

    def rendered(self, examples: Sequence[Example]) -> list[str]:
        """Return prompts with what is learned between guillemets."""
        decode = self.model.tokenizer.decode
        return [
            f"{item.id}: {decode(item.prompt_ids.tolist())}{self.supervised(item)}"
            for item in self.encoder.encode(examples)
        ]

    @abstractmethod
    def supervised(self, item: EncodedExample) -> str:
        """Return what is learned of an item, between guillemets."""


class WordMethod(TreeMethod):
    """A trained classifier that answers with label words.

    Attributes:
        encoders: One a question.
        scorer: Reads the words of all labels of all questions.
    """

    def __init__(
        self,
        context: MethodContext,
        encoders: Mapping[str, PromptEncoder],
        words: WordReader | None = None,
    ) -> None:
        """Bind model, encoders and how words are read; None: by their joint probability."""
        super().__init__(context, next(iter(encoders.values())))
        self.encoders = encoders
        budget = context.settings.training.score_token_budget
        self.scorer = LabelScorer(
            self.model.tree,
            *encoders.values(),
            token_budget=budget,
            words=words,
            orders=other_orders(context, encoders),
        )

    def probabilities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> FloatArray:
        """Return each label's share of the probability of its question's label words, (N, L)."""
        found = self.scorer.log_probs(examples, advance=advance)
        return apply_prior(found, None, num_labels=self.scorer.num_labels)

    def by_order(
        self, examples: Sequence[Example], count: int, *, advance: Advance | None = None
    ) -> list[FloatArray]:
        """Return each question's probabilities behind each of several orders; see `InContext`."""
        orders = in_other_orders(self.scorer.encoders, count, seed=self.context.settings.seed)
        found = self.scorer.over(orders).by_order(examples, advance=advance)
        return [np.exp(log_softmax(scores, axis=2)) for scores in found]

    def readings(self, examples: Sequence[Example]) -> list[Reading]:
        """Return the prompts of each question."""
        return [prompts_of(encoder, examples) for encoder in self.scorer.prompts]

    def notes(self) -> Sequence[str]:
        """Return how words are told apart of which one starts another."""
        return end_notes(self.scorer, self.model.tokenizer)

    def weights_changed(self) -> None:
        """Drop the cached prefix."""
        self.scorer.forget_prefix()

    def gold_word(self, item: EncodedExample, encoder: PromptEncoder | None = None) -> int:
        """Return the candidate that is the gold label's first word; the first where none is."""
        owners = [candidate.label_index for candidate in (encoder or self.encoder).candidates]
        return next((c for c, label in enumerate(owners) if label == item.label_index), 0)

    def supervised(self, item: EncodedExample) -> str:
        """Return the gold label's first word, each token between guillemets."""
        return self.supervised_word(item)

    def supervised_word(self, item: EncodedExample, encoder: PromptEncoder | None = None) -> str:
        """Return the gold label's first word, each token between guillemets."""
        decode, gold = self.model.tokenizer.decode, self.gold_word(item, encoder)
        return "".join(f"«{decode([int(i)])}»" for i in item.completions[gold])


def prompts_of(encoder: PromptEncoder | BareEncoder, examples: Sequence[Example]) -> Reading:
    """Return texts as an encoder's prompts."""
    return Reading(encoder.encode(examples), encoder.max_length, encoder)


def end_notes(scorer: LabelScorer, tokenizer: Tokenizer) -> list[str]:
    """Return for each question how its words are told apart, where one starts another."""
    notes = []
    for encoder in scorer.encoders:
        if not encoder.word_starts:
            continue
        short, long = encoder.word_starts[0]
        where = f"question {encoder.task.name}: " if len(scorer.encoders) > 1 else ""
        others = len(encoder.word_starts) - 1
        more = f" ({others} more such pair{'s' * (others > 1)})" if others else ""
        notes.append(
            f"{where}{short!r} starts {long!r}{more}: {_told_apart(scorer, encoder, tokenizer)}"
        )
    return notes


def _told_apart(scorer: LabelScorer, encoder: PromptEncoder, tokenizer: Tokenizer) -> str:
    if isinstance(scorer.words, BranchWords):
        end = tokenizer.decode([scorer.words.end_id or 0])
        return f"where a word may end, {end!r} is one of the tokens that it is decided by"
    if encoder.end_id is None:
        return (
            "nothing in the prompt says where a word ends, so the longer one can never be more "
            "probable; choose other words"
        )
    end = tokenizer.decode([encoder.end_id])
    told = f"every word is scored with the {end!r} that follows it"
    if scorer.length_normalization is not None:
        return told
    if scores_per_token(encoder, None):
        told += ", and per token, since no demonstration shows how answers end"
    # Several questions have no calibration.
    alone = len(scorer.encoders) == 1
    return told + "; method.calibration=batch mostly tells them apart better" * alone


def prompt_encoders(
    context: MethodContext, demonstrations: Sequence[Example], *, marks_ends: bool
) -> dict[str, PromptEncoder]:
    """Return the encoder of each question of the context's task, by name; see `prompt_encoder`.

    Raises:
        PromptError: If the words of a question cannot be told apart by the model's tokens.
    """
    encoders = {}
    for name, task in context.asked.tasks.items():
        try:
            encoders[name] = prompt_encoder(context, task, demonstrations, marks_ends=marks_ends)
        except PromptError as error:
            raise PromptError(f"Question {name}: {error}" if name else str(error)) from error
    return encoders


def other_orders(
    context: MethodContext, encoders: Mapping[str, PromptEncoder]
) -> list[list[PromptEncoder]]:
    """Return for each question its encoders of further orders of its options.

    Raises:
        SettingsError: If orders are asked for, and no prompt lists options.
    """
    settings = context.settings.method
    count = settings.option_orders if isinstance(settings, ReadsOptions) else 1
    if count > 1:
        need_options(context.asked.tasks.values(), f"method.option_orders={count}")
    return in_other_orders(list(encoders.values()), count, seed=context.settings.seed)


def in_other_orders(
    encoders: Sequence[PromptEncoder], count: int, *, seed: int
) -> list[list[PromptEncoder]]:
    """Return encoders of the same prompts with options in other orders; see `option_orders`."""
    return [
        [
            encoder.for_task(task, demonstrations=encoder.demonstrations)
            for task in option_orders(encoder.task, count, seed=seed)[1:]
        ]
        for encoder in encoders
    ]


def need_options(tasks: Iterable[Task], setting: str) -> None:
    """Raise unless the prompt of a task lists options.

    Args:
        tasks: Questions of a run.
        setting: What would do nothing else.

    Raises:
        SettingsError: Saying how a prompt lists them.
    """
    if not any(task.names_options for task in tasks):
        raise SettingsError(
            f"{setting}: the prompt lists no options whose order could be changed. Write "
            "{options} where it shall list them, such as task.instruction="
            '"Which topic is it: {options:or}?", '
            "or leave the setting out."
        )


def prompt_encoder(
    context: MethodContext,
    task: Task,
    demonstrations: Sequence[Example],
    *,
    end_id: int | None = None,
    marks_ends: bool = False,
) -> PromptEncoder:
    """Return an encoder for the context's model under its limit of length; see `PromptEncoder`."""
    model = context.need_model()
    limit = model.tree.max_length
    return PromptEncoder(
        model.tokenizer,
        task,
        demonstrations,
        max_length=min(limit, context.settings.model.max_length or limit),
        end_id=end_id,
        marks_ends=marks_ends and context.marks_ends,
    )
