"""The examples of a plan: real ones as token ids, or made ones of a stated length."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from taskfit.data.examples import mean_words
from taskfit.errors import SettingsError
from taskfit.methods.branches import word_reader
from taskfit.methods.label_words import LabelWordLoss
from taskfit.methods.objective import TreeObjective
from taskfit.methods.scoring import JointWords, WordReader
from taskfit.models.attention import KeyValueCache
from taskfit.models.tree_model import TreeModel
from taskfit.plan.shapes import tokenizer_folder
from taskfit.runs.prepare import PreparedData, prepare_data
from taskfit.settings import ModelSettings, RunSettings, known
from taskfit.tasks import BareEncoder, EncodedExample, PromptEncoder
from taskfit.training.loop import padded_tokens
from taskfit.tree import common_prefix_length, unique_tokens
from taskfit.tree.build import IntArray

SAMPLE = 2000  # examples
SCORE_TOKEN_BUDGET = 1024
# Methods that read label words off the LM head.
WORD_METHODS = ("label_words", "label_text", "in_context", "distill")
# Enough made examples for a forward pass of scoring, however short they are.
MAX_MADE = 512
# Of English in the vocabularies of today, about.
WORDS_PER_TOKEN = 0.75


@dataclass(frozen=True, slots=True)
class Workload(ABC):
    """Encoded examples, how many they stand for, and what a method runs of them.

    Attributes:
        items: A sample of the training examples.
        num_examples: Examples of an epoch.
        source: Where lengths are from, for people.
        validation: Held-out examples; none where examples are made.
        unit: What the examples are called.
        scores_before: Whether all of them are scored once before the first step.
    """

    items: Sequence[Any]
    num_examples: int
    source: str
    validation: Sequence[Any] = field(default=(), kw_only=True)
    unit: ClassVar[str]
    scores_before: ClassVar[bool] = False

    @property
    def prefix_ids(self) -> IntArray:
        """Return the tokens that scoring runs once and keeps, (P,)."""
        return np.empty(0, np.int64)

    @abstractmethod
    def objective(self, tree: TreeModel, settings: RunSettings) -> TreeObjective[Any]:
        """Return the method's loss, bound to a model."""

    @property
    def num_labels(self) -> int:
        """Return the number of labels; 0 where there are none."""
        return 0

    @property
    def mean_words(self) -> float:
        """Return the words of a text on average; 0 where that decides nothing."""
        return 0.0

    @abstractmethod
    def scored_groups(self, items: Sequence[Any]) -> list[Sequence[IntArray]]:
        """Return what scoring runs of examples, the static prefix left out: in one tree each."""

    @abstractmethod
    def num_read(self, piece: Sequence[Any], objective: Any) -> int:  # noqa: ANN401 - as `objective`
        """Return the nodes of a forward pass at which the whole LM head is read."""

    @abstractmethod
    def score(self, tree: TreeModel, prefix: KeyValueCache | None, budget: int | None) -> None:
        """Run the heaviest forward pass of scoring.

        Args:
            tree: The model.
            prefix: Keys and values of `prefix_ids`, if there are any.
            budget: Most unique tokens in it; None: the default of a run.
        """


@dataclass(frozen=True, slots=True)
class LabelWorkload(Workload):
    """Prompts with label words.

    Attributes:
        label_of_candidate: For every candidate word the index of its label.
        prefix_length: Tokens that all prompts start with.
        words: How scoring reads the words.
        end_id: The tokenizer's end token.
        words_of_text: Words of a text on average.
    """

    items: Sequence[EncodedExample]
    label_of_candidate: Sequence[int]
    prefix_length: int
    words: WordReader = field(default_factory=JointWords)
    end_id: int | None = None
    words_of_text: float = 0.0
    validation: Sequence[EncodedExample] = field(default=(), kw_only=True)
    unit: ClassVar[str] = "prompts"

    @property
    def prefix_ids(self) -> IntArray:
        """Return the static start of all prompts, (P,)."""
        return self.items[0].prompt_ids[: self.prefix_length]

    @property
    def num_labels(self) -> int:
        """Return the number of labels."""
        return max(self.label_of_candidate) + 1

    @property
    def mean_words(self) -> float:
        """Return the words of a text on average."""
        return self.words_of_text

    def scored_groups(self, items: Sequence[EncodedExample]) -> list[Sequence[IntArray]]:
        """Return each prompt with all label words, without the start that all prompts share."""
        return [
            self.words.sequences(item, range(len(item.completions)), skip=self.prefix_length)
            for item in items
        ]

    def objective(self, tree: TreeModel, settings: RunSettings) -> LabelWordLoss:
        """Return the loss of label words, which serves for every method that reads them."""
        return LabelWordLoss(
            tree, self.label_of_candidate, over=settings.method.word_loss, end_id=self.end_id
        )

    def num_read(self, piece: Sequence[EncodedExample], objective: LabelWordLoss) -> int:
        """Return the places of the words, unless the words' own rows of the head suffice."""
        return objective.num_normalized(piece)

    def score(self, tree: TreeModel, prefix: KeyValueCache | None, budget: int | None) -> None:
        """Score every label word of as many prompts as fit, the longest first."""
        chosen: list[EncodedExample] = []
        used, every = 0, range(len(self.items[0].completions))
        longest_first = sorted(self.items, key=lambda item: -item.num_tokens)
        for item, group in zip(longest_first, self.scored_groups(longest_first), strict=True):
            size = unique_tokens(group)
            if chosen and used + size > (budget or SCORE_TOKEN_BUDGET):
                break
            chosen.append(item)
            used += size
        self.words.log_probs(tree, chosen, [every] * len(chosen), prefix=prefix)


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch runs, and its heaviest step.

    Attributes:
        num_unique: Unique tokens of all forward passes.
        num_padded: Tokens if each batch were padded to its longest example.
        num_passes: Forward passes.
        num_read: Nodes at which the whole LM head is read.
        heaviest: The largest forward passes of one step; a second stands for all further ones.
        longest: Unique tokens of the largest example.
    """

    num_unique: int
    num_padded: int
    num_passes: int
    num_read: int
    heaviest: Sequence[Sequence[Any]]
    longest: int


def made_workload(
    *, tokens: int, shared: int, examples: int, batch_size: int, num_labels: int = 2
) -> LabelWorkload:
    """Make examples of equal length with label words of one token.

    Args:
        tokens: Of a prompt, without its label word.
        shared: Of these, at the start of all prompts.
        examples: Of an epoch.
        batch_size: Examples per optimizer step.
        num_labels: Label words.

    Raises:
        SettingsError: If the numbers contradict each other.
    """
    check_lengths(tokens, shared, examples)
    own = tokens - shared
    count = num_made(own, examples, batch_size)
    completions = tuple(np.array([label]) for label in range(num_labels))
    start = np.arange(shared)
    items = [
        EncodedExample(
            id=f"example {i}",
            prompt_ids=np.concatenate((start, shared + own * i + np.arange(own))),
            completions=completions,
            label_index=i % num_labels,
            num_tokens_cut=0,
            target=np.eye(num_labels)[i % num_labels],
        )
        for i in range(count)
    ]
    source = f"{tokens} tokens a prompt, {shared} shared by all (assumed)"
    return LabelWorkload(
        items,
        examples,
        source,
        list(range(num_labels)),
        shared,
        words_of_text=WORDS_PER_TOKEN * tokens,
    )


def check_lengths(tokens: int, shared: int, examples: int) -> None:
    """Refuse lengths that contradict each other.

    Raises:
        SettingsError: If they do.
    """
    if tokens < 1 or examples < 1 or not 0 <= shared < tokens:
        raise SettingsError(
            f"--tokens {tokens} --shared {shared} --examples {examples}: a prompt has at least one "
            "token and shares fewer than it has, and there is at least one example."
        )


def num_made(own: int, examples: int, batch_size: int) -> int:
    """Return how many examples to make: whole steps, and enough to fill a pass of scoring.

    Args:
        own: Tokens of an example that no other shares.
        examples: Of an epoch.
        batch_size: Examples per optimizer step.
    """
    fill = min(MAX_MADE, math.ceil(SCORE_TOKEN_BUDGET / own) + 1)
    return min(examples, math.ceil(fill / batch_size) * batch_size)


def real_workload(settings: RunSettings, config: PretrainedConfig) -> LabelWorkload | None:
    """Encode the training examples as a run would; None where no tokenizer is at hand.

    Raises:
        TaskfitError: As a run with these settings would.
    """
    tokenizer = local_tokenizer(settings.model)
    if tokenizer is None:
        return None
    settings = settings.resolved()
    data = prepare_data(settings)
    examples = data.train or next(iter(data.evaluations.values()), [])
    if not examples:
        raise SettingsError("There are no examples to plan for.")
    limit = int(config.get_text_config().max_position_embeddings)
    limit = min(limit, settings.model.max_length or limit)
    end_id, method = tokenizer.eos_token_id, settings.method
    encoder = _encoder(settings, tokenizer, data, limit)
    sample = [examples[i] for i in sample_of(len(examples), settings.seed)]
    items, held_out = encoder.encode(sample), encoder.encode(data.validation)
    label_of_candidate = [candidate.label_index for candidate in encoder.candidates]
    if method.name not in WORD_METHODS:  # a word of one token stands for a row of the head
        label_of_candidate = list(range(len(data.task.labels)))
        ids = tuple(np.array([place]) for place in label_of_candidate)
        items = [replace(item, completions=ids) for item in items]
        held_out = [replace(item, completions=ids) for item in held_out]
    mean = float(np.mean([len(item.prompt_ids) for item in items]))
    looked = f"{len(items):,} of {len(examples):,}" if len(items) < len(examples) else "all"
    return LabelWorkload(
        items,
        len(examples),
        f"{mean:.0f} tokens a prompt on average ({looked} examples, {settings.model.name})",
        label_of_candidate,
        _static_start(encoder, [*items, *held_out]),
        word_reader(method, end_id=end_id),
        end_id,
        mean_words(examples),
        validation=held_out,
    )


def _encoder(
    settings: RunSettings, tokenizer: PreTrainedTokenizerBase, data: PreparedData, limit: int
) -> PromptEncoder | BareEncoder:
    """Return the encoder of the method; `limit` is the longest prompt (tokens)."""
    method = settings.method
    if method.name not in WORD_METHODS and method.reads_bare_text:
        return BareEncoder(tokenizer, data.task, max_length=limit)
    return PromptEncoder(
        tokenizer,
        data.task,
        data.demonstrations,
        max_length=limit,
        end_id=tokenizer.eos_token_id if method.name == "label_text" else None,
    )


def sample_of(num_examples: int, seed: int) -> list[int]:
    """Return the indices of a seeded draw of examples, in their order."""
    drawn = np.random.default_rng([seed, 3]).permutation(num_examples)[:SAMPLE]
    return sorted(drawn.tolist())


def local_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase | None:
    """Return a model's tokenizer if it is on this machine; nothing is fetched."""
    folder = tokenizer_folder(settings.name)
    if folder is None and Path(settings.name).is_dir():
        folder = settings.name
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder or settings.name, revision=settings.revision, local_files_only=True
        )
    except (OSError, ValueError):
        return None
    return tokenizer if tokenizer.is_fast else None


def plan_epoch(
    workload: Workload, objective: TreeObjective[Any], settings: RunSettings, *, token_budget: int
) -> Epoch:
    """Cut an epoch into steps and forward passes as the loop does; a sample is scaled up."""
    items, batch_size = workload.items, known(settings.training.batch_size)
    order = np.random.default_rng([settings.seed, 0]).permutation(len(items))
    batches = [
        [items[i] for i in order[start : start + batch_size]]
        for start in range(0, len(items), batch_size)
    ]
    # The loop rehearses this one before it starts.
    longest = sorted(items, key=lambda item: -item.num_tokens)[:batch_size]
    unique = passes = padded = read = 0
    heaviest: tuple[tuple[int, int], list[list[Any]]] = ((-1, -1), [])
    for batch in (longest, *batches):
        pieces = [[batch[i] for i in piece] for piece in objective.plan(batch, token_budget)]
        # Tokens first: what is read of the vocabulary is read in slices.
        sizes = [
            (
                unique_tokens([ids for item in piece for ids in objective.sequences(item)]),
                workload.num_read(piece, objective),
            )
            for piece in pieces
        ]
        if max(sizes) > heaviest[0]:
            largest = pieces[sizes.index(max(sizes))]
            heaviest = (max(sizes), [largest] * min(2, len(pieces)))
        if batch is not longest:
            unique += sum(size for size, _ in sizes)
            read += sum(rows for _, rows in sizes)
            passes += len(pieces)
            padded += padded_tokens(batch)
    scale = workload.num_examples / len(items)
    return Epoch(
        num_unique=round(unique * scale),
        num_padded=round(padded * scale),
        num_passes=round(passes * scale),
        num_read=round(read * scale),
        heaviest=heaviest[1],
        longest=objective.largest(items),
    )


def _static_start(encoder: PromptEncoder | BareEncoder, items: Sequence[EncodedExample]) -> int:
    """Return the tokens that `PrefixCache` runs once, at least one left to each prompt."""
    static = [item.prompt_ids for item in encoder.content_free(["a", "0", "("])]
    start = static[0][: min(common_prefix_length(static[0], other) for other in static[1:])]
    shared = min(common_prefix_length(start, item.prompt_ids) for item in items)
    return min(shared, *(len(item.prompt_ids) - 1 for item in items))
