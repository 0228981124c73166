"""The rows of a plan for `sft` and `dpo`: real ones under a chat template, or made ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from transformers import PretrainedConfig

from taskfit.errors import SettingsError
from taskfit.methods.dpo import DpoLoss
from taskfit.methods.objective import TreeObjective
from taskfit.methods.sft import SftLoss, learned_log_probs, tokens_to_run
from taskfit.models.attention import KeyValueCache
from taskfit.models.load import LoadedModel
from taskfit.models.tree_model import TreeModel
from taskfit.plan.model import meta_model
from taskfit.plan.tokens import (
    SCORE_TOKEN_BUDGET,
    Workload,
    check_lengths,
    local_tokenizer,
    num_made,
    sample_of,
)
from taskfit.runs.tuning.data import prepare_tuning
from taskfit.runs.tuning.model import TunedModel
from taskfit.settings import RunSettings, known
from taskfit.tasks.chat import EncodedPreference, EncodedText
from taskfit.tree import IntArray, TokenTree, plan_trees


@dataclass(frozen=True, slots=True)
class TextWorkload(Workload):
    """Rows of `sft`."""

    items: Sequence[EncodedText]
    validation: Sequence[EncodedText] = field(default=(), kw_only=True)
    unit: ClassVar[str] = "rows"

    def objective(self, tree: TreeModel, settings: RunSettings) -> TreeObjective[EncodedText]:
        """Return the loss of learned tokens."""
        return SftLoss(tree)

    def scored_groups(self, items: Sequence[EncodedText]) -> list[Sequence[IntArray]]:
        """Return the tokens of each row that run."""
        return [[tokens_to_run(text)] for text in items]

    def num_read(self, piece: Sequence[EncodedText], objective: object) -> int:
        """Return the nodes that predict a learned token."""
        return _num_read(piece)

    def score(self, tree: TreeModel, prefix: KeyValueCache | None, budget: int | None) -> None:
        """Read the learned tokens of a tree, as validation does."""
        _score(tree, self.items, budget)


@dataclass(frozen=True, slots=True)
class PairWorkload(Workload):
    """Pairs of `dpo`; all are scored before the first step, for the reference."""

    items: Sequence[EncodedPreference]
    validation: Sequence[EncodedPreference] = field(default=(), kw_only=True)
    unit: ClassVar[str] = "pairs"
    scores_before: ClassVar[bool] = True

    def objective(self, tree: TreeModel, settings: RunSettings) -> TreeObjective[EncodedPreference]:
        """Return the loss of pairs; what the reference says of them changes no size."""
        reference = dict.fromkeys((item.id for item in self.items), (0.0, 0.0))
        return DpoLoss(tree, beta=settings.tuning.beta, reference=reference)

    def scored_groups(self, items: Sequence[EncodedPreference]) -> list[Sequence[IntArray]]:
        """Return the tokens of each answer that run."""
        return [[tokens_to_run(text)] for text in _answers(items)]

    def num_read(self, piece: Sequence[EncodedPreference], objective: object) -> int:
        """Return the nodes that predict a token of an answer."""
        return _num_read(_answers(piece))

    def score(self, tree: TreeModel, prefix: KeyValueCache | None, budget: int | None) -> None:
        """Read the answers of a tree, as the scoring of the reference does."""
        _score(tree, _answers(self.items), budget)


def made_rows(
    settings: RunSettings, *, tokens: int, answer_tokens: int, shared: int, examples: int
) -> TextWorkload | PairWorkload:
    """Make rows of equal length: a prompt and an answer, or two for `dpo`.

    Args:
        settings: Of the run.
        tokens: Of a prompt; of a raw text, which has none, the first token.
        answer_tokens: Learned tokens of an answer, with the end of its turn.
        shared: Tokens at the start of all prompts.
        examples: Rows of an epoch.

    Raises:
        SettingsError: If the numbers contradict each other.
    """
    check_lengths(tokens, shared, examples)
    if answer_tokens < 1:
        raise SettingsError(f"--answer-tokens {answer_tokens}: an answer has at least one token.")
    num_answers = 2 if settings.method.name == "dpo" else 1
    own = tokens - shared + num_answers * answer_tokens
    start = np.arange(shared)
    count = num_made(own, examples, known(settings.training.batch_size))

    def text(row: int, answer: int) -> EncodedText:
        first = shared + own * row
        prompt = first + np.arange(tokens - shared)
        learned = first + tokens - shared + answer_tokens * answer + np.arange(answer_tokens)
        ids = np.concatenate((start, prompt, learned))
        return EncodedText(f"row {row}", ids, np.arange(len(ids)) >= tokens)

    source = f"{tokens} tokens a prompt, {shared} shared by all"
    if num_answers == 1:
        texts = [text(row, 0) for row in range(count)]
        return TextWorkload(texts, examples, f"{source}, {answer_tokens} an answer (assumed)")
    pairs = [EncodedPreference(f"row {i}", text(i, 0), text(i, 1)) for i in range(count)]
    return PairWorkload(pairs, examples, f"{source}, {answer_tokens} an answer, of two (assumed)")


def real_rows(
    settings: RunSettings, config: PretrainedConfig
) -> TextWorkload | PairWorkload | None:
    """Encode the training rows as a run would; None where no tokenizer is at hand.

    Raises:
        TaskfitError: As a run with these settings would.
    """
    tokenizer = local_tokenizer(settings.model)
    if tokenizer is None:
        return None
    data = prepare_tuning(settings)
    # No number of the model is needed to encode, only what its configuration says.
    tree = TreeModel(meta_model(config, torch.bfloat16), verify=False)
    own = settings.model
    tuned = TunedModel(settings, LoadedModel(tree, tokenizer, own.name, own.revision))
    rows = [data.train[i] for i in sample_of(len(data.train), settings.seed)]
    items, _ = tuned.encode(rows)
    held_out = tuned.encode(data.validation, check=False)[0] if data.validation else []
    num_rows = round(len(data.train) * len(items) / len(rows))
    looked = "all" if len(rows) == len(data.train) else f"{len(rows):,} of {len(data.train):,}"
    pairs = [item for item in items if isinstance(item, EncodedPreference)]
    texts = [item for item in items if isinstance(item, EncodedText)]
    read = f"of {looked}; read as {data.format}, tokenizer of {own.name}"
    if pairs:
        source = f"{_means(_answers(pairs), 'a prompt with one answer')} {read}"
        kept_pairs = [item for item in held_out if isinstance(item, EncodedPreference)]
        return PairWorkload(pairs, num_rows, source, validation=kept_pairs)
    kept_texts = [item for item in held_out if isinstance(item, EncodedText)]
    source = f"{_means(texts, 'each')} {read}"
    return TextWorkload(texts, num_rows, source, validation=kept_texts)


def _means(texts: Sequence[EncodedText], each: str) -> str:
    tokens = float(np.mean([text.num_tokens for text in texts]))
    learned = float(np.mean([text.num_learned for text in texts]))
    return f"{tokens:.0f} tokens {each}, {learned:.0f} of them learned, on the mean"


def _answers(pairs: Sequence[EncodedPreference]) -> list[EncodedText]:
    return [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]


def _num_read(texts: Sequence[EncodedText]) -> int:
    paths = TokenTree.build([tokens_to_run(text) for text in texts]).paths
    read = [
        path[np.flatnonzero(text.is_learned) - 1] for path, text in zip(paths, texts, strict=True)
    ]
    return len(np.unique(np.concatenate(read)))


def _score(tree: TreeModel, texts: Sequence[EncodedText], budget: int | None) -> None:
    """Run the tree of some rows that has the most tokens, cut as `sequence_log_probs` cuts."""
    groups = [[tokens_to_run(text)] for text in texts]
    budget = budget or max(SCORE_TOKEN_BUDGET, *(len(ids) for (ids,) in groups))
    trees = plan_trees(groups, budget, names=[text.id for text in texts])
    chosen = [[texts[i] for i in indices] for indices in trees]
    sizes = [
        (len(TokenTree.build([tokens_to_run(text) for text in part])), _num_read(part))
        for part in chosen
    ]
    learned_log_probs(tree, chosen[sizes.index(max(sizes))])
