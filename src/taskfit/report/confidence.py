"""How far the confidence of methods can be trusted: as tables for figures, as facts for advice.

Legend: N examples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from taskfit.report.evidence import Evidence
from taskfit.report.variants import MAJORITY, Contender
from taskfit.stats import reliability
from taskfit.stats.abstention import risk_coverage, threshold_for_precision
from taskfit.stats.arrays import BoolArray, FloatArray, IntArray
from taskfit.stats.comparison import ALPHA
from taskfit.stats.metrics import binned_error, binomial_interval

# A point every so many answers is enough for a curve.
CURVE_POINTS = 200
# Precisions that are promised one after the other until one fails; the last is the target.
PRECISIONS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
NUM_SIMULATED = 500


def confidence_tables(
    evidence: Evidence, contenders: Sequence[Contender], evaluation: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the reliability diagram and the risk-coverage curve of contenders, draws pooled."""
    bins, curves = [pd.DataFrame()], [pd.DataFrame()]
    for contender in contenders:
        answers = evidence.answers[evaluation].of(list(contender.runs.values()))
        probabilities = answers.probabilities.reshape(-1, len(answers.labels))
        gold = np.tile(answers.gold, len(contender.runs))
        confidence, correct = probabilities.max(axis=1), answers.correct.ravel()
        answered = ~np.isnan(confidence)
        if not answered.any():
            continue
        about = {"system": contender.name, "num_draws": len(contender.runs)}
        found = reliability(probabilities[answered], gold[answered])
        columns = {"confidence": found.confidence, "accuracy": found.accuracy, "count": found.count}
        bins.append(pd.DataFrame({**about, **columns}))
        curve = risk_coverage(np.minimum(confidence, 1.0), correct)
        kept = np.unique(np.linspace(0, len(curve.risk) - 1, CURVE_POINTS).round().astype(int))
        about |= {"num_examples": len(correct), "aurc": curve.aurc}
        columns = {"threshold": curve.thresholds, "coverage": curve.coverage, "risk": curve.risk}
        curves.append(pd.DataFrame({**about, **{k: v[kept] for k, v in columns.items()}}))
    return pd.concat(bins, ignore_index=True), pd.concat(curves, ignore_index=True)


def abstention_facts(
    evidence: Evidence, contender: Contender, others: Sequence[str], *, num_contenders: int
) -> dict[str, Any] | None:
    """Return the threshold that keeps a precision in domain, and what it keeps elsewhere.

    Precisions are tried in rising order, each at the same level, up to the first that cannot be
    promised: a fixed sequence, so trying several costs nothing. The contender was chosen among
    others on the same examples, so the level is Bonferroni's over all of them.

    Returns:
        `promised` and `failed`: the highest precision that can be promised and the first that
        cannot, None: none; `elsewhere`: what the threshold gives out of domain, None without
        another set; `wanted_precision`: the highest that is tried; `num_contenders`: among which
        the method was chosen on the same texts. None for the majority class, whose confidence says
        nothing about a text.
    """
    if contender.kind == MAJORITY:
        return None
    confidence, correct, _ = _confidence(evidence, contender, [evidence.in_domain])
    level = 1 - ALPHA / num_contenders
    kept, failed, elsewhere = None, None, None
    for precision in PRECISIONS:
        found = threshold_for_precision(
            confidence, correct, precision=precision, confidence_level=level
        )
        if found.threshold is None:
            failed = found
            break
        kept = found
    if kept and kept.threshold is not None and others:
        there, right, _ = _confidence(evidence, contender, others)
        elsewhere = _answered(right[there >= kept.threshold], len(there))
    return {
        "wanted_precision": PRECISIONS[-1],
        "num_candidates": num_contenders,
        "draw": contender.first.seed,
        "num_examples": len(confidence),
        "promised": kept,
        "failed": failed,
        "elsewhere": elsewhere,
    }


def _answered(correct: BoolArray, num_examples: int) -> dict[str, Any]:
    """Return what is answered from a threshold on, and how much of it is right."""
    num, right = len(correct), int(correct.sum())
    return {
        "coverage": num / num_examples,
        "num_answered": num,
        "precision": right / num if num else None,
        "interval": binomial_interval(right, num, method="exact") if num else None,
    }


def _confidence(
    evidence: Evidence, contender: Contender, evaluations: Sequence[str]
) -> tuple[FloatArray, BoolArray, IntArray]:
    """Return top probabilities, NaN without an answer, what is right, and gold; all (N,)."""
    parts = [evidence.answers[evaluation].of([contender.first]) for evaluation in evaluations]
    confidence = np.concatenate([part.probabilities[0].max(axis=1) for part in parts])
    correct = np.concatenate([part.correct[0] for part in parts])
    # Sums of rounded probabilities may exceed 1 by a little.
    return np.clip(confidence, 0.0, 1.0), correct, np.concatenate([part.gold for part in parts])


def calibration_facts(
    evidence: Evidence, contender: Contender, evaluations: Sequence[str]
) -> dict[str, Any] | None:
    """Return whether the confidence on some sets fits how often it is right.

    The expected calibration error is above 0 by chance alone, so it is compared with its 95th
    percentile where every answer is right with exactly its confidence (consistency resampling,
    Bröcker and Smith 2007).

    Returns:
        Of the answers given `overconfidence`, confidence less accuracy, with its 95 % interval,
        and `log_loss_of_frequencies`, that of always giving the labels' shares, among others.
        None where nothing was answered.
    """
    confidence, correct, gold = _confidence(evidence, contender, evaluations)
    answered = ~np.isnan(confidence)
    confidence, correct = confidence[answered], correct[answered]
    if not len(confidence):
        return None
    gaps = confidence - correct
    gap = float(gaps.mean())
    error = float(gaps.std(ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else 1.0
    reach = float(stats.norm.ppf(1 - ALPHA / 2)) * error
    generator = np.random.default_rng(0)
    simulated = [
        binned_error(confidence, generator.random(len(confidence)) < confidence)
        for _ in range(NUM_SIMULATED)
    ]
    results = [contender.first.result.evaluations[name] for name in evaluations]
    counts = np.array([e.num_examples for e in results])
    shares = np.bincount(gold) / len(gold)
    return {
        "num_examples": len(confidence),
        "accuracy": float(correct.mean()),
        "mean_confidence": float(confidence.mean()),
        "overconfidence": gap,
        "interval": (gap - reach, gap + reach),
        "ece": binned_error(confidence, correct),
        "ece_by_chance": float(np.quantile(simulated, 1 - ALPHA)),
        "log_loss": float(np.average([e.log_loss for e in results], weights=counts)),
        "log_loss_of_frequencies": float(stats.entropy(shares[shares > 0])),
    }
