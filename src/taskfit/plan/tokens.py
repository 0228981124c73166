"""The examples of a plan: real ones as token ids, or made ones of a stated length."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from taskfit.data.examples import mean_words
from taskfit.errors import SettingsError
from taskfit.methods.branches import by_branch, word_reader
from taskfit.methods.label_words import LabelWordLoss
from taskfit.methods.objective import TreeObjective, padded_tokens
from taskfit.methods.reading import static_start
from taskfit.methods.scoring import WordReader
from taskfit.models.causal_model import CausalModel, longest_sequence
from taskfit.models.prefix import Prefix
from taskfit.plan.shapes import tokenizer_folder
from taskfit.runs.kind import Size
from taskfit.runs.prepare import prepare_data
from taskfit.settings import ModelSettings, RunSettings, known
from taskfit.tasks import BareEncoder, EncodedExample, PromptEncoder
from taskfit.tree import IntArray, common_prefix_length, tokens_to_run, unique_tokens

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
    """

    items: Sequence[Any]
    num_examples: int
    source: str
    validation: Sequence[Any] = field(default=(), kw_only=True)

    @property
    def unit(self) -> str:
        """Return what the examples are called."""
        return "prompts"

    @property
    def scores_before(self) -> bool:
        """Return whether all examples are scored once before the first step."""
        return False

    @property
    def prefix_ids(self) -> IntArray:
        """Return the tokens that scoring runs once and keeps, (P,)."""
        return np.empty(0, np.int64)

    @property
    def size(self) -> Size:
        """Return how much there is to learn from."""
        return Size(self.num_examples, num_labels=0, mean_words=0.0)

    @abstractmethod
    def objective(self, tree: CausalModel, settings: RunSettings) -> TreeObjective[Any]:
        """Return the method's loss, bound to a model."""

    @abstractmethod
    def scored_groups(self, items: Sequence[Any]) -> list[Sequence[IntArray]]:
        """Return what scoring runs of examples, the static prefix left out: in one tree each."""

    @abstractmethod
    def num_read(self, piece: Sequence[Any], objective: Any) -> int:  # noqa: ANN401 - as `objective`
        """Return the nodes of a forward pass at which the whole LM head is read."""

    @abstractmethod
    def score(self, tree: CausalModel, prefix: Prefix | None, budget: int | None) -> None:
        """Run the heaviest forward pass of scoring.

        Args:
            tree: The model.
            prefix: Of `prefix_ids`, if there are any.
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
        mean_words: Words of a text on average.
    """

    items: Sequence[EncodedExample]
    label_of_candidate: Sequence[int]
    prefix_length: int
    words: WordReader = field(default_factory=WordReader)
    end_id: int | None = None
    mean_words: float = 0.0
    validation: Sequence[EncodedExample] = field(default=(), kw_only=True)

    @property
    def prefix_ids(self) -> IntArray:
        """Return the static start of all prompts, (P,)."""
        return self.items[0].prompt_ids[: self.prefix_length]

    @property
    def size(self) -> Size:
        """Return how much there is to learn from."""
        num_labels = max(self.label_of_candidate) + 1
        return Size(self.num_examples, num_labels, self.mean_words)

    def scored_groups(self, items: Sequence[EncodedExample]) -> list[Sequence[IntArray]]:
        """Return each prompt with all label words, without the start that all prompts share."""
        return [
            self.words.sequences(item, range(len(item.completions)), skip=self.prefix_length)
            for item in items
        ]

    def objective(self, tree: CausalModel, settings: RunSettings) -> LabelWordLoss:
        """Return the loss of label words, which serves for every method that reads them."""
        return LabelWordLoss(
            tree, self.label_of_candidate, over=settings.method.word_loss, end_id=self.end_id
        )

    def num_read(self, piece: Sequence[EncodedExample], objective: LabelWordLoss) -> int:
        """Return the places of the words, unless the words' own rows of the head suffice."""
        return objective.num_normalized(piece)

    def score(self, tree: CausalModel, prefix: Prefix | None, budget: int | None) -> None:
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
        num_run: Tokens that all forward passes run: unique ones, where the model shares them.
        num_padded: Tokens if each batch were padded to its longest example.
        num_passes: Forward passes.
        num_read: Nodes at which the whole LM head is read.
        heaviest: The largest forward passes of one step; a second stands for all further ones.
        longest: Tokens that the largest example needs in one forward pass.
    """

    num_run: int
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
    own = tokens - shared
    count = num_made(tokens, shared, examples, own=own, batch_size=batch_size)
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
    labels, words = list(range(num_labels)), WORDS_PER_TOKEN * tokens
    return LabelWorkload(items, examples, source, labels, shared, mean_words=words)


def num_made(tokens: int, shared: int, examples: int, *, own: int, batch_size: int) -> int:
    """Return how many examples to make: whole steps, and enough to fill a pass of scoring.

    Args:
        tokens: Of a prompt.
        shared: Of these, at the start of all prompts.
        examples: Of an epoch.
        own: Tokens of an example that no other shares.
        batch_size: Examples per optimizer step.

    Raises:
        SettingsError: If the numbers contradict each other.
    """
    if tokens < 1 or examples < 1 or not 0 <= shared < tokens:
        raise SettingsError(
            f"--tokens {tokens} --shared {shared} --examples {examples}: a prompt has at least one "
            "token and shares fewer than it has, and there is at least one example."
        )
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
    method, data = settings.method, prepare_data(settings)
    examples = data.train or next(iter(data.evaluations.values()), [])
    if not examples:
        raise SettingsError("There are no examples to plan for.")
    limit = longest_sequence(config)
    limit = min(limit, settings.model.max_length or limit)
    end_id = tokenizer.eos_token_id
    encoder: PromptEncoder | BareEncoder
    if method.name not in WORD_METHODS and method.reads_bare_text:
        encoder = BareEncoder(tokenizer, data.task, max_length=limit)
    else:
        ends = end_id if method.name == "label_text" else None
        encoder = PromptEncoder(
            tokenizer,
            data.task,
            data.demonstrations,
            max_length=limit,
            end_id=ends,
            marks_ends=not by_branch(method),
        )
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
        _prefix_length(encoder, [*items, *held_out]),
        word_reader(method, end_id=end_id),
        end_id,
        mean_words(examples),
        validation=held_out,
    )


def sample_of(num_examples: int, seed: int) -> list[int]:
    """Return the indices of a seeded draw of examples, in their order."""
    drawn = np.random.default_rng([seed, 3]).permutation(num_examples)[:SAMPLE]
    return sorted(drawn.tolist())


def local_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase | None:
    """Return a model's tokenizer if it is on this machine; nothing is fetched."""
    source = tokenizer_folder(settings.name) or settings.name
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, revision=settings.revision, local_files_only=True
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
    # The loop runs this one, without an update, before it starts.
    longest = sorted(items, key=lambda item: -item.num_tokens)[:batch_size]
    run = passes = padded = read = 0
    heaviest: tuple[tuple[int, int], list[list[Any]]] = ((-1, -1), [])
    for batch in (longest, *batches):
        pieces = [[batch[i] for i in piece] for piece in objective.plan(batch, token_budget)]
        # Tokens first: what is read of the vocabulary is read in slices.
        sizes = [
            (
                tokens_to_run(
                    [ids for item in piece for ids in objective.sequences(item)],
                    shares=objective.model.shares_prefixes,
                ),
                workload.num_read(piece, objective),
            )
            for piece in pieces
        ]
        if max(sizes) > heaviest[0]:
            largest = pieces[sizes.index(max(sizes))]
            heaviest = (max(sizes), [largest] * min(2, len(pieces)))
        if batch is not longest:
            run += sum(size for size, _ in sizes)
            read += sum(rows for _, rows in sizes)
            passes += len(pieces)
            padded += padded_tokens(batch)
    scale = workload.num_examples / len(items)
    return Epoch(
        num_run=round(run * scale),
        num_padded=round(padded * scale),
        num_passes=round(passes * scale),
        num_read=round(read * scale),
        heaviest=heaviest[1],
        longest=objective.largest(items),
    )


def _prefix_length(encoder: PromptEncoder | BareEncoder, items: Sequence[EncodedExample]) -> int:
    """Return the tokens that `PrefixCache` runs once, at least one left to each prompt."""
    start = static_start(encoder)
    shared = min(common_prefix_length(start, item.prompt_ids) for item in items)
    return min(shared, *(len(item.prompt_ids) - 1 for item in items))
