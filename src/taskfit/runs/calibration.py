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
from taskfit.runs.asked import AskedQuestion
from taskfit.runs.classifier import Classifier
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
    """Cut the validation set by a seeded draw, if prediction sets are requested and it suffices."""
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
    """Fit what the settings ask for, for every question, and put it into the classifier.

    Args:
        classifier: Fitted, not yet calibrated.
        held_out: Of `hold_out`.
        settings: All settings.
        screen: Where it is said what could not be done.

    Returns:
        What `result.json` records under `calibration`, of several questions by question; empty
        where nothing is asked for.
    """
    requested = settings.calibration
    if not requested.temperature and not requested.prediction_sets:
        return {}
    if not held_out.validation:
        screen.note(
            "calibration: there is no validation set, so nothing is calibrated; give "
            "data.validation, or training data with data.validation_fraction above 0"
        )
        return {}
    details: dict[str, dict[str, Any]] = {name: {} for name in classifier.questions}
    raw: FloatArray | None = None
    if requested.temperature:
        raw = classifier.probabilities(held_out.validation)
        for question, examples, own in classifier.by_question(held_out.validation, raw):
            details[question.name] |= _fit_temperature(question, examples, own, screen)
    if requested.prediction_sets and any(
        question.task.multi_label for question in classifier.questions.values()
    ):
        screen.note("calibration: prediction sets are for tasks with one label a text; none kept")
    elif requested.prediction_sets:
        if raw is None or held_out.is_fresh:
            found = classifier.probabilities(held_out.for_sets)
        else:  # both are the same texts, at temperature 1
            found = classifier.at_temperature(raw)
        for question, examples, own in classifier.by_question(held_out.for_sets, found):
            details[question.name] |= _keep_scores(question, examples, own, held_out, screen)
    if not any(details.values()):
        return {}
    return {"calibration": details.get("", details)}


def coverage_record(
    question: AskedQuestion, examples: Sequence[Example], probabilities: FloatArray
) -> list[dict[str, Any]]:
    """Return how often prediction sets of usual coverages hold the right label of examples.

    Args:
        question: With its calibration.
        examples: With a label of it.
        probabilities: Of theirs, (N, L).
    """
    scores = question.calibration.scores
    if scores is None:
        return []
    gold = question.gold(examples)
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
    question: AskedQuestion, examples: Sequence[Example], raw: FloatArray, screen: Screen
) -> dict[str, Any]:
    fitted: TemperatureFit
    if question.task.multi_label:
        fitted = fit_multi_label_temperature(raw, question.present(examples))
    else:
        fitted = fit_temperature(raw, question.gold(examples))
    whose = f" of {question.name}" if question.name else ""
    if fitted.reason is not None:
        screen.note(f"calibration: the temperature{whose} stays 1, as {fitted.reason}")
    before = question.evaluate(examples, raw)
    question.calibration = dataclasses.replace(question.calibration, temperature=fitted.temperature)
    after = question.evaluate(examples, question.calibrated(raw))
    if fitted.reason is None:
        screen.note(
            f"temperature{whose} {fitted.temperature:.3g} from {fitted.num_examples:,} validation "
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
    question: AskedQuestion,
    examples: Sequence[Example],
    probabilities: FloatArray,
    held_out: HeldOut,
    screen: Screen,
) -> dict[str, Any]:
    gold = question.gold(examples)
    scores = conformal_scores(probabilities, gold)
    order = np.argsort(scores, kind="stable")
    question.calibration = dataclasses.replace(
        question.calibration, scores=scores[order], score_labels=gold[order]
    )
    whose = f" of {question.name}" if question.name else ""
    if held_out.is_fresh:
        screen.note(
            f"prediction sets{whose}: {len(examples):,} validation examples were kept for them"
        )
    else:
        screen.note(
            f"calibration: the {len(examples)} validation examples{whose} also chose weights or "
            "temperature, so prediction sets may hold the right label a little less often than "
            f"asked for; from {ENOUGH_TO_SPLIT} validation examples on, half are kept apart"
        )
    return {"num_held_out": len(examples), "held_out_is_fresh": held_out.is_fresh}
