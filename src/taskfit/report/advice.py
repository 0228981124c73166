"""What a comparison says to someone who has to choose: plain words, computed from its evidence.

Nothing here is known beforehand: every sentence follows from the finished runs.
"""

import math
from dataclasses import dataclass
from typing import Any

from taskfit.report.advice_choice import (
    Candidate,
    Choice,
    Limits,
    candidates_of,
    choose,
    largest_of_each,
    lay_side_by_side,
    nearest_miss,
)
from taskfit.report.advice_trust import (
    abstention_facts,
    calibration_facts,
    domain_facts,
    label_facts,
)
from taskfit.report.advice_unknown import unknown_facts
from taskfit.report.advice_words import write_text
from taskfit.report.evidence import Evidence
from taskfit.report.systems import AnswerStore, systems_of

__all__ = ["Advice", "Limits", "advise"]


@dataclass(frozen=True, slots=True, eq=False)
class Advice:
    """The advice of a comparison.

    Attributes:
        text: Paragraphs separated by blank lines, plain words, no markup.
        facts: Every number behind the text, plain JSON types.
    """

    text: str
    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: the text and every number behind it."""
        return {"text": self.text, **self.facts}


def advise(evidence: Evidence, *, limits: Limits) -> Advice:
    """Return what the evidence advises within the limits.

    Every method is judged at the most labels at which it ran and keeps the limits. What is
    chosen among them, see `choose`; if none keeps them, the nearest miss is described instead.

    Args:
        evidence: Finished runs of a comparison.
        limits: What the user can afford.

    Raises:
        CheckpointError: If predictions cannot be read, or have no examples in common.
    """
    metric = "accuracy" if evidence.multi_label else evidence.metric
    store = AnswerStore(evidence)
    candidates = candidates_of(evidence, evidence.in_domain)
    fitting = [candidate for candidate in candidates if not candidate.over(limits)]
    judged = largest_of_each(fitting) or [nearest_miss(candidates, limits)]
    bench = lay_side_by_side(judged, [evidence.in_domain], metric=metric, store=store)
    choice = choose(bench)
    chosen = choice.chosen
    others = [n for n in evidence.evaluations[1:] if n in chosen.first.result.evaluations]
    facts: dict[str, Any] = {
        "metric": metric,
        "multi_label": evidence.multi_label,
        "task": chosen.first.result.task,
        "in_domain": evidence.in_domain,
        "recommended": _described(chosen, choice) if fitting else None,
        "nearest_miss": None if fitting else _described(chosen, choice),
        "over": chosen.over(limits),
        "limits": limits.of_costs(),
        "excluded": _excluded(candidates, choice, limits, evidence.in_domain, store),
        "choice": _choice_facts(choice),
        "out_of_domain": domain_facts(choice, evidence.evaluations, metric=metric, store=store),
        "labels": label_facts(systems_of(evidence), evidence.in_domain, metric=metric),
        "abstention": None,
        "calibration": None,
        "kinds_run": sorted({candidate.kind for candidate in candidates}),
        "unknown": unknown_facts(evidence, choice, candidates, judged),
    }
    if not evidence.multi_label:
        facts["abstention"] = abstention_facts(
            chosen,
            evidence.in_domain,
            others,
            num_candidates=len(bench.candidates),
            store=store,
        )
        inside = calibration_facts(chosen, [evidence.in_domain], store)
        outside = calibration_facts(chosen, others, store) if others else None
        facts["calibration"] = {"in_domain": inside, "elsewhere": outside}
    plain: dict[str, Any] = _plain(facts)
    return Advice(write_text(plain), plain)


def _plain(value: object) -> Any:  # noqa: ANN401
    """Return lists for tuples and None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _described(candidate: Candidate, choice: Choice) -> dict[str, Any]:
    score = next(s for s in choice.against_best.scores if s.method == candidate.name)
    return {
        **candidate.to_dict(),
        "language_model": candidate.language_model,
        "score": score.mean,
        "interval": list(score.interval),
    }


def _choice_facts(choice: Choice) -> dict[str, Any]:
    bench = choice.bench
    shares = None
    if len(bench.gold):
        counts = [int((bench.gold == label).sum()) for label in range(int(bench.gold.max()) + 1)]
        shares = max(counts) / len(bench.gold)
    return {
        "best": _described(choice.best, choice),
        "equals": choice.equals,
        "saves": choice.saves,
        "draws": bench.draws,
        "num_examples": len(bench.ids),
        "candidates": [candidate.to_dict() for candidate in bench.candidates],
        "most_common_label_share": shares,
        "against_best": choice.against_best.to_dict(),
        "against_recommended": choice.against_chosen.to_dict(),
    }


def _excluded(
    candidates: list[Candidate],
    choice: Choice,
    limits: Limits,
    in_domain: str,
    store: AnswerStore,
) -> list[dict[str, Any]]:
    """Return what the limits exclude at its most labels, and how it compares with the chosen."""
    found = []
    chosen = choice.chosen
    for candidate in largest_of_each(candidates):
        over = candidate.over(limits)
        if not over or candidate is chosen:
            continue
        entry: dict[str, Any] = {
            **candidate.to_dict(),
            "over": over,
            "gain": None,
            "gain_interval": None,
        }
        if candidate.name != chosen.name:
            pair = lay_side_by_side(
                [chosen, candidate], [in_domain], metric=choice.bench.metric, store=store
            )
            if len(pair.candidates) == 2:
                (difference,) = pair.compare(chosen.name).differences
                entry["gain"] = difference.difference
                entry["gain_interval"] = list(difference.interval)
        found.append(entry)
    return sorted(found, key=lambda entry: -(entry["gain"] or 0.0))
