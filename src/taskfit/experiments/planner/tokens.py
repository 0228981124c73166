"""The examples of a plan: real ones as token ids, or made ones of a stated length."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from taskfit.errors import SettingsError
from taskfit.experiments.planner.shapes import tokenizer_folder
from taskfit.experiments.prepare import prepare_data
from taskfit.methods import LabelWordLoss
from taskfit.methods.branches import word_reader
from taskfit.methods.objective import TreeObjective
from taskfit.methods.scoring import JointWords, WordReader
from taskfit.models import KeyValueCache, TreeModel
from taskfit.settings import ModelSettings, RunSettings
from taskfit.tasks import EncodedExample, PromptEncoder
from taskfit.training.loop import padded_tokens
from taskfit.tree import unique_tokens
from taskfit.tree.build import IntArray

SAMPLE = 2000  # examples
SCORE_TOKEN_BUDGET = 1024
# Methods that read label words off the LM head.
WORD_METHODS = ("label_words", "label_text", "in_context", "distill")
# Enough made examples for a forward pass of scoring, however short they are.
MAX_MADE = 512


@dataclass(frozen=True, slots=True)
class Workload(ABC):
    """Encoded examples, how many they stand for, and what a method runs of them.

    Attributes:
        items: A sample of the training examples.
        num_examples: Examples of an epoch.
        source: Where lengths are from, for people.
        unit: What the examples are called.
        scores_before: Whether all of them are scored once before the first step.
    """

    items: Sequence[Any]
    num_examples: int
    source: str
    unit: ClassVar[str]
    scores_before: ClassVar[bool] = False

    @property
    def prefix_ids(self) -> IntArray:
        """Return the tokens that scoring runs once and keeps, (P,)."""
        return np.empty(0, np.int64)

    @abstractmethod
    def objective(self, tree: TreeModel, settings: RunSettings) -> TreeObjective[Any]:
        """Return the method's loss, bound to a model."""

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
    """

    items: Sequence[EncodedExample]
    label_of_candidate: Sequence[int]
    prefix_length: int
    words: WordReader = field(default_factory=JointWords)
    end_id: int | None = None
    unit: ClassVar[str] = "prompts"

    @property
    def prefix_ids(self) -> IntArray:
        """Return the static start of all prompts, (P,)."""
        return self.items[0].prompt_ids[: self.prefix_length]

    def objective(self, tree: TreeModel, settings: RunSettings) -> LabelWordLoss:
        """Return the loss of label words, which serves for every method that reads them."""
        return LabelWordLoss(
            tree, self.label_of_candidate, over=_loss(settings), end_id=self.end_id
        )

    def num_read(self, piece: Sequence[EncodedExample], objective: LabelWordLoss) -> int:
        """Return the places of the words, unless the words' own rows of the head suffice."""
        return objective.num_normalized(piece)

    def score(self, tree: TreeModel, prefix: KeyValueCache | None, budget: int | None) -> None:
        """Score every label word of as many prompts as fit, the longest first."""
        chosen: list[EncodedExample] = []
        used = 0
        for item in sorted(self.items, key=lambda item: -item.num_tokens):
            every = range(len(item.completions))
            size = unique_tokens(self.words.sequences(item, every, skip=self.prefix_length))
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
    return LabelWorkload(items, examples, source, list(range(num_labels)), shared)


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
    data = prepare_data(settings)
    examples = data.train or next(iter(data.evaluations.values()), [])
    if not examples:
        raise SettingsError("There are no examples to plan for.")
    limit = int(config.get_text_config().max_position_embeddings)
    limit = min(limit, settings.model.max_length or limit)
    end_id, method = tokenizer.eos_token_id, settings.method
    encoder = PromptEncoder(
        tokenizer,
        data.task,
        data.demonstrations,
        max_length=limit,
        end_id=end_id if method.name == "label_text" else None,
    )
    items = encoder.encode([examples[i] for i in sample_of(len(examples), settings.seed)])
    if method.name not in WORD_METHODS:  # a word of one token stands for a row of the head
        ids = tuple(np.array([place]) for place in range(len(encoder.candidates)))
        items = [replace(item, completions=ids) for item in items]
    mean = float(np.mean([len(item.prompt_ids) for item in items]))
    looked = f"{len(items):,} of {len(examples):,}" if len(items) < len(examples) else "all"
    return LabelWorkload(
        items,
        len(examples),
        f"{mean:.0f} tokens a prompt on average ({looked} examples, {settings.model.name})",
        [candidate.label_index for candidate in encoder.candidates],
        _shared_start(items),
        word_reader(method, end_id=end_id),
        end_id,
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
    items, batch_size = workload.items, settings.training.batch_size
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


def _loss(settings: RunSettings) -> Literal["labels", "vocabulary", "branches"]:
    """Return what the loss of label words is normalised over."""
    return "vocabulary" if settings.method.name == "label_text" else settings.method.word_loss


def _shared_start(items: Sequence[EncodedExample]) -> int:
    """Return the tokens that all prompts start with, at least one left to each."""
    first = min((item.prompt_ids for item in items), key=len)
    length = len(first) - 1
    for item in items:
        differs = np.flatnonzero(item.prompt_ids[:length] != first[:length])
        length = int(differs[0]) if len(differs) else length
    return length
