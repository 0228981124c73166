"""What else the evidence says of a chosen method: other domains, more labels, confidence.

Numbers only; the words are in `advice_words`. Legend: N examples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from taskfit.report.advice_choice import (
    ALPHA,
    MAJORITY,
    Candidate,
    Choice,
    lay_side_by_side,
    mover,
)
from taskfit.report.systems import AnswerStore, System
from taskfit.stats import Evaluation
from taskfit.stats.abstention import threshold_for_precision
from taskfit.stats.back_test import back_test
from taskfit.stats.comparison import MethodScore
from taskfit.stats.learning_curve import fit_learning_curve
from taskfit.stats.metrics import FloatArray, binned_error

BoolArray = NDArray[np.bool_]

# Precisions that are promised one after the other until one fails; the last is what is wanted.
PRECISIONS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
NUM_SIMULATED = 500
TIMES = (2, 4)


def domain_facts(
    choice: Choice, evaluations: Sequence[str], *, metric: str, store: AnswerStore
) -> dict[str, Any] | None:
    """Return scores on the examples of all other sets together, and what is lost there.

    Losses are of independent examples; their intervals are `mover`'s.

    Args:
        choice: What was chosen in domain.
        evaluations: All evaluation sets, the one in domain first.
        metric: The metric.
        store: Reads predictions.

    Returns:
        None where the chosen method was measured on one set only.
    """
    measured = choice.chosen.first.result.evaluations
    sets = [name for name in evaluations[1:] if name in measured]
    if not sets:
        return None
    candidates = [
        c
        for c in choice.bench.candidates
        if all(name in run.result.evaluations for run in c.runs.values() for name in sets)
    ]
    bench = lay_side_by_side(candidates, sets, metric=metric, store=store)
    compared = bench.compare(choice.chosen.name)
    inside = {score.method: score for score in choice.against_best.scores}
    losses = {
        score.method: _loss(inside[score.method], score)
        for score in compared.scores
        if bench.draws == choice.bench.draws
    }
    by_set = {
        name: {
            s.method: s.mean
            for s in lay_side_by_side(candidates, [name], metric=metric, store=store)
            .compare()
            .scores
        }
        for name in sets
    }
    return {
        "sets": sets,
        "num_examples": len(bench.ids),
        "comparison": compared.to_dict(),
        "losses": losses,
        "by_set": by_set,
        "rank_correlation": _rank_correlation(
            [inside[s.method].mean for s in compared.scores], [s.mean for s in compared.scores]
        ),
    }


def _loss(inside: MethodScore, outside: MethodScore) -> dict[str, Any]:
    interval = mover((inside.mean, *inside.interval), (outside.mean, *outside.interval))
    return {"loss": inside.mean - outside.mean, "interval": list(interval)}


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Kendall's tau-b; None with fewer than three methods or without any order."""
    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(stats.kendalltau(first, second).statistic)


def label_facts(systems: Sequence[System], evaluation: str, *, metric: str) -> dict[str, Any]:
    """Return what more labels would bring to each method, and whether such forecasts were right."""
    by_method: dict[str, Any] = {}
    cases = []
    for system in systems:
        sizes = [n for n in system.sizes if n > 0 and _scores_at(system, n, evaluation, metric)]
        if not sizes:
            continue
        draws = sorted({seed for n in sizes for seed in system.at(n)})
        found = [_scores_at(system, n, evaluation, metric) for n in sizes]
        scores = np.array([[one.get(seed, np.nan) for seed in draws] for one in found])
        curve = fit_learning_curve(sizes, scores)
        now = sizes[-1]
        tests = [case.to_dict() for case in back_test(sizes, scores)]
        # The majority class hardly depends on size: right forecasts of it are no merit.
        cases += [] if system.runs[0].result.method == MAJORITY else tests
        by_method[system.name] = {
            "now": now,
            "curve": curve.to_dict(),
            "gains": [curve.gain(now, factor * now).to_dict() for factor in TIMES],
            "back_tests": tests,
        }
    covered = sum(case["covered"] for case in cases)
    return {"by_method": by_method, "num_back_tests": len(cases), "num_covered": covered}


def _scores_at(system: System, size: int, evaluation: str, metric: str) -> dict[int, float]:
    return {
        seed: _score(run.result.evaluations[evaluation], metric)
        for seed, run in system.at(size).items()
        if evaluation in run.result.evaluations
    }


def _score(evaluation: Evaluation, metric: str) -> float:
    if metric == "mcc":
        return evaluation.mcc
    return evaluation.accuracy if metric == "accuracy" else evaluation.macro_f1


def abstention_facts(
    candidate: Candidate,
    in_domain: str,
    others: Sequence[str],
    *,
    num_candidates: int,
    store: AnswerStore,
) -> dict[str, Any] | None:
    """Return the threshold that keeps a precision in domain, and what it keeps elsewhere.

    Precisions are tried in rising order, each at the same level, up to the first that cannot be
    promised: a fixed sequence, so trying several costs nothing. The candidate was chosen among
    others on the same examples, so the level is Bonferroni's over all of them.

    Returns:
        None for the majority class, whose confidence says nothing about a text.
    """
    if candidate.kind == MAJORITY:
        return None
    confidence, correct = _confidence(candidate, [in_domain], store)
    level = 1 - ALPHA / num_candidates
    kept, failed = None, None
    for precision in PRECISIONS:
        found = threshold_for_precision(
            confidence, correct, precision=precision, confidence_level=level
        )
        if found.threshold is None:
            failed = found.to_dict()
            break
        kept = found
    facts: dict[str, Any] = {
        "wanted_precision": PRECISIONS[-1],
        "num_candidates": num_candidates,
        "draw": candidate.first.seed,
        "num_examples": len(confidence),
        "promised": kept.to_dict() if kept else None,
        "failed": failed,
        "elsewhere": None,
    }
    if kept and kept.threshold is not None and others:
        confidence, correct = _confidence(candidate, others, store)
        answered = confidence >= kept.threshold
        facts["elsewhere"] = _share_right(correct[answered], len(confidence))
    return facts


def _share_right(correct: BoolArray, num_examples: int) -> dict[str, Any]:
    if not len(correct):
        return {"coverage": 0.0, "num_answered": 0, "precision": None, "interval": None}
    found = stats.binomtest(int(correct.sum()), len(correct)).proportion_ci(method="exact")
    return {
        "coverage": len(correct) / num_examples,
        "num_answered": len(correct),
        "precision": float(correct.mean()),
        "interval": [float(found.low), float(found.high)],
    }


def _confidence(
    candidate: Candidate, evaluations: Sequence[str], store: AnswerStore
) -> tuple[FloatArray, BoolArray]:
    """Return the top probability, NaN without an answer, and whether it is right; both (N,)."""
    parts = [store.of([candidate.first], evaluation) for evaluation in evaluations]
    confidence = np.concatenate([part.probabilities[0].max(axis=1) for part in parts])
    # Sums of rounded probabilities may exceed 1 by a little.
    return np.clip(confidence, 0.0, 1.0), np.concatenate([part.correct[0] for part in parts])


def calibration_facts(
    candidate: Candidate, evaluations: Sequence[str], store: AnswerStore
) -> dict[str, Any] | None:
    """Return whether the confidence on some sets fits how often it is right.

    The expected calibration error is above 0 by chance alone, so it is compared with its 95th
    percentile where every answer is right with exactly its confidence (consistency resampling,
    Bröcker and Smith 2007).

    Returns:
        None where nothing was answered.
    """
    confidence, correct = _confidence(candidate, evaluations, store)
    answered = ~np.isnan(confidence)
    confidence, correct = confidence[answered], correct[answered]
    if not len(confidence):
        return None
    gaps = confidence - correct
    error = float(gaps.std(ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else 1.0
    reach = float(stats.norm.ppf(1 - ALPHA / 2)) * error
    generator = np.random.default_rng(0)
    simulated = [
        binned_error(confidence, generator.random(len(confidence)) < confidence)
        for _ in range(NUM_SIMULATED)
    ]
    results = [candidate.first.result.evaluations[name] for name in evaluations]
    counts = np.array([e.num_examples for e in results])
    gold = np.concatenate([store.of([candidate.first], name).gold_index for name in evaluations])
    shares = np.bincount(gold) / len(gold)
    return {
        "num_examples": len(confidence),
        "accuracy": float(correct.mean()),
        "mean_confidence": float(confidence.mean()),
        "overconfidence": float(gaps.mean()),
        "interval": [float(gaps.mean()) - reach, float(gaps.mean()) + reach],
        "ece": binned_error(confidence, correct),
        "ece_by_chance": float(np.quantile(simulated, 1 - ALPHA)),
        "log_loss": float(np.average([e.log_loss for e in results], weights=counts)),
        "log_loss_of_frequencies": float(stats.entropy(shares[shares > 0])),
    }
