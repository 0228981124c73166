"""The examples of a plan: real ones as token ids, or made ones of a stated length."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from taskfit.errors import SettingsError
from taskfit.experiments.planner.shapes import tokenizer_folder
from taskfit.experiments.prepare import prepare_data
from taskfit.methods.objective import Objective
from taskfit.settings import ModelSettings, RunSettings
from taskfit.tasks import EncodedExample, PromptEncoder
from taskfit.training.loop import padded_tokens
from taskfit.tree import unique_tokens

SAMPLE = 2000  # examples
# Enough made examples for a forward pass of scoring, however short they are.
MAX_MADE = 512


@dataclass(frozen=True, slots=True)
class Workload:
    """Encoded examples and how many they stand for.

    Attributes:
        items: A sample of the training examples.
        label_of_candidate: For every candidate word the index of its label.
        num_examples: Examples of an epoch.
        prefix_length: Tokens that all prompts start with.
        source: Where lengths are from, for people.
    """

    items: Sequence[EncodedExample]
    label_of_candidate: Sequence[int]
    num_examples: int
    prefix_length: int
    source: str

    @property
    def has_single_tokens(self) -> bool:
        """Return whether every label word is one token, so that no normaliser is needed."""
        return all(len(ids) == 1 for ids in self.items[0].completions)


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch runs, and its heaviest step.

    Attributes:
        num_unique: Unique tokens of all forward passes.
        num_padded: Tokens if each batch were padded to its longest example.
        num_passes: Forward passes.
        heaviest: The largest forward passes of one step; a second stands for all further ones.
    """

    num_unique: int
    num_padded: int
    num_passes: int
    heaviest: Sequence[Sequence[EncodedExample]]


def made_workload(
    *, tokens: int, shared: int, examples: int, batch_size: int, num_labels: int = 2
) -> Workload:
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
    if tokens < 1 or examples < 1 or not 0 <= shared < tokens:
        raise SettingsError(
            f"--tokens {tokens} --shared {shared} --examples {examples}: a prompt has at least one "
            "token and shares fewer than it has, and there is at least one example."
        )
    own = tokens - shared
    count = min(examples, max(batch_size, min(MAX_MADE, math.ceil(1024 / own) + 1)))
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
    return Workload(items, list(range(num_labels)), examples, shared, source)


def real_workload(settings: RunSettings, config: PretrainedConfig) -> Workload | None:
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
    encoder = PromptEncoder(tokenizer, data.task, data.demonstrations, max_length=limit)
    drawn = np.random.default_rng([settings.seed, 3]).permutation(len(examples))[:SAMPLE]
    items = encoder.encode([examples[i] for i in sorted(drawn)])
    mean = float(np.mean([len(item.prompt_ids) for item in items]))
    looked = f"{len(items):,} of {len(examples):,}" if len(items) < len(examples) else "all"
    return Workload(
        items,
        [candidate.label_index for candidate in encoder.candidates],
        len(examples),
        _shared_start(items),
        f"{mean:.0f} tokens a prompt on average ({looked} examples, {settings.model.name})",
    )


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
    workload: Workload,
    objective: Objective[EncodedExample],
    *,
    batch_size: int,
    token_budget: int,
    seed: int,
) -> Epoch:
    """Cut an epoch into steps and forward passes as the loop does; a sample is scaled up."""
    items = workload.items
    order = np.random.default_rng([seed, 0]).permutation(len(items))
    batches = [
        [items[i] for i in order[start : start + batch_size]]
        for start in range(0, len(items), batch_size)
    ]
    # The loop rehearses this one before it starts.
    longest = sorted(items, key=lambda item: -item.num_tokens)[:batch_size]
    unique = passes = padded = 0
    heaviest: tuple[int, list[list[EncodedExample]]] = (-1, [])
    for batch in (longest, *batches):
        pieces = [[batch[i] for i in piece] for piece in objective.plan(batch, token_budget)]
        sizes = [unique_tokens([item.prompt_ids for item in piece]) for piece in pieces]
        if max(sizes) > heaviest[0]:
            largest = pieces[int(np.argmax(sizes))]
            heaviest = (max(sizes), [largest] * min(2, len(pieces)))
        if batch is not longest:
            unique += sum(sizes)
            passes += len(pieces)
            padded += padded_tokens(batch)
    scale = workload.num_examples / len(items)
    return Epoch(round(unique * scale), round(padded * scale), round(passes * scale), heaviest[1])


def _shared_start(items: Sequence[EncodedExample]) -> int:
    """Return the tokens that all prompts start with, at least one left to each."""
    first = min((item.prompt_ids for item in items), key=len)
    length = len(first) - 1
    for item in items:
        differs = np.flatnonzero(item.prompt_ids[:length] != first[:length])
        length = int(differs[0]) if len(differs) else length
    return length
