"""What a comparison cannot know, as far as it applies to this evidence."""

import statistics
from collections.abc import Sequence
from typing import Any

from taskfit.report.advice_choice import MAJORITY, REMOTE, Candidate, Choice
from taskfit.report.evidence import Evidence, FinishedRun

# Wall time above this many times the processor time was spent waiting.
SHARED_MACHINE = 1.3
SHORTEST_SECONDS = 1.0
NUM_SHOWN = 5
FEWEST_METHODS = 3


def unknown_facts(
    evidence: Evidence,
    choice: Choice,
    candidates: Sequence[Candidate],
    judged: Sequence[Candidate],
) -> dict[str, Any]:
    """Return the numbers behind what the evidence leaves open.

    Args:
        evidence: Finished runs.
        choice: What was chosen.
        candidates: All methods at all sizes.
        judged: Those that were to be compared.
    """
    compared = {candidate.name for candidate in choice.bench.candidates}
    largest = max((c.size for c in candidates), default=0)
    reached: dict[str, int] = {}
    for c in candidates:
        reached[c.name] = max(c.size, reached.get(c.name, 0))
    widths = [(d.interval[1] - d.interval[0]) / 2 for d in choice.against_chosen.differences]
    models = {c.language_model for c in candidates} - {None}
    domain = evidence.in_domain
    evaluation = choice.chosen.first.result.evaluations[domain]
    return {
        "num_draws": len(choice.bench.draws),
        "most_draws": max(len(c.runs) for c in candidates),
        "num_examples": len(choice.bench.ids),
        "resolution": statistics.median(widths) if widths else None,
        "num_compared": len(compared),
        "chosen_scored_highest": choice.chosen is choice.best,
        "failures": dict(sorted(evidence.failures.items())),
        "largest_size": largest,
        "not_at_largest": {n: size for n, size in sorted(reached.items()) if 0 < size < largest},
        "without_shared_draw": sorted({c.name for c in judged} - compared),
        "language_models": sorted(str(model) for model in models),
        "waiting": _waiting(evidence.runs),
        "always_wrong": _always_wrong(choice),
        "one_domain": len(evidence.evaluations) == 1,
        "num_unanswered": evaluation.num_unanswered,
        "num_evaluated": evaluation.num_examples,
    }


def _waiting(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Return how many runs waited for others, of those whose processor time is known."""
    ratios = [
        run.result.duration_seconds / run.result.cpu_seconds
        for run in runs
        if run.result.method != REMOTE and run.result.cpu_seconds > SHORTEST_SECONDS
    ]
    above = [ratio for ratio in ratios if ratio > SHARED_MACHINE]
    return {"num_runs": len(ratios), "num_waiting": len(above), "most": max(ratios, default=None)}


def _always_wrong(choice: Choice) -> dict[str, Any] | None:
    """Return the examples that every method but the majority class has wrong in every draw."""
    bench = choice.bench
    kept = [i for i, c in enumerate(bench.candidates) if c.kind != MAJORITY]
    if len(kept) < FEWEST_METHODS:
        return None
    right = bench.correct[kept].reshape(-1, len(bench.ids)).sum(axis=0)  # (N,)
    ids = [name for name, times in zip(bench.ids, right.tolist(), strict=True) if not times]
    return {"num_methods": len(kept), "num_examples": len(ids), "ids": ids[:NUM_SHOWN]}
