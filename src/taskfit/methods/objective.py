"""What the training loop asks of a method, and of the items that the method trains on."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from taskfit.models.causal_model import CausalModel
from taskfit.models.prefix import Prefix
from taskfit.tree import IntArray, TokenTree, plan_trees, tokens_to_run


class Item(Protocol):
    """A training example, encoded by its method."""

    @property
    def id(self) -> str:
        """Return the example's id, for messages."""
        ...

    @property
    def num_tokens(self) -> int:
        """Return its length (tokens)."""
        ...

    @property
    def num_tokens_cut(self) -> int:
        """Return the tokens by which its text was shortened."""
        ...


def padded_tokens(batch: Sequence[Item]) -> int:
    """Return the tokens of the batch as a rectangle padded to its longest example."""
    return len(batch) * max(item.num_tokens for item in batch)


ItemT = TypeVar("ItemT", bound=Item, contravariant=True)


@dataclass(frozen=True, slots=True)
class FixedTree:
    """A tree that is the same in every epoch.

    Attributes:
        tree: Its tokens.
        prefix: Keys and values of what stands before its root, or None.
        num_items: Training items that it is the first tree of, for progress.
    """

    tree: TokenTree
    prefix: Prefix | None
    num_items: int


class Objective(ABC, Generic[ItemT]):
    """What a trained method supplies to the loop."""

    def start_step(self, step: int) -> None:
        """Prepare for an optimizer step, counted from 0; everything random hangs on it alone."""

    @abstractmethod
    def plan(self, items: Sequence[ItemT], token_budget: int) -> list[list[int]]:
        """Cut examples into forward passes of at most `token_budget` tokens."""

    @abstractmethod
    def loss_sum(self, items: Sequence[ItemT]) -> Tensor:
        """Return the summed loss of the examples of one forward pass (nats)."""

    @abstractmethod
    def largest(self, items: Sequence[ItemT]) -> int:
        """Return the tokens that the largest example needs in one forward pass."""

    def count(self, items: Sequence[ItemT]) -> int:
        """Return what a step's summed loss is divided by: examples, or what the loss counts."""
        return len(items)

    def fixed_trees(self, items: Sequence[ItemT], token_budget: int) -> Iterator[FixedTree]:
        """Return what all steps over these items run, in trees.

        Layers that training does not change run over it once (`CausalModel.keep_states`). Nothing,
        where there are no trees.
        """
        return iter(())

    def step_metrics(self) -> Mapping[str, float]:
        """Return what else the passes since `start_step` have measured, for the log."""
        return {}


class TreeObjective(Objective[ItemT]):
    """An objective whose forward passes are token trees.

    A model that runs every sequence by itself keeps all of them for the backward pass, so for it
    the tokens that run are planned, not unique ones.

    Attributes:
        model: The model in training.
    """

    model: CausalModel

    @abstractmethod
    def sequences(self, item: ItemT) -> Sequence[IntArray]:
        """Return what must run for an example, in one tree."""

    def plan(self, items: Sequence[ItemT], token_budget: int) -> list[list[int]]:
        """Cut examples into trees that make the model run at most `token_budget` tokens."""
        groups, names = [self.sequences(item) for item in items], [item.id for item in items]
        return plan_trees(groups, token_budget, names=names, shares=self.model.shares_prefixes)

    def fixed_trees(self, items: Sequence[ItemT], token_budget: int) -> Iterator[FixedTree]:
        """Return the sequences of all items, in trees as `plan` cuts them."""
        for piece in self.plan(items, token_budget):
            tree = TokenTree.build([ids for i in piece for ids in self.sequences(items[i])])
            yield FixedTree(tree, None, len(piece))

    def largest(self, items: Sequence[ItemT]) -> int:
        """Return the most tokens that the model runs for one example."""
        shares = self.model.shares_prefixes
        return max(tokens_to_run(self.sequences(item), shares=shares) for item in items)
