"""Training behind options in changing orders, so that answers hang less on the order.

Each text stands behind another order each time it is seen. Demonstrations are written by the same
template as the query, so within a prompt all lists are in one order, as in prediction.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from taskfit.data import Example
from taskfit.methods.objective import FixedTree, Item, Objective, TreeObjective
from taskfit.tasks import PromptEncoder, shuffled_orders

# Orders of a question's options that training draws from.
MOST_ORDERS = 24
# Tokens that a list may have more where it touches a text than where it touches a single letter.
SLACK = 4
Encoders = Mapping[str, PromptEncoder]


@dataclass(frozen=True, slots=True, eq=False)
class ShuffledItem:
    """A training example that is encoded anew in every step; itself alone is equal to it.

    Attributes:
        example: The example.
        given: It with all options in the given order.
    """

    example: Example
    given: Item

    @property
    def id(self) -> str:
        """Return the example's id."""
        return self.given.id

    @property
    def num_tokens(self) -> int:
        """Return its length in the given order (tokens)."""
        return self.given.num_tokens

    @property
    def num_tokens_cut(self) -> int:
        """Return the tokens by which its text is shortened in the given order."""
        return self.given.num_tokens_cut


class ShuffledOptions(Objective[ShuffledItem]):
    """An objective over prompts whose options stand in another order in every step.

    The order of an example is a function of seed, step and example, so that a resumed run draws the
    same ones.
    """

    def __init__(
        self,
        inner: TreeObjective[Any],
        encoders: Encoders,
        encode: Callable[[Encoders, Sequence[Example]], Sequence[Item]],
        *,
        seed: int,
    ) -> None:
        """Wrap an objective.

        Args:
            inner: The loss of items as `encode` makes them.
            encoders: Question -> its encoder, options in the given order.
            encode: Encodes examples by an encoder for each question.
            seed: Of all draws.
        """
        self.inner = inner
        self._encode = encode
        self._seed = seed
        self._step = 0
        self._orders = {
            name: [
                encoder.for_task(task, demonstrations=encoder.demonstrations)
                for task in shuffled_orders(encoder.task, MOST_ORDERS, seed=seed)
            ]
            for name, encoder in encoders.items()
        }
        self._now: dict[ShuffledItem, Item] = {}

    def start_step(self, step: int) -> None:
        """Forget the orders of the step before."""
        self.inner.start_step(step)
        self._step, self._now = step, {}

    def plan(self, items: Sequence[ShuffledItem], token_budget: int) -> list[list[int]]:
        """Cut examples in their orders of this step into forward passes."""
        return self.inner.plan(self.drawn(items), token_budget)

    def loss_sum(self, items: Sequence[ShuffledItem]) -> Tensor:
        """Return the summed loss of examples in their orders of this step (nats)."""
        return self.inner.loss_sum(self.drawn(items))

    def largest(self, items: Sequence[ShuffledItem]) -> int:
        """Return tokens that suffice for any one example in any order, in one forward pass."""
        more = 0
        for encoders in self._orders.values():
            lengths = [encoder.content_free(["a"])[0].num_tokens for encoder in encoders]
            words = len(encoders[0].candidates)
            more += (max(lengths) - min(lengths) + SLACK) * words
        return self.inner.largest([item.given for item in items]) + more

    def count(self, items: Sequence[ShuffledItem]) -> int:
        """Return what a step's summed loss is divided by."""
        return self.inner.count([item.given for item in items])

    def fixed_trees(self, items: Sequence[ShuffledItem], token_budget: int) -> Iterator[FixedTree]:
        """Return the trees of two orders; of more, most would be met in few steps."""
        numbers = [len(encoders) for encoders in self._orders.values()]
        if numbers != [2]:
            return
        for place in range(2):
            chosen = {name: encoders[place] for name, encoders in self._orders.items()}
            encoded = self._encode(chosen, [item.example for item in items])
            for fixed in self.inner.fixed_trees(encoded, token_budget):
                yield fixed if place == 0 else replace(fixed, num_items=0)

    def step_metrics(self) -> Mapping[str, float]:
        """Return what the wrapped objective has measured."""
        return self.inner.step_metrics()

    def drawn(self, items: Sequence[ShuffledItem]) -> list[Item]:
        """Return examples encoded in their orders of this step."""
        groups: dict[tuple[int, ...], list[ShuffledItem]] = {}
        # Tables of two runs may have rows of one id, so that is no key.
        for item in dict.fromkeys(item for item in items if item not in self._now):
            groups.setdefault(self._places(item.id), []).append(item)
        for places, members in groups.items():
            chosen = {
                name: encoders[place]
                for (name, encoders), place in zip(self._orders.items(), places, strict=True)
            }
            encoded = self._encode(chosen, [item.example for item in members])
            self._now.update(zip(members, encoded, strict=True))
        return [self._now[item] for item in items]

    def _places(self, name: str) -> tuple[int, ...]:
        """Return which of its orders each question has for an example in this step."""
        key = [self._seed, 7, self._step, zlib.crc32(name.encode())]
        generator = np.random.default_rng(key)
        return tuple(int(generator.integers(len(e))) for e in self._orders.values())
