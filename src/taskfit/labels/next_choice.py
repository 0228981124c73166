"""Choose which texts of a pool to label next: a strategy, a random share, no near duplicates.

Legend: N texts of the pool, M width of the sentence embeddings, K labelled texts, k texts that are
asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from taskfit.curate.select import highest_cosine
from taskfit.errors import SettingsError, suggestion
from taskfit.labels.next_strategies import (
    STRATEGIES,
    IntArray,
    Pool,
    Strategy,
    Vectors,
    most_uncertain,
    names_without_model,
)

Embed = Callable[[IntArray], Vectors]

# Chosen by benchmarks/next.py (see docs/labels.md): with a run, and without one where texts can be
# compared.
DEFAULT, DEFAULT_WITHOUT_MODEL = "margin", "typiclust"
RANDOM_SHARE = 0.2
# Cosine from which two texts count as nearly the same, as in `taskfit curate`.
NEAR = 0.95
# Texts of the pool that a strategy looks at: at least, for each that is asked for, and at most;
# those that come first by a score, or any.
FEWEST_RANKED, RANKED_EACH = 1_000, 10
FEWEST_DRAWN, DRAWN_EACH = 10_000, 100
MOST_LOOKED_AT = 50_000


def default_strategy(*, has_model: bool, compares: bool) -> str:
    """Return the strategy to take where none is named.

    Args:
        has_model: Whether there is a run.
        compares: Whether there are embeddings.
    """
    if has_model:
        return DEFAULT
    return DEFAULT_WITHOUT_MODEL if compares else "random"


@dataclass(frozen=True, slots=True)
class Choice:
    """How texts are chosen.

    Attributes:
        strategy: In `STRATEGIES`.
        random_share: Share of the texts that is drawn at random.
        balance: Whether the classes that the model predicts are to be even.
        near: Cosine from which two texts are near duplicates; 1 or more: none are.
        seed: Of every draw.
    """

    strategy: str = DEFAULT
    random_share: float = RANDOM_SHARE
    balance: bool = False
    near: float = NEAR
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            SettingsError: If one is not allowed.
        """
        if self.strategy not in STRATEGIES:
            raise SettingsError(
                f"--strategy {self.strategy}: give one of {', '.join(STRATEGIES)}."
                f"{suggestion(self.strategy, list(STRATEGIES))}"
            )
        if not 0 <= self.random_share <= 1:
            raise SettingsError(
                f"--random-share {self.random_share:g}: give a share from 0 to 1, such as 0.2."
            )
        if not self.near > 0:  # nor is it no number
            raise SettingsError(f"--near {self.near:g}: give a cosine above 0, such as 0.95.")
        if self.seed < 0:
            raise SettingsError(f"--seed {self.seed}: give a whole number from 0 on.")

    @property
    def how(self) -> Strategy:
        """Return the strategy itself."""
        return STRATEGIES[self.strategy]

    def check_without_model(self) -> None:
        """Check that it needs no model.

        Raises:
            SettingsError: If it does.
        """
        if self.how.reads_probabilities:
            raise SettingsError(
                f"--strategy {self.strategy} reads the probabilities of a run: give its folder "
                f"before the pool. Without one there are {', '.join(names_without_model())}."
            )
        if self.balance:
            raise SettingsError("--balance is by what a run predicts: give its folder, too.")

    def num_random(self, count: int) -> int:
        """Return how many of `count` texts are drawn at random."""
        return round(count * self.random_share)

    def compares(self, count: int) -> bool:
        """Return whether texts are compared: those that are drawn at random are not."""
        return self.strategy != "random" and self.num_random(count) < count


@dataclass(frozen=True, slots=True)
class Chosen:
    """Texts to label, in the order to label them in.

    Attributes:
        places: Their places in the pool, (k,); fewer where no more differ.
        is_random: Whether each was drawn at random from the whole pool, (k,).
    """

    places: IntArray
    is_random: NDArray[np.bool_]


def choose_next(pool: Pool, count: int, choice: Choice, *, embed: Embed | None = None) -> Chosen:
    """Choose texts to label: a random share of the whole pool, the others by a strategy.

    The random ones are drawn first, from all texts alike, so that they stand for the pool. The
    others are no near duplicates of them, of each other, or of labelled texts, where there are
    embeddings; so there may be fewer than are asked for. Random ones are spread evenly, so that
    whoever stops early has their share.

    A ranking looks at the most uncertain texts, other strategies at texts drawn at random, both at
    up to 50,000, so neither time nor memory grows with the square of the pool.

    Args:
        pool: All that may be labelled, N texts.
        count: k.
        choice: How.
        embed: Returns the embeddings, (n, M), of n texts by their places, where the pool has none
            yet; it is asked only for texts that are looked at.
    """
    if embed is None and pool.vectors is not None:
        embed = pool.vectors.__getitem__
    if not choice.compares(count):
        embed = None
    generator = np.random.default_rng(choice.seed)
    count = min(count, pool.size)
    order = generator.permutation(pool.size)
    drawn, rest = np.split(order, [choice.num_random(count)])
    wanted, picked = count - len(drawn), rest[:0]
    if choice.strategy == "random" and not choice.balance:
        return _spread(drawn, rest[:wanted])
    num_looked_at = _first_look(wanted, choice)
    covered = pool.labelled
    if embed is not None and wanted and len(drawn):
        covered = _joined(covered, embed(drawn))
    while wanted:
        looked_at = _looked_at(pool, rest, num_looked_at, choice, generator)
        some = pool.take(looked_at)
        some = replace(some, labelled=covered, vectors=None if embed is None else embed(looked_at))
        picked = looked_at[_pick(some, wanted, choice, generator)]
        if len(picked) == wanted or len(looked_at) == min(len(rest), MOST_LOOKED_AT):
            break
        num_looked_at *= 4
    return _spread(drawn, picked)


def _first_look(count: int, choice: Choice) -> int:
    """Return how many texts a strategy looks at first."""
    if choice.how.score is None:
        return max(FEWEST_DRAWN, DRAWN_EACH * count)
    return max(FEWEST_RANKED, RANKED_EACH * count)


def _looked_at(
    pool: Pool, rest: IntArray, num: int, choice: Choice, generator: np.random.Generator
) -> IntArray:
    """Return the places of texts that a strategy chooses among: the first by its score, or any.

    Args:
        pool: All texts.
        rest: Places of those that were not drawn, in random order.
        num: How many, at most `MOST_LOOKED_AT`; with balance of each class.
        choice: How.
        generator: Breaks ties.
    """
    num, score = min(num, MOST_LOOKED_AT), choice.how.score
    if len(rest) <= num:
        return np.sort(rest)
    if score is None:
        return np.sort(rest[:num])
    ranked = rest[most_uncertain(pool.take(rest), len(rest), generator, score=score)]
    if choice.balance:
        predicted = pool.need_probabilities[ranked].argmax(axis=1)
        # The n-th of its class comes before the n+1-st of any.
        turn = np.empty(len(ranked), np.intp)
        for label in np.unique(predicted):
            own = np.flatnonzero(predicted == label)
            turn[own] = np.arange(len(own))
        ranked = ranked[np.argsort(turn, kind="stable")]
    return np.sort(ranked[:num])


def _pick(pool: Pool, count: int, choice: Choice, generator: np.random.Generator) -> IntArray:
    """Return up to k texts by the strategy, none near to another or to what is labelled."""
    vectors, covered = pool.vectors, pool.labelled
    is_left = np.ones(pool.size, np.bool_)
    if vectors is not None and covered is not None and choice.near < 1:
        is_left &= highest_cosine(vectors, covered) < choice.near
    chosen: list[int] = []
    while len(chosen) < count and is_left.any():
        places = np.flatnonzero(is_left)
        if vectors is not None and chosen:
            covered = _joined(pool.labelled, vectors[chosen])
        some = replace(pool.take(places), labelled=covered)
        for place in places[_proposed(some, count - len(chosen), choice, generator)]:
            if not is_left[place]:
                continue
            chosen.append(int(place))
            if vectors is not None and choice.near < 1:
                is_left &= vectors @ vectors[place] < choice.near
            is_left[place] = False
    return np.array(chosen, np.intp)


def _joined(first: Vectors | None, second: Vectors) -> Vectors:
    return second if first is None else np.vstack([first, second])


def _proposed(pool: Pool, count: int, choice: Choice, generator: np.random.Generator) -> IntArray:
    """Return k texts by the strategy, with balance as many of each predicted class as there are."""
    count = min(count, pool.size)
    if not choice.balance:
        return choice.how.choose(pool, count, generator)
    predicted = pool.need_probabilities.argmax(axis=1)
    parts = []
    for label, share in _even_shares(np.bincount(predicted), count, generator):
        own = np.flatnonzero(predicted == label)
        found = own[choice.how.choose(pool.take(own), share, generator)]
        parts += [(turn, int(place)) for turn, place in enumerate(found)]
    return np.array([place for _, place in sorted(parts, key=lambda part: part[0])], np.intp)


def _even_shares(
    available: IntArray, count: int, generator: np.random.Generator
) -> list[tuple[int, int]]:
    """Return classes with how many texts each gives: as even as what there is of each allows."""
    shares = np.zeros(len(available), np.intp)
    while shares.sum() < count:
        open_ = generator.permutation(np.flatnonzero(shares < available))
        each, more = divmod(count - int(shares.sum()), len(open_))
        shares[open_] += each
        shares[open_[:more]] += 1
        shares = np.minimum(shares, available)
    return [(label, int(share)) for label, share in enumerate(shares) if share]


def _spread(drawn: IntArray, picked: IntArray) -> Chosen:
    """Return random and other texts in one order, the random ones at even distances."""
    at = np.concatenate([(np.arange(len(one)) + 0.5) / max(len(one), 1) for one in (drawn, picked)])
    order = np.argsort(at, kind="stable")
    return Chosen(np.concatenate([drawn, picked])[order], order < len(drawn))
