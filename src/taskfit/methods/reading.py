"""Read a model without gradients: the static prefix run once, work cut into trees that fit."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskfit.errors import ModelError
from taskfit.models.causal_model import CausalModel
from taskfit.models.out_of_memory import is_out_of_memory
from taskfit.models.prefix import Prefix
from taskfit.models.whole import require_finite
from taskfit.tasks import BareEncoder, EncodedExample, PromptEncoder
from taskfit.tree import IntArray, TokenTree, common_prefix_length, plan_trees, unique_tokens

TOKEN_BUDGET = 1024
Number = TypeVar("Number", np.float32, np.float64)


class PrefixCache:
    """Keys and values of what all prompts of a task start with, kept across calls.

    Attributes:
        model: The model that runs it.
    """

    def __init__(self, model: CausalModel, encoder: PromptEncoder | BareEncoder) -> None:
        """Nothing is run before it is asked for."""
        self.model = model
        self._encoder = encoder
        self._cache: Prefix | None = None
        self._ids: IntArray = np.empty(0, np.int64)

    def forget(self) -> None:
        """Drop keys and values; call it when the weights have changed."""
        self._cache = None

    def shared_by(self, items: Sequence[EncodedExample]) -> Prefix | None:
        """Return the cached keys and values that all these prompts start with, if any."""
        # The last prompt token must run with the tree, since the first answer token is read there.
        limit = min(len(item.prompt_ids) for item in items) - 1
        if len(self._ids) == 0:
            self._ids = static_start(self._encoder)
        ids = self._ids
        length = min([limit, *(common_prefix_length(ids, item.prompt_ids) for item in items)])
        if length < 1:
            return None
        if self._cache is None:
            self._cache = self.model.encode_prefix(ids)
        return self._cache if length == len(ids) else self._cache.cropped(length)


def static_start(encoder: PromptEncoder | BareEncoder) -> IntArray:
    """Return the tokens that all prompts start with, (P,).

    Only what is static: a prefix that the texts of one call share by chance would have to be thrown
    away at the next.
    """
    first, *others = (item.prompt_ids for item in encoder.content_free(["a", "0", "("]))
    return first[: min(common_prefix_length(first, other) for other in others)]


@torch.no_grad()
def run_in_trees(
    model: CausalModel,
    groups: Sequence[Sequence[IntArray]],
    run: Callable[[list[int]], None],
    *,
    token_budget: int | None,
    names: Sequence[str],
) -> None:
    """Call `run` with the groups of one tree after the other, without gradients or dropout.

    When memory runs out, what is left is cut into trees of half the size.

    Args:
        model: In evaluation mode meanwhile.
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
    with model.evaluating():
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


def read_prompts(
    prefixes: PrefixCache,
    items: Sequence[EncodedExample],
    result: NDArray[Number],
    *,
    sequences: Callable[[EncodedExample, int], Sequence[IntArray]],
    read: Callable[[list[EncodedExample], Prefix | None], Tensor | NDArray[np.float64]],
    token_budget: int | None,
    advance: Callable[[int], None] | None = None,
) -> NDArray[Number]:
    """Read something of each prompt, in trees under the prefix that all prompts start with.

    Args:
        prefixes: Of the model and the encoder of the prompts.
        items: Encoded examples, N of them.
        result: Filled in and returned, (N, ...).
        sequences: Returns what must run of an example, without so many leading tokens.
        read: Returns a row for each example of a tree.
        token_budget: See `run_in_trees`; the prefix is not counted.
        advance: Called with the number of examples just finished.

    Raises:
        NotFiniteError: If what is read is not finite.
    """
    if not items:
        return result
    prefix = prefixes.shared_by(items)

    def run(chosen: list[int]) -> None:
        found = read([items[i] for i in chosen], prefix)
        require_finite(torch.as_tensor(found), [items[i].id for i in chosen])
        result[chosen] = found.float().cpu().numpy() if isinstance(found, Tensor) else found
        if advance is not None:
            advance(len(chosen))

    skip = prefix.length if prefix else 0
    groups = [sequences(item, skip) for item in items]
    names = [item.id for item in items]
    run_in_trees(prefixes.model, groups, run, token_budget=token_budget, names=names)
    return result


def nodes_to_read(tree: TokenTree, places: Sequence[IntArray | slice]) -> tuple[IntArray, IntArray]:
    """Return which nodes are read, each once, and where each reading stands among them.

    Args:
        tree: The tree.
        places: For every sequence the depths that are read, Y in all.

    Returns:
        Nodes, ascending, (R,), and for each reading its row in them, (Y,).
    """
    read = [path[place] for path, place in zip(tree.paths, places, strict=True)]
    nodes, rows = np.unique(np.concatenate(read), return_inverse=True)
    return nodes, rows.astype(np.int64)
