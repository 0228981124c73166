"""Everything `taskfit inspect` tells: the check-up, duplicates, and what prefix sharing saves."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from taskfit.data import Overlap
from taskfit.data.examples import mean_words
from taskfit.errors import ModelError, SettingsError
from taskfit.method_settings import as_method
from taskfit.models.packaged import is_packaged, locate_model, packaged_tokenizer, readable
from taskfit.runs.prepare import PreparedData, prepare_data, sets_by_name
from taskfit.settings import ModelSettings, RunSettings, known
from taskfit.tasks import Checkup, EncodedExample, PromptEncoder, Task, check_up
from taskfit.training.length import settle_length
from taskfit.tree import tokens_to_run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE = 2000  # examples


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found.

    Attributes:
        task: The task as it will be used.
        model: The model whose tokenizer was used.
        checkup: What the tokenizer makes of prompt and label words.
        overlap: Duplicates, or None without training data.
        num_examples: Examples in each set.
        batch_size: Examples per optimizer step.
        padded_tokens: Tokens of one pass over the examples looked at, each padded to the longest.
        run_tokens: Tokens that the model runs for the same pass, as trees if it can.
        notes: What people should know about the data.
        refusal: Why the token tree does not serve the model, one clause, as far as its
            configuration tells; None: it may.
    """

    task: Task
    model: str
    checkup: Checkup
    overlap: Overlap | None
    num_examples: dict[str, int]
    batch_size: int
    padded_tokens: int
    run_tokens: int
    notes: tuple[str, ...] = ()
    refusal: str | None = None


def inspect_task(settings: RunSettings) -> Inspection:
    """Look at a task the way the model's tokenizer sees it; no weights are loaded.

    Of a model in a local folder the names and shapes of its weights are checked.

    Raises:
        TaskfitError: As a run with these settings would.
    """
    if settings.method.name == "auto":
        # What the default method makes of a text needs no look; prompts and label words do.
        method = as_method(settings.method, "label_words")
        settings = settings.model_copy(update={"method": method})
    data = prepare_data(settings)
    examples = data.train or next(iter(data.evaluations.values()), [])
    if not examples:
        raise SettingsError("There are no examples to inspect.")
    tokenizer, limit, refusal = look_at_model(settings.model)
    encoder = PromptEncoder(tokenizer, data.task, data.demonstrations, max_length=limit)
    # Tables are often sorted by label, so their beginning tells little.
    drawn = np.random.default_rng([settings.seed, 3]).permutation(len(examples))[:SAMPLE]
    encoded = encoder.encode([examples[i] for i in sorted(drawn)])
    settled, _ = settle_length(
        settings.resolved(),
        num_train=len(data.train),
        num_labels=len(data.task.labels),
        mean_words=mean_words(examples),
    )
    batch_size = known(settled.training.batch_size)
    padded, run = _tokens_of_pass(
        encoder, encoded, seed=settings.seed, size=batch_size, shares=refusal is None
    )
    return Inspection(
        task=data.task,
        model=settings.model.name,
        checkup=check_up(encoder, tokenizer, examples, encoded),
        overlap=data.overlap,
        num_examples=_sizes(data),
        batch_size=batch_size,
        padded_tokens=padded,
        run_tokens=run,
        notes=data.notes,
        refusal=refusal,
    )


def look_at_model(
    settings: ModelSettings,
) -> "tuple[PreTrainedTokenizerBase, int, str | None]":
    """Return the tokenizer, the longest prompt with its completion (tokens), and the refusal."""
    source = locate_model(settings.name)
    if is_packaged(settings.name):
        tokenizer, limit = packaged_tokenizer(settings.name)
        return tokenizer, min(limit, settings.max_length or limit), None

    from transformers import AutoConfig, AutoTokenizer

    from taskfit.models.causal_model import longest_sequence
    from taskfit.models.served import refusal_of

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=settings.revision)
        config = AutoConfig.from_pretrained(source, revision=settings.revision)
    except (OSError, ValueError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"The tokenizer of {settings.name!r} cannot be had: {first_line} Check the spelling "
            "and the network, or give the folder of a model that is on this machine."
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"{settings.name} has no fast tokenizer; its character offsets are needed to cut "
            "prompts from completions. Convert it with transformers' convert_slow_tokenizer."
        )
    if Path(source).is_dir():
        from taskfit.models.whole import check_files

        check_files(readable(source)[0], settings.name, settings.revision)
    limit = longest_sequence(config)
    return tokenizer, min(limit, settings.max_length or limit), refusal_of(config)


def _sizes(data: PreparedData) -> dict[str, int]:
    parts = {"train": data.train, "validation": data.validation}
    sets = sets_by_name(parts, data.evaluations)
    return {name: len(examples) for name, examples in sets.items() if examples}


def _tokens_of_pass(
    encoder: PromptEncoder,
    encoded: list[EncodedExample],
    *,
    seed: int,
    size: int,
    shares: bool,
) -> tuple[int, int]:
    """Return the tokens of the gold answers, padded and as they run, in seeded batches."""
    order = np.random.default_rng([seed, 0]).permutation(len(encoded))
    owners = [candidate.label_index for candidate in encoder.candidates]
    sequences = []
    for item in encoded:
        # A label may have several words; its first one is the answer.
        gold = item.completions[owners.index(item.label_index or 0)]
        sequences.append(np.concatenate((item.prompt_ids, gold)))
    padded = len(sequences) * max(map(len, sequences))
    run = sum(
        # The last token of an answer is predicted, but need not run.
        tokens_to_run([sequences[i][:-1] for i in order[start : start + size]], shares=shares)
        for start in range(0, len(order), size)
    )
    return padded, run
