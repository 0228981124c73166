"""Which method to take within limits: candidates, what they cost, and which one is chosen.

Legend: M candidates, D draws, N examples.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskfit.errors import CheckpointError
from taskfit.methods.table import METHODS
from taskfit.report.evidence import Evidence, FinishedRun, IntArray
from taskfit.report.systems import AnswerStore, System, systems_of
from taskfit.stats.comparison import Comparison, compare_correct, compare_methods

ALPHA = 0.05
# Costs closer than this factor count as equal: times vary so much from run to run.
MUCH_CHEAPER = 1.2
# What a cheaper method may score below the best, however little the evidence can tell apart; for
# the majority class, which is taken where nothing is learned, it is more.
CLOSE, CLOSE_TO_NOTHING = 0.03, 0.15
MAJORITY, TFIDF, REMOTE = "majority", "tfidf", "remote"
COSTS = ("train_seconds", "memory_bytes", "latency_seconds")


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


@dataclass(frozen=True, eq=False)
class Candidate:
    """A method with its model at one number of labels.

    Attributes:
        name: The method's name, with its model where it has several.
        system: All sizes of it.
        size: Labelled examples; 0 if it sees none.
        runs: Draw -> run.
    """

    name: str
    system: System
    size: int
    runs: dict[int, FinishedRun]

    @cached_property
    def first(self) -> FinishedRun:
        """Return the run of the lowest draw."""
        return self.runs[min(self.runs)]

    @property
    def kind(self) -> str:
        """Return the method, whatever the user calls it."""
        return self.first.result.method

    @cached_property
    def language_model(self) -> str | None:
        """Return the language model it reads; None where it reads none."""
        settings = self.first.settings.method
        reads = METHODS[settings.name].reads_model(settings)
        return self.first.result.model if reads or self.kind == REMOTE else None

    @cached_property
    def costs(self) -> dict[str, float | None]:
        """Return its costs by name: fewest seconds, most memory, lowest latency; None: unknown.

        Other programs only ever make a run slower, so its fastest draw says best what it takes. A
        remote model's memory is not this machine's, so it is unknown.
        """
        results = [run.result for run in self.runs.values()]
        latencies = [r.latency_seconds for r in results if r.latency_seconds is not None]
        memory = max(r.peak_memory_bytes for r in results)
        return {
            "train_seconds": min(r.whole_seconds for r in results),
            "memory_bytes": None if self.kind == REMOTE else float(memory),
            "latency_seconds": min(latencies, default=None),
        }

    @cached_property
    def order(self) -> tuple[object, ...]:
        """Return a key that sorts candidates from cheap to dear, whatever their names."""
        costs = [value if value is not None else np.inf for value in self.costs.values()]
        return (self.kind != MAJORITY, *costs, self.size, self.kind, self.name)

    def over(self, limits: Limits) -> dict[str, float | None]:
        """Return cost -> how many times its limit it is; None where the cost is unknown.

        A remote model takes no memory of this machine, so no limit on memory excludes it.
        """
        found: dict[str, float | None] = {}
        for name, limit in limits.of_costs().items():
            value = self.costs[name]
            if value is None and not (name == "memory_bytes" and self.kind == REMOTE):
                found[name] = None
            elif value is not None and value > limit:
                found[name] = value / limit if limit > 0 else np.inf
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "method": self.name,
            "kind": self.kind,
            "model": self.first.result.model,
            "num_labels": self.size,
            "draws": sorted(self.runs),
            **self.costs,
        }


@dataclass(frozen=True, eq=False)
class Bench:
    """Candidates side by side on some evaluation sets.

    Attributes:
        candidates: Those with all these sets, from cheap to dear, M.
        draws: The draws that are compared, D.
        ids: Of the examples, N.
        predicted: Answers, (M, D, N); empty where a text may have several labels.
        gold: (N,); likewise.
        correct: Whether each is right, (M, D, N).
        metric: accuracy, mcc or macro_f1.
    """

    candidates: list[Candidate]
    draws: list[int]
    ids: list[str]
    predicted: IntArray
    gold: IntArray
    correct: NDArray[np.bool_]
    metric: str

    def compare(self, reference: str | None = None) -> Comparison:
        """Compare all, differences to one of them; None: to the best."""
        names = [candidate.name for candidate in self.candidates]
        if not len(self.gold):
            return compare_correct(self.correct, methods=names, reference=reference)
        return compare_methods(
            self.predicted, self.gold, methods=names, metric=self.metric, reference=reference
        )


@dataclass(frozen=True, eq=False)
class Choice:
    """The chosen candidate and why.

    Attributes:
        chosen: The candidate.
        best: The one with the highest mean score.
        equals: Names of those that cannot be told apart from the best, itself included.
        saves: Cost by which the chosen one is cheaper than the best, or None.
        bench: All that were compared.
        against_best: Comparison with differences to the best.
        against_chosen: The same with differences to the chosen one.
    """

    chosen: Candidate
    best: Candidate
    equals: list[str]
    saves: str | None
    bench: Bench
    against_best: Comparison
    against_chosen: Comparison


def candidates_of(evidence: Evidence, evaluation: str) -> list[Candidate]:
    """Return every method at every size that was measured on an evaluation set."""
    found = []
    for system in systems_of(evidence):
        for size in system.sizes:
            runs = {
                seed: run
                for seed, run in system.at(size).items()
                if evaluation in run.result.evaluations
            }
            if runs:
                found.append(Candidate(system.name, system, size, runs))
    return sorted(found, key=lambda candidate: candidate.order)


def largest_of_each(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return every method once, with the most labels, from cheap to dear."""
    largest: dict[str, Candidate] = {}
    for candidate in candidates:
        other = largest.get(candidate.name)
        if other is None or candidate.size > other.size:
            largest[candidate.name] = candidate
    return sorted(largest.values(), key=lambda candidate: candidate.order)


def lay_side_by_side(
    candidates: Sequence[Candidate],
    evaluations: Sequence[str],
    *,
    metric: str,
    store: AnswerStore,
) -> Bench:
    """Lay the answers of candidates on some evaluation sets side by side.

    Compared are the draws that all share; one that sees no labels repeats its answers. Where
    they share none, it is the draw that most have, without the candidates that lack it.

    Raises:
        CheckpointError: If predictions cannot be read, or there are not two examples that all saw.
    """
    draws = _shared_draws(candidates)
    kept = [c for c in candidates if c.size == 0 or set(draws) <= set(c.runs)]
    runs = [c.runs.get(draw, c.first) for c in kept for draw in draws]
    parts = [store.of(runs, evaluation) for evaluation in evaluations]
    shape = (len(kept), len(draws), -1)
    ids = [name for part in parts for name in part.ids]
    if len(ids) < 2:
        raise CheckpointError(
            f"The runs were evaluated on {len(ids)} common examples of {', '.join(evaluations)}, "
            "and two are the least to compare on. Evaluate all on the same set."
        )
    several = not len(parts[0].gold_index)
    empty = np.empty(0, np.int64)
    return Bench(
        candidates=kept,
        draws=draws,
        ids=ids,
        predicted=empty if several else _joined([part.predicted for part in parts], shape),
        gold=empty if several else np.concatenate([part.gold_index for part in parts]),
        correct=_joined([part.correct for part in parts], shape),
        metric=metric,
    )


def _joined(parts: Sequence[NDArray[Any]], shape: tuple[int, ...]) -> NDArray[Any]:
    return np.concatenate([part.reshape(shape) for part in parts], axis=2)


def _shared_draws(candidates: Sequence[Candidate]) -> list[int]:
    seeing = [c for c in candidates if c.size] or list(candidates)
    shared = set.intersection(*(set(c.runs) for c in seeing))
    if not shared:
        every = sorted(set().union(*(c.runs for c in seeing)))
        shared = {max(every, key=lambda seed: sum(seed in c.runs for c in seeing))}
    return sorted(shared)


def choose(bench: Bench) -> Choice:
    """Choose the cheapest of the candidates that cannot be told apart from the best.

    Told apart are two whose paired difference has a p-value below 0.05 after Holm's correction
    over all pairs. Being told apart is not transitive: a method between two others may differ
    from neither. So a cheaper method must itself beat whatever is cheaper still and beaten by the
    best; otherwise the same reasoning would lead on to that one.

    Few draws or many methods leave large differences open too, so it may score at most `CLOSE`
    less (the majority class `CLOSE_TO_NOTHING`).

    Of what remains, the majority class is simplest. Otherwise costs decide in the order of
    `COSTS`: the fewest seconds; among those within `MUCH_CHEAPER` times of it the least memory;
    of these the lowest latency; then the highest score. One that is not cheaper than the best by
    that factor in anything is not taken instead of it.
    """
    by_name = {candidate.name: candidate for candidate in bench.candidates}
    against_best = bench.compare()
    best = by_name[against_best.best]
    worse = {d.method for d in against_best.differences if d.adjusted_p_value < ALPHA}
    equals = [c for c in bench.candidates if c.name not in worse]
    scores = {score.method: score.mean for score in against_best.scores}
    admissible = [
        c
        for c in equals
        if c is best
        or (
            scores[best.name] - scores[c.name]
            <= (CLOSE_TO_NOTHING if c.kind == MAJORITY else CLOSE)
            and _beats_cheaper(c, worse, bench)
        )
    ]
    chosen = _cheapest(admissible, scores)
    saves = None if chosen is best else _saving(chosen, best)
    if saves is None and chosen.kind != MAJORITY:
        chosen = best
    against = against_best if chosen is best else bench.compare(chosen.name)
    return Choice(
        chosen=chosen,
        best=best,
        equals=[candidate.name for candidate in equals],
        saves=saves,
        bench=bench,
        against_best=against_best,
        against_chosen=against,
    )


def _beats_cheaper(candidate: Candidate, worse: set[str], bench: Bench) -> bool:
    cheaper = {c.name for c in bench.candidates if c.order < candidate.order} & worse
    if not cheaper:
        return True
    found = {d.method: d for d in bench.compare(candidate.name).differences}
    return all(found[m].difference < 0 and found[m].adjusted_p_value < ALPHA for m in cheaper)


def _cheapest(candidates: Sequence[Candidate], scores: dict[str, float]) -> Candidate:
    left = list(candidates)
    majority = [candidate for candidate in left if candidate.kind == MAJORITY]
    if majority:
        return majority[0]
    for cost in COSTS:
        known = [value for c in left if (value := c.costs[cost]) is not None]
        if known:
            limit = min(known) * MUCH_CHEAPER
            left = [c for c in left if (value := c.costs[cost]) is None or value <= limit]
    return max(left, key=lambda candidate: scores[candidate.name])  # the first, so the cheapest


def _saving(chosen: Candidate, best: Candidate) -> str | None:
    """Return the first cost by which one is clearly cheaper than the other."""
    for cost in COSTS:
        own, other = chosen.costs[cost], best.costs[cost]
        if own is not None and other is not None and own * MUCH_CHEAPER < other:
            return cost
    return None


def nearest_miss(candidates: Sequence[Candidate], limits: Limits) -> Candidate:
    """Return the candidate whose largest excess over a limit is smallest; unknown costs are last.

    Of equal ones the one with more labels is taken, then the cheaper.
    """

    def excess(candidate: Candidate) -> tuple[float, int, tuple[object, ...]]:
        ratios = [np.inf if r is None else r for r in candidate.over(limits).values()]
        return (max(ratios, default=0.0), -candidate.size, candidate.order)

    return min(candidates, key=excess)


def mover(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> tuple[float, float]:
    """Return the interval of the difference of two independent numbers, from their own.

    The method of variance estimates recovery (Zou and Donner 2008, "Construction of confidence
    limits about effect measures", equation 4).

    Args:
        first: The value, the low and the high end of its interval.
        second: Likewise, (3,).
    """
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    low = a - b - float(np.hypot(a - a_low, b_high - b))
    high = a - b + float(np.hypot(a_high - a, b - b_low))
    return low, high
