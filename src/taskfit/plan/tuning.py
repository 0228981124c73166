"""The rows of a plan for `sft` and `dpo`: real ones under a chat template, or made ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig

from taskfit.errors import SettingsError
from taskfit.methods.dpo import DpoLoss
from taskfit.methods.objective import TreeObjective
from taskfit.methods.sft import SftLoss, learned_log_probs, tokens_to_run
from taskfit.models.causal_model import CausalModel
from taskfit.models.engine import causal_engine
from taskfit.models.load import LoadedModel
from taskfit.models.prefix import Prefix
from taskfit.plan.model import meta_model
from taskfit.plan.tokens import (
    SCORE_TOKEN_BUDGET,
    Workload,
    local_tokenizer,
    num_made,
    sample_of,
)
from taskfit.runs.tuning.data import prepare_tuning
from taskfit.runs.tuning.model import TunedModel
from taskfit.settings import RunSettings, known
from taskfit.tasks.chat import EncodedPreference, EncodedText
from taskfit.tree import IntArray, TokenTree, plan_trees

Rows = Sequence[EncodedText] | Sequence[EncodedPreference]


def texts_of(rows: Rows) -> list[EncodedText]:
    """Return what runs of rows: each of `sft`, both answers of each pair of `dpo`."""
    texts: list[EncodedText] = []
    for row in rows:
        texts += [row] if isinstance(row, EncodedText) else [row.chosen, row.rejected]
    return texts


@dataclass(frozen=True, slots=True)
class RowWorkload(Workload):
    """Rows of `sft`; or pairs of `dpo`, which are scored before the first step, for the reference.

    A pair runs its prompt once.
    """

    items: Rows
    validation: Rows = field(default=(), kw_only=True)

    @property
    def unit(self) -> str:
        """Return what the examples are called."""
        return "pairs" if self.scores_before else "rows"

    @property
    def scores_before(self) -> bool:
        """Return whether these are pairs."""
        return isinstance(self.items[0], EncodedPreference)

    def objective(self, tree: CausalModel, settings: RunSettings) -> TreeObjective[Any]:
        """Return the loss; what the reference says of pairs changes no size."""
        if not self.scores_before:
            return SftLoss(tree)
        reference = dict.fromkeys((item.id for item in self.items), (0.0, 0.0))
        return DpoLoss(tree, beta=settings.tuning.beta, reference=reference)

    def scored_groups(self, items: Rows) -> list[Sequence[IntArray]]:
        """Return the tokens of each text that run."""
        return [[tokens_to_run(text)] for text in texts_of(items)]

    def num_read(self, piece: Rows, objective: object) -> int:
        """Return the nodes that predict a learned token."""
        texts = texts_of(piece)
        paths = TokenTree.build([tokens_to_run(text) for text in texts]).paths
        places = [np.flatnonzero(text.is_learned) - 1 for text in texts]
        read = [path[place] for path, place in zip(paths, places, strict=True)]
        return len(np.unique(np.concatenate(read)))

    def score(self, tree: CausalModel, prefix: Prefix | None, budget: int | None) -> None:
        """Run the tree that has the most tokens, cut as `sequence_log_probs` cuts."""
        texts, groups = texts_of(self.items), self.scored_groups(self.items)
        budget = budget or max(SCORE_TOKEN_BUDGET, *(len(ids) for (ids,) in groups))
        trees = plan_trees(groups, budget, names=[text.id for text in texts])
        chosen = [[texts[i] for i in indices] for indices in trees]
        sizes = [
            (
                len(TokenTree.build([tokens_to_run(text) for text in part])),
                self.num_read(part, None),
            )
            for part in chosen
        ]
        learned_log_probs(tree, chosen[sizes.index(max(sizes))])


def made_rows(
    settings: RunSettings, *, tokens: int, answer_tokens: int, shared: int, examples: int
) -> RowWorkload:
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
    if answer_tokens < 1:
        raise SettingsError(f"--answer-tokens {answer_tokens}: an answer has at least one token.")
    num_answers = 2 if settings.method.name == "dpo" else 1
    own = tokens - shared + num_answers * answer_tokens
    start = np.arange(shared)
    batch_size = known(settings.training.batch_size)
    count = num_made(tokens, shared, examples, own=own, batch_size=batch_size)

    def text(row: int, answer: int) -> EncodedText:
        first = shared + own * row
        prompt = first + np.arange(tokens - shared)
        learned = first + tokens - shared + answer_tokens * answer + np.arange(answer_tokens)
        ids = np.concatenate((start, prompt, learned))
        return EncodedText(f"row {row}", ids, np.arange(len(ids)) >= tokens)

    rows: Rows
    if num_answers == 1:
        rows, kind = [text(row, 0) for row in range(count)], ""
    else:
        rows = [EncodedPreference(f"row {i}", text(i, 0), text(i, 1)) for i in range(count)]
        kind = ", of two"
    source = f"{tokens} tokens a prompt, {shared} shared by all, {answer_tokens} an answer{kind}"
    return RowWorkload(rows, examples, f"{source} (assumed)")


def real_rows(settings: RunSettings, config: PretrainedConfig) -> RowWorkload | None:
    """Encode the training rows as a run would; None where no tokenizer is at hand.

    Raises:
        TaskfitError: As a run with these settings would.
    """
    tokenizer = local_tokenizer(settings.model)
    if tokenizer is None:
        return None
    data = prepare_tuning(settings)
    # No number of the model is needed to encode, only what its configuration says.
    tree = causal_engine(meta_model(config, torch.bfloat16), verify=False)
    own = settings.model
    tuned = TunedModel(settings, LoadedModel(tree, tokenizer, own.name, own.revision))
    rows = [data.train[i] for i in sample_of(len(data.train), settings.seed)]
    items, _ = tuned.encode(rows)
    held_out = tuned.encode(data.validation, check=False)[0] if data.validation else []
    num_rows = round(len(data.train) * len(items) / len(rows))
    texts = texts_of(items)
    tokens = float(np.mean([text.num_tokens for text in texts]))
    learned = float(np.mean([text.num_learned for text in texts]))
    each = "a prompt with one answer" if len(texts) > len(items) else "each"
    looked = "all" if len(rows) == len(data.train) else f"{len(rows):,} of {len(data.train):,}"
    source = (
        f"{tokens:.0f} tokens {each}, {learned:.0f} of them learned, on the mean of {looked}; "
        f"read as {data.format}, tokenizer of {own.name}"
    )
    return RowWorkload(items, num_rows, source, validation=held_out)
