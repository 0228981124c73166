"""Read a model without gradients: the static prefix run once, work cut into trees that fit."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from taskfit.errors import ModelError
from taskfit.models.attention import KeyValueCache
from taskfit.models.out_of_memory import is_out_of_memory
from taskfit.models.tree_model import TreeModel
from taskfit.tasks import BareEncoder, EncodedExample, PromptEncoder
from taskfit.tree import common_prefix_length, plan_trees, unique_tokens
from taskfit.tree.build import IntArray

TOKEN_BUDGET = 1024


def static_start(encoder: PromptEncoder | BareEncoder) -> IntArray:
    """Return the tokens that all prompts of an encoder start with, whatever their texts, (P,)."""
    static = [item.prompt_ids for item in encoder.content_free(["a", "0", "("])]
    return static[0][: min(common_prefix_length(static[0], other) for other in static[1:])]


class PrefixCache:
    """Keys and values of what all prompts of a task start with, kept across calls."""

    def __init__(self, model: TreeModel, encoder: PromptEncoder | BareEncoder) -> None:
        """Nothing is run before it is asked for."""
        self._model = model
        self._encoder = encoder
        self._cache: KeyValueCache | None = None
        self._ids: IntArray = np.empty(0, np.int64)

    def forget(self) -> None:
        """Drop keys and values; call it when the weights have changed."""
        self._cache = None

    def shared_by(self, items: Sequence[EncodedExample]) -> KeyValueCache | None:
        """Return the cached keys and values that all these prompts start with, if any."""
        # The last prompt token must run with the tree, since the first answer token is read there.
        limit = min(len(item.prompt_ids) for item in items) - 1
        if len(self._ids) == 0:
            # Only what is static: a prefix that the texts of this call share by chance would have
            # to be thrown away at the next.
            self._ids = static_start(self._encoder)
        ids = self._ids
        length = min([limit, *(common_prefix_length(ids, item.prompt_ids) for item in items)])
        if length < 1:
            return None
        if self._cache is None:
            self._cache = self._model.encode_prefix(ids)
        return self._cache if length == len(ids) else self._cache.cropped(length)


@torch.no_grad()
def run_in_trees(
    model: TreeModel,
    groups: Sequence[Sequence[IntArray]],
    run: Callable[[list[int]], None],
    *,
    token_budget: int | None,
    names: Sequence[str],
) -> None:
    """Call `run` with the groups of one tree after the other, without gradients or dropout.

    When memory runs out, what is left is cut into trees of half the size.

    Args:
        model: Put into evaluation mode meanwhile.
        groups: What must stand in one tree; see `plan_trees`.
        run: Called with the indices of a tree's groups; may be called again for the same ones
            after memory ran out.
        token_budget: Most unique tokens in one tree; None: 1,024, or what the largest group needs.
        names: The groups' names for messages.

    Raises:
        ModelError: If memory does not suffice for a single group.
    """
    largest = max(map(unique_tokens, groups))
    budget = token_budget or max(TOKEN_BUDGET, largest)
    waiting = list(range(len(groups)))
    was_training = model.model.training
    model.model.eval()
    try:
        while waiting:
            trees = plan_trees(
                [groups[i] for i in waiting], budget, names=[names[i] for i in waiting]
            )
            done: set[int] = set()
            try:
                for tree in trees:
                    run([waiting[i] for i in tree])
                    done.update(tree)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if budget <= largest:
                    raise ModelError(
                        f"Memory does not suffice to score a single example of {largest} tokens. "
                        "Shorten texts with model.max_length, or use a smaller model."
                    ) from error
                budget = max(largest, budget // 2)
            waiting = [i for place, i in enumerate(waiting) if place not in done]
    finally:
        model.model.train(was_training)
