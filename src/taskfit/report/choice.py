"""Which method to take within limits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from taskfit.report.aligned import AlignedPredictions
from taskfit.report.variants import COSTS, MAJORITY, REMOTE, Contender
from taskfit.report.words import COST_NAMES

# Costs closer than this factor count as equal: times vary so much from run to run.
MUCH_CHEAPER = 1.2
# What a cheaper method may score below the best, however little is significant; for the majority
# class, which is taken where nothing is learned, it is more.
CLOSE, CLOSE_TO_NOTHING = 0.03, 0.15


@dataclass(frozen=True)
class Limits:
    """What a user can afford; None: no limit.

    Attributes:
        max_memory_bytes: Peak memory of training.
        max_latency_seconds: Seconds to predict one text by itself.
        max_train_seconds: Seconds of the whole run (loading, training, evaluating), fastest draw.
    """

    max_memory_bytes: int | None = None
    max_latency_seconds: float | None = None
    max_train_seconds: float | None = None

    def of_costs(self) -> dict[str, float]:
        """Return cost -> limit, for the limits that there are."""
        values = (self.max_train_seconds, self.max_memory_bytes, self.max_latency_seconds)
        return {cost: v for cost, v in zip(COSTS, values, strict=True) if v is not None}

    @property
    def file_ending(self) -> str:
        """Return what the names of files made under these limits end in; empty without any."""
        units = {"memory_bytes": (1e6, "MB")}
        parts = []
        for cost, limit in self.of_costs().items():
            size, unit = units.get(cost, (1.0, "s"))
            parts.append(f"-{COST_NAMES[cost]}-{limit / size:.6g}{unit}")
        return "".join(parts)

    def exceeded(self, contender: Contender) -> dict[str, float | None]:
        """Return cost -> how many times its limit it is; None where the cost is unknown.

        A remote model takes no memory of this machine, so no limit on memory excludes it.
        """
        found: dict[str, float | None] = {}
        for name, limit in self.of_costs().items():
            value = contender.costs[name]
            if value is None and not (name == "memory_bytes" and contender.kind == REMOTE):
                found[name] = None
            elif value is not None and value > limit:
                found[name] = value / limit if limit > 0 else np.inf
        return found


@dataclass(frozen=True, eq=False)
class Choice:
    """The chosen contender and why.

    Attributes:
        chosen: The contender.
        best: The one with the highest mean score.
        equals: Names of those not significantly different from the best, itself included.
        saves: Cost by which the chosen one is cheaper than the best, or None.
        aligned: All that were compared.
    """

    chosen: Contender
    best: Contender
    equals: list[str]
    saves: str | None
    aligned: AlignedPredictions


def largest_of_each(contenders: Iterable[Contender]) -> list[Contender]:
    """Return every method once, with the most labels, from cheap to expensive."""
    largest: dict[str, Contender] = {}
    for contender in contenders:
        other = largest.get(contender.name)
        if other is None or contender.size > other.size:
            largest[contender.name] = contender
    return sorted(largest.values(), key=lambda contender: contender.order)


def choose(aligned: AlignedPredictions) -> Choice:
    """Choose the cheapest of the contenders that are not significantly different from the best.

    Significantly different are two whose paired difference has a p-value below 0.05 after Holm's
    correction over all pairs. That is not transitive: a method between two others may differ from
    neither. So a cheaper method must itself beat whatever is cheaper still and beaten by the best;
    otherwise the same reasoning would lead on to that one.

    Few draws or many methods leave large differences open too, so it may score at most `CLOSE`
    less (the majority class `CLOSE_TO_NOTHING`).

    Of what remains, the majority class is simplest. Otherwise costs decide in the order of
    `COSTS`: the fewest seconds; among those within `MUCH_CHEAPER` times of it the least memory;
    of these the lowest latency; then the highest score. One that is not cheaper than the best by
    that factor in anything is not taken instead of it.
    """
    comparison = aligned.comparison
    scores = {score.method: score.mean for score in comparison.scores}
    (best,) = (c for c in aligned.contenders if c.name == comparison.best)
    worse = {d.method for d in comparison.differences if d.significant}
    equals = [c for c in aligned.contenders if c.name not in worse]

    def admissible(contender: Contender) -> bool:
        reach = CLOSE_TO_NOTHING if contender.kind == MAJORITY else CLOSE
        close = scores[best.name] - scores[contender.name] <= reach
        return contender is best or (close and _beats_cheaper(contender, worse, aligned))

    chosen = _cheapest([c for c in equals if admissible(c)], scores)
    saves = None if chosen is best else _saving(chosen, best)
    if saves is None and chosen.kind != MAJORITY:
        chosen = best
    return Choice(chosen, best, [contender.name for contender in equals], saves, aligned)


def _beats_cheaper(contender: Contender, worse: set[str], aligned: AlignedPredictions) -> bool:
    cheaper = {c.name for c in aligned.contenders if c.order < contender.order} & worse
    found = aligned.comparison.relative_to(contender.name).differences
    return all(d.worse for d in found if d.method in cheaper)


def _cheapest(contenders: Sequence[Contender], scores: dict[str, float]) -> Contender:
    left = list(contenders)
    if left[0].kind == MAJORITY:
        return left[0]
    for cost in COSTS:
        known = [value for c in left if (value := c.costs[cost]) is not None]
        if known:
            limit = min(known) * MUCH_CHEAPER
            left = [c for c in left if (value := c.costs[cost]) is None or value <= limit]
    return max(left, key=lambda contender: scores[contender.name])  # the first, so the cheapest


def _saving(chosen: Contender, best: Contender) -> str | None:
    """Return the first cost by which one is clearly cheaper than the other."""
    for cost in COSTS:
        own, other = chosen.costs[cost], best.costs[cost]
        if own is not None and other is not None and own * MUCH_CHEAPER < other:
            return cost
    return None


def nearest_miss(contenders: Sequence[Contender], limits: Limits) -> Contender:
    """Return the contender whose largest excess over a limit is smallest; unknown costs are last.

    Of equal ones the one with more labels is taken, then the cheaper.
    """

    def excess(contender: Contender) -> tuple[float, int, tuple[object, ...]]:
        ratios = [np.inf if r is None else r for r in limits.exceeded(contender).values()]
        return (max(ratios, default=0.0), -contender.size, contender.order)

    return min(contenders, key=excess)
