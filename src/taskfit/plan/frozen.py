"""Which layers a plan trains, and what is kept of what the layers below give out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from taskfit.methods.objective import FixedTree, TreeObjective
from taskfit.plan.tokens import SCORE_TOKEN_BUDGET, Workload
from taskfit.settings import RunSettings
from taskfit.training.length import sees_texts_again
from taskfit.tree import IntArray, TokenTree, plan_trees, tokens_to_run, unique_tokens


@dataclass(frozen=True, slots=True)
class FrozenPlan:
    """The layers below the trained ones.

    Attributes:
        num_frozen: Layers that no training changes; 0: all are trained, or none is.
        num_layers: Layers of the decoder.
        num_before: Tokens that the frozen layers run once, before the first step; 0: they run
            forward in each step.
        num_kept: Unique tokens whose states are kept: these, and those of validations.
        memory_bytes: Of kept states in main memory.
        file_bytes: Of kept states in memory-mapped files.
        heaviest: The largest tree that runs once; None if nothing does.
    """

    num_frozen: int = 0
    num_layers: int = 0
    num_before: int = 0
    num_kept: int = 0
    memory_bytes: int = 0
    file_bytes: int = 0
    heaviest: FixedTree | None = None


def plan_frozen(
    workload: Workload,
    objective: TreeObjective[Any],
    settings: RunSettings,
    *,
    num_frozen: int,
    num_layers: int,
    token_bytes: int,
    token_budget: int,
) -> FrozenPlan:
    """Predict what the frozen layers run once, and what is kept of it; a sample is scaled up.

    The teacher of `distill` is not counted.

    Args:
        workload: The examples.
        objective: The method's loss.
        settings: Resolved settings of the run.
        num_frozen: Layers below the trained ones.
        num_layers: Layers of the decoder.
        token_bytes: Of the states of one token.
        token_budget: Most tokens of one forward pass of training.
    """
    gigabytes = settings.adapter.cache_gigabytes
    if num_frozen == 0 or gigabytes is None:
        return FrozenPlan(num_frozen, num_layers)
    budget, before, heaviest = settings.training.score_token_budget, 0, None
    num_kept = _scored_tokens(workload.scored_groups(workload.validation), budget)
    if sees_texts_again(settings.training, workload.num_examples):
        trees = list(objective.fixed_trees(workload.items, token_budget))
        shares, scale = objective.model.shares_prefixes, workload.num_examples / len(workload.items)
        sizes = [_tokens_run(fixed.tree, shares=shares) for fixed in trees]
        heaviest = trees[sizes.index(max(sizes))]
        num_kept += round(sum(len(fixed.tree) for fixed in trees) * scale)
        before = round(sum(sizes) * scale)
    num_bytes = num_kept * token_bytes
    in_memory = min(num_bytes, round(gigabytes * 1e9))
    return FrozenPlan(
        num_frozen=num_frozen,
        num_layers=num_layers,
        num_before=before,
        num_kept=num_kept,
        memory_bytes=in_memory,
        file_bytes=num_bytes - in_memory,
        heaviest=heaviest,
    )


def _tokens_run(tree: TokenTree, *, shares: bool) -> int:
    """Return the tokens that a tree makes a model run."""
    return tokens_to_run([tree.ids[path] for path in tree.paths], shares=shares)


def _scored_tokens(groups: Sequence[Sequence[IntArray]], budget: int | None) -> int:
    """Return the unique tokens of all trees that scoring cuts groups into."""
    if not groups:
        return 0
    budget = budget or max(SCORE_TOKEN_BUDGET, *map(unique_tokens, groups))
    trees = plan_trees(groups, budget, names=[""] * len(groups))
    return sum(len(TokenTree.build([ids for i in tree for ids in groups[i]])) for tree in trees)
