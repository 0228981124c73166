"""Calibrate a fitted classifier on held-out examples: temperature, and scores for prediction sets.

Temperature and weights are chosen on the validation set, so scores from the same examples would
promise a little too much. Where the set is large enough, half of it is therefore kept away from
everything but the scores.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.runs.classifier import Calibration, Classifier
from taskfit.screen import Screen
from taskfit.settings import RunSettings
from taskfit.stats.conformal import (
    LEVELS,
    achieved_coverage,
    conformal_scores,
    num_needed,
    prediction_sets,
    threshold,
)
from taskfit.stats.temperature import (
    TemperatureFit,
    apply_temperature,
    fit_multi_label_temperature,
    fit_temperature,
)

FloatArray = NDArray[np.float64]

# With half of this, a coverage of 0.95 is met within about 0.02 of what was asked for.
ENOUGH_TO_SPLIT = 200


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The validation set, cut for calibration.

    Attributes:
        validation: Chooses weights and temperature.
        for_sets: Gives the scores of prediction sets.
        is_fresh: Whether `for_sets` is seen by nothing else.
    """

    validation: list[Example]
    for_sets: list[Example]
    is_fresh: bool


def hold_out(validation: Sequence[Example], settings: RunSettings) -> HeldOut:
    """Cut the validation set by a seeded draw, if prediction sets are wanted and it suffices."""
    examples = list(validation)
    if not settings.calibration.prediction_sets or len(examples) < ENOUGH_TO_SPLIT:
        return HeldOut(examples, examples, is_fresh=False)
    order = np.random.default_rng([settings.seed, 2]).permutation(len(examples))
    chosen = set(order[: len(examples) // 2].tolist())
    return HeldOut(
        [example for i, example in enumerate(examples) if i not in chosen],
        [examples[i] for i in sorted(chosen)],
        is_fresh=True,
    )


def calibrate(
    classifier: Classifier, held_out: HeldOut, settings: RunSettings, screen: Screen
) -> dict[str, Any]:
    """Fit what the settings ask for, and put it into the classifier.

    Args:
        classifier: Fitted, not yet calibrated.
        held_out: Of `hold_out`.
        settings: All settings.
        screen: Where it is said what could not be done.

    Returns:
        What `result.json` records under `calibration`; empty where nothing is asked for.
    """
    wanted = settings.calibration
    if not wanted.temperature and not wanted.prediction_sets:
        return {}
    if not held_out.validation:
        screen.note(
            "calibration: there is no validation set, so nothing is calibrated; give "
            "data.validation, or training data with data.validation_fraction above 0"
        )
        return {}
    details: dict[str, Any] = {}
    raw: FloatArray | None = None
    if wanted.temperature:
        raw = classifier.probabilities(held_out.validation)
        details |= _fit_temperature(classifier, held_out.validation, raw, screen)
    if wanted.prediction_sets and classifier.task.multi_label:
        screen.note("calibration: prediction sets are for tasks with one label a text; none kept")
    elif wanted.prediction_sets:
        details |= _keep_scores(classifier, held_out, raw, screen)
    return {"calibration": details} if details else {}


def coverage_record(
    classifier: Classifier, examples: Sequence[Example], probabilities: FloatArray
) -> list[dict[str, Any]]:
    """Return how often prediction sets of usual coverages hold the right label of examples.

    Args:
        classifier: With its calibration.
        examples: Labelled.
        probabilities: Of theirs, (N, L).
    """
    scores = classifier.calibration.scores
    if scores is None:
        return []
    gold = classifier.gold(examples)
    return [
        asdict(
            achieved_coverage(
                prediction_sets(probabilities, threshold(scores, level)), gold, coverage=level
            )
        )
        for level in LEVELS
        if num_needed(level) <= len(scores)
    ]


def _fit_temperature(
    classifier: Classifier, examples: Sequence[Example], raw: FloatArray, screen: Screen
) -> dict[str, Any]:
    several = classifier.task.multi_label
    fitted: TemperatureFit
    if several:
        fitted = fit_multi_label_temperature(raw, classifier.present(examples))
    else:
        fitted = fit_temperature(raw, classifier.gold(examples))
    if fitted.reason is not None:
        screen.note(f"calibration: the temperature stays 1, as {fitted.reason}")
    before = classifier.evaluate(examples, raw)
    scaled = apply_temperature(raw, fitted.temperature, multi_label=several)
    after = classifier.evaluate(examples, scaled)
    classifier.calibration = dataclasses.replace(
        classifier.calibration, temperature=fitted.temperature
    )
    if fitted.reason is None:
        screen.note(
            f"temperature {fitted.temperature:.3g} from {fitted.num_examples:,} validation "
            f"examples: log loss {before.log_loss:.3f} -> {after.log_loss:.3f}, ECE "
            f"{before.ece:.3f} -> {after.ece:.3f}"
        )
    return {
        "temperature": fitted.temperature,
        "temperature_note": fitted.reason,
        "num_validation": fitted.num_examples,
        "log_loss_before": before.log_loss,
        "log_loss_after": after.log_loss,
        "ece_before": before.ece,
        "ece_after": after.ece,
    }


def _keep_scores(
    classifier: Classifier, held_out: HeldOut, raw: FloatArray | None, screen: Screen
) -> dict[str, Any]:
    examples = held_out.for_sets
    calibration: Calibration = classifier.calibration
    if raw is not None and not held_out.is_fresh:
        probabilities = apply_temperature(raw, calibration.temperature)
    else:
        probabilities = classifier.probabilities(examples)
    gold = classifier.gold(examples)
    scores = conformal_scores(probabilities, gold)
    order = np.argsort(scores, kind="stable")
    classifier.calibration = dataclasses.replace(
        calibration, scores=scores[order], score_labels=gold[order]
    )
    if held_out.is_fresh:
        screen.note(f"prediction sets: {len(examples):,} validation examples were kept for them")
    else:
        screen.note(
            f"calibration: the {len(examples)} validation examples also chose weights or "
            "temperature, so prediction sets may hold the right label a little less often than "
            f"asked for; from {ENOUGH_TO_SPLIT} validation examples on, half are kept apart"
        )
    return {"num_held_out": len(examples), "held_out_is_fresh": held_out.is_fresh}
