"""What a comparison says to someone who has to choose, computed from its evidence.

Nothing here is known beforehand: every fact follows from the finished runs; the words for them are
in `sentences.py`. Facts are nested dicts, as `advice.json` holds them, beside results of
`taskfit.stats`; None: does not apply, or unknown. Legend: N examples.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from taskfit.errors import CheckpointError
from taskfit.report.aligned import AlignedPredictions
from taskfit.report.choice import Choice, Limits, choose, largest_of_each, nearest_miss
from taskfit.report.confidence import abstention_facts, calibration_facts
from taskfit.report.evidence import Evidence
from taskfit.report.sentences import Paragraph, paragraphs_of
from taskfit.report.variants import MAJORITY, REMOTE, Contender, MethodVariant
from taskfit.stats.as_json import as_json
from taskfit.stats.back_test import back_test
from taskfit.stats.comparison import Difference, MethodScore, difference_interval
from taskfit.stats.learning_curve import fit_learning_curve
from taskfit.stats.per_class import class_rows, hardly_found

__all__ = ["Advice", "Limits", "advise"]

DETAILS = "Details."  # parts the two in a text
TIMES = (2, 4)
# Wall time above this many times the processor time was spent waiting.
SHARED_MACHINE = 1.3
SHORTEST_SECONDS = 1.0
NUM_SHOWN = 5
FEWEST_METHODS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Advice:
    """The advice of a comparison.

    Attributes:
        paragraphs: What to do, in plain words without markup.
        details: What stands behind it.
        facts: Every number behind them, see `advise`.
    """

    paragraphs: list[Paragraph]
    details: list[Paragraph]
    facts: dict[str, Any]

    @property
    def text(self) -> str:
        """Return all paragraphs, separated by blank lines, each under a line with its heading."""
        return "\n\n".join(map(str, [*self.paragraphs, DETAILS, *self.details]))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types: the text and every number behind it."""
        return {"text": self.text, **as_json(self.facts)}


def advise(evidence: Evidence, *, limits: Limits) -> Advice:
    """Return what the evidence advises within the limits.

    Every method is judged at the most labels at which it ran and keeps the limits. What is
    chosen among them, see `choose`; if none keeps them, the nearest miss is described instead.

    Of the facts, `recommended` is the chosen method, or `nearest_miss` if none keeps the limits;
    `over` is how far either exceeds them and `limits` what they are, by cost; `excluded` is what
    they exclude, each at its most labels, the highest gain first; `kinds_run` are the methods that
    were run, whatever the user calls them; `calibration` is `in_domain` and `elsewhere`. What the
    others hold stands where they are computed.

    Args:
        evidence: Finished runs of a comparison.
        limits: What the user can afford.

    Raises:
        CheckpointError: If predictions cannot be read, or have no examples in common.
    """
    inside, *outside = evidence.evaluations
    found = [v.at(size, inside) for v in evidence.variants for size in v.sizes]
    contenders = sorted((c for c in found if c), key=lambda contender: contender.order)
    fitting = [contender for contender in contenders if not limits.exceeded(contender)]
    judged = largest_of_each(fitting) or [nearest_miss(contenders, limits)]
    choice = choose(_aligned(evidence, judged, inside))
    chosen = choice.chosen
    others = [name for name in outside if name in chosen.first.result.evaluations]
    choice_facts = _choice_facts(choice, limits, multi_label=evidence.multi_label)
    taken = choice_facts["recommended"]
    abstention, calibration = None, None
    if not evidence.multi_label:
        num_contenders = len(choice.aligned.contenders)
        abstention = abstention_facts(evidence, chosen, others, num_contenders=num_contenders)
        calibration = {
            "in_domain": calibration_facts(evidence, chosen, [inside]),
            "elsewhere": calibration_facts(evidence, chosen, others) if others else None,
        }
    facts = {
        "metric": evidence.metric,
        "multi_label": evidence.multi_label,
        "task": chosen.first.result.task,
        "in_domain": inside,
        "recommended": taken if fitting else None,
        "nearest_miss": None if fitting else taken,
        "over": taken["over"],
        "limits": limits.of_costs(),
        "excluded": _excluded(evidence, contenders, choice, limits),
        "kinds_run": sorted({contender.kind for contender in contenders}),
        "choice": choice_facts,
        "out_of_domain": _domain_facts(evidence, choice, others) if others else None,
        "missed": _missed_labels(evidence, choice),
        "labels": _label_facts(evidence),
        "abstention": abstention,
        "calibration": calibration,
        "unknown": _unknown_facts(evidence, choice, contenders, judged),
    }
    return Advice(*paragraphs_of(facts), facts)


def _aligned(
    evidence: Evidence, contenders: Sequence[Contender], *evaluations: str
) -> AlignedPredictions:
    """Lay contenders side by side; raises CheckpointError unless two examples were seen by all."""
    found = evidence.align(contenders, *evaluations)
    if len(found.ids) < 2:
        raise CheckpointError(
            f"The runs were evaluated on {len(found.ids)} common examples of "
            f"{', '.join(evaluations)}, and two are the least to compare on. Evaluate all on the "
            "same set."
        )
    return found


def _described(
    contender: Contender,
    limits: Limits,
    *,
    score: MethodScore | None = None,
    gain: Difference | None = None,
) -> dict[str, Any]:
    """Return a contender's facts.

    `over` is by cost how many times its limit it is. `score` and `interval` are on the texts that
    all compared methods saw; where limits exclude it, `gain` and `gain_interval` are what it scores
    more than the chosen one.
    """
    return {
        "method": contender.name,
        "kind": contender.kind,
        "model": contender.variant.model,
        "language_model": contender.language_model,
        "num_labels": contender.size,
        "draws": sorted(contender.runs),
        **contender.costs,
        "over": limits.exceeded(contender),
        "score": score.mean if score else None,
        "interval": score.interval if score else None,
        "gain": gain.difference if gain else None,
        "gain_interval": gain.interval if gain else None,
    }


def _choice_facts(choice: Choice, limits: Limits, *, multi_label: bool) -> dict[str, Any]:
    """Return what was compared in domain, from cheap to expensive, and what was chosen.

    `recommended` is the chosen one, whether it keeps the limits or not; `best`, `equals` and
    `saves` as in `Choice`; the comparison is there with differences to either.
    """
    aligned = choice.aligned
    shares = np.bincount(aligned.gold) / len(aligned.gold)
    pairs = zip(aligned.contenders, aligned.comparison.scores, strict=True)
    described = {c.name: _described(c, limits, score=score) for c, score in pairs}
    return {
        "recommended": described[choice.chosen.name],
        "best": described[choice.best.name],
        "equals": choice.equals,
        "saves": choice.saves,
        "draws": aligned.draws,
        "num_examples": len(aligned.ids),
        "candidates": list(described.values()),
        "most_common_label_share": None if multi_label else float(shares.max()),
        "against_best": aligned.comparison,
        "against_recommended": aligned.comparison.relative_to(choice.chosen.name),
    }


def _missed_labels(evidence: Evidence, choice: Choice) -> list[dict[str, Any]]:
    """Return the labels that the chosen method hardly finds in domain, and who finds most of each.

    Over all draws; `most` is that method, None where none finds more.
    """
    rows = {
        contender.name: class_rows(
            *(run.result.evaluations[evidence.in_domain] for run in contender.runs.values())
        )
        for contender in choice.aligned.contenders
    }
    recalls = {name: {row.name: row.recall or 0.0 for row in found} for name, found in rows.items()}
    own, missed = recalls[choice.chosen.name], []
    for label in (row.name for row in hardly_found(rows[choice.chosen.name])):
        most, recall = max(
            ((name, found.get(label, 0.0)) for name, found in recalls.items()),
            key=lambda pair: pair[1],
        )
        missed.append(
            {
                "label": label,
                "recall": own[label],
                "most": most if recall > own[label] else None,
                "most_recall": recall,
            }
        )
    return missed


def _excluded(
    evidence: Evidence, contenders: Sequence[Contender], choice: Choice, limits: Limits
) -> list[dict[str, Any]]:
    """Return what the limits exclude at its most labels, and how it compares with the chosen."""
    found, chosen = [], choice.chosen
    for contender in largest_of_each(contenders):
        if contender is chosen or not limits.exceeded(contender):
            continue
        gain = None
        if contender.name != chosen.name:
            pair = _aligned(evidence, [chosen, contender], evidence.in_domain)
            if len(pair.contenders) == 2:
                (gain,) = pair.comparison.relative_to(chosen.name).differences
        found.append(_described(contender, limits, gain=gain))
    return sorted(found, key=lambda entry: -(entry["gain"] or 0.0))


def _domain_facts(evidence: Evidence, choice: Choice, sets: list[str]) -> dict[str, Any]:
    """Return scores on the examples of all other sets together, and what is lost there.

    `losses` are by method, empty where other draws were compared in domain; `by_set` is set ->
    method -> score; `rank_correlation` is Kendall's tau-b of the methods' order in and out of
    domain, None with fewer than three methods or without any order.
    """
    contenders = [
        c
        for c in choice.aligned.contenders
        if all(name in run.result.evaluations for run in c.runs.values() for name in sets)
    ]
    together = _aligned(evidence, contenders, *sets)
    compared = together.comparison.relative_to(choice.chosen.name)
    inside = {score.method: score for score in choice.aligned.comparison.scores}
    apart = {name: _aligned(evidence, contenders, name).comparison.scores for name in sets}
    before, after = zip(*((inside[s.method].mean, s.mean) for s in compared.scores), strict=True)
    ordered = len(before) > 2 and len(set(before)) > 1 and len(set(after)) > 1
    return {
        "sets": sets,
        "num_examples": len(together.ids),
        "comparison": compared,
        "losses": {
            score.method: _loss(inside[score.method], score)
            for score in compared.scores
            if together.draws == choice.aligned.draws
        },
        "by_set": {name: {s.method: s.mean for s in scores} for name, scores in apart.items()},
        "rank_correlation": float(stats.kendalltau(before, after).statistic) if ordered else None,
    }


def _loss(inside: MethodScore, outside: MethodScore) -> dict[str, Any]:
    """Return what a method scores less out of domain, with the interval of independent texts."""
    first, second = (inside.mean, *inside.interval), (outside.mean, *outside.interval)
    return {"loss": inside.mean - outside.mean, "interval": difference_interval(first, second)}


def _label_facts(evidence: Evidence) -> dict[str, Any]:
    """Return what more labels would bring to each method, and how many forecasts were right.

    `gains` are those of `TIMES` the labels that it has `now`.
    """
    by_method, cases = {}, []
    for variant in evidence.variants:
        scores = _scores_by_size(variant, evidence)
        if not scores:
            continue
        sizes, draws = list(scores), sorted({seed for found in scores.values() for seed in found})
        table = np.array([[one.get(seed, np.nan) for seed in draws] for one in scores.values()])
        curve, tests = fit_learning_curve(sizes, table), back_test(sizes, table)
        # The majority class hardly depends on size: right forecasts of it are no merit.
        cases += [] if variant.method == MAJORITY else tests
        gains = [curve.gain(sizes[-1], factor * sizes[-1]) for factor in TIMES]
        by_method[variant.name] = {
            "now": sizes[-1],
            "curve": curve,
            "gains": gains,
            "back_tests": tests,
        }
    num_covered = sum(case.covered for case in cases)
    return {"by_method": by_method, "num_back_tests": len(cases), "num_covered": num_covered}


def _scores_by_size(variant: MethodVariant, evidence: Evidence) -> dict[int, dict[int, float]]:
    """Return number of labels -> draw -> score in domain."""
    name = evidence.in_domain
    found = {size: variant.at(size, name) for size in variant.sizes if size}
    return {
        size: {
            seed: float(getattr(run.result.evaluations[name], evidence.metric))
            for seed, run in contender.runs.items()
        }
        for size, contender in found.items()
        if contender
    }


def _unknown_facts(
    evidence: Evidence, choice: Choice, contenders: Sequence[Contender], judged: Sequence[Contender]
) -> dict[str, Any]:
    """Return what the evidence leaves open; contenders are all, judged those to be compared.

    `num_draws` are compared, `most_draws` the most that a method has; `resolution` is the median
    half width of the intervals of differences to the chosen method; `not_at_largest` is the most
    labels that a method had, where that is less than `largest_size`; methods of
    `without_shared_draw` could not be compared; texts got no answer, or one, by the chosen
    method's first draw in domain.
    """
    aligned = choice.aligned
    compared = {contender.name for contender in aligned.contenders}
    largest = {c.name: c.size for c in largest_of_each(contenders)}
    most = max(largest.values())
    differences = aligned.comparison.relative_to(choice.chosen.name).differences
    widths = [(d.interval[1] - d.interval[0]) / 2 for d in differences]
    evaluation = choice.chosen.first.result.evaluations[evidence.in_domain]
    return {
        "num_draws": len(aligned.draws),
        "most_draws": max(len(c.runs) for c in contenders),
        "num_examples": len(aligned.ids),
        "resolution": statistics.median(widths) if widths else None,
        "num_compared": len(compared),
        "chosen_scored_highest": choice.chosen is choice.best,
        "failures": dict(sorted(evidence.failures.items())),
        "largest_size": most,
        "not_at_largest": {n: size for n, size in sorted(largest.items()) if 0 < size < most},
        "without_shared_draw": sorted({c.name for c in judged} - compared),
        "language_models": sorted({c.language_model for c in contenders if c.language_model}),
        "waiting": _waiting(evidence),
        "processors": _machines(evidence, "processor"),
        "number_formats": _machines(evidence, "dtype"),
        "always_wrong": _always_wrong(aligned),
        "one_domain": len(evidence.evaluations) == 1,
        "num_unanswered": evaluation.num_unanswered,
        "num_evaluated": evaluation.num_examples,
    }


def _waiting(evidence: Evidence) -> dict[str, Any]:
    """Return how many runs waited for other programs, of those whose processor time is known."""
    ratios = [
        run.result.duration_seconds / run.result.cpu_seconds
        for run in evidence.runs
        if run.result.method != REMOTE and run.result.cpu_seconds > SHORTEST_SECONDS
    ]
    waiting = sum(ratio > SHARED_MACHINE for ratio in ratios)
    return {"num_runs": len(ratios), "num_waiting": waiting, "most": max(ratios, default=None)}


def _machines(evidence: Evidence, what: str) -> list[str]:
    """Return what the machines of all runs are called, or the number formats they computed in."""
    return sorted({run.result.machine[what] for run in evidence.runs if what in run.result.machine})


def _always_wrong(aligned: AlignedPredictions) -> dict[str, Any] | None:
    """Return the examples that every method but the majority class has wrong in every draw.

    None with fewer than three methods.
    """
    kept = [i for i, c in enumerate(aligned.contenders) if c.kind != MAJORITY]
    if len(kept) < FEWEST_METHODS:
        return None
    wrong = ~aligned.correct[kept].reshape(-1, len(aligned.ids)).any(axis=0)  # (N,)
    ids = [aligned.ids[i] for i in np.flatnonzero(wrong)]
    return {"num_methods": len(kept), "num_examples": len(ids), "ids": ids[:NUM_SHOWN]}
