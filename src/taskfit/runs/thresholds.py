"""Thresholds of a run whose texts may have several labels: chosen, given by the user, shown.

Legend: N examples, L labels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.errors import SettingsError, suggestion
from taskfit.runs.asked import AskedQuestion
from taskfit.runs.classifier import Classifier
from taskfit.screen import Screen
from taskfit.settings import RunSettings
from taskfit.stats.multi_label import THRESHOLD, answer_metrics
from taskfit.stats.thresholds import Goal, Thresholds, crossed_thresholds, fit_thresholds
from taskfit.tasks.questions import Asked

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
# Under this name `result.json` keeps what was chosen and what it is worth.
RECORD = "thresholds"
# Threshold of all labels that have none of their own, among those that a user gives.
ALL = ""
# With fewer texts even the default would be chosen by chance.
FEWEST = 20
FOLDS = 5
MOST_NAMED = 5


def check_thresholds(asked: Asked, settings: RunSettings) -> None:
    """Refuse thresholds for texts of which each has one label.

    Raises:
        SettingsError: If they are asked for there.
    """
    chosen = settings.calibration.thresholds
    if chosen not in ("auto", "none") and not any(t.multi_label for t in asked.tasks.values()):
        raise SettingsError(
            f"calibration.thresholds={chosen} is for tasks in which a text may have several labels "
            "(task.multi_label=true); here it has one, the most probable. Leave it out; `taskfit "
            "predict --abstain-below` leaves unsure answers out."
        )


def goal_of(settings: RunSettings, asked: Asked) -> Goal | None:
    """Return what thresholds are chosen for; None: none are.

    By itself it is F1, but not for a method that says the same of every text: it would give all
    texts every label.
    """
    chosen = settings.calibration.thresholds
    if chosen == "none" or not any(task.multi_label for task in asked.tasks.values()):
        return None
    if chosen == "auto":
        return None if settings.method.name == "majority" else "f1"
    return chosen


def choose_thresholds(
    classifier: Classifier,
    examples: Sequence[Example],
    probabilities: FloatArray,
    settings: RunSettings,
    screen: Screen,
    *,
    source: str,
) -> dict[str, Any]:
    """Choose the thresholds that settings ask for, and put them into the classifier.

    Args:
        classifier: Of one question with several labels a text; fitted.
        examples: Labelled texts that it did not learn from.
        probabilities: Of them, at the classifier's temperature, (N, L).
        settings: All settings.
        screen: Where it is said what was chosen.
        source: Which texts these are, for people.

    Returns:
        What `result.json` records; empty where nothing was chosen.
    """
    goal, target = goal_of(settings, classifier.asked), settings.calibration.target
    if goal is None:
        return {}
    is_asked = settings.calibration.thresholds != "auto"
    if len(examples) < (1 if is_asked else FEWEST):
        if is_asked:
            screen.note(
                "thresholds: there is no validation set to choose them on, so each label is given "
                "from 0.5; give data.validation, or data.validation_fraction above 0"
            )
        return {}
    question = classifier.only
    found = fit_thresholds(probabilities, question.present(examples), goal=goal, target=target)
    question.calibration = dataclasses.replace(question.calibration, thresholds=found.values)
    names = question.task.label_names
    short = [name for name, ok in zip(names, found.is_reached, strict=True) if not ok]
    screen.note(_chosen_sentence(goal, target, found, len(examples), source))
    if short:
        screen.note(_short_sentence(goal, target, short))
    return {
        RECORD: {
            "goal": goal,
            "target": None if goal == "f1" else target,
            "num_examples": len(examples),
            "source": source,
            "by_label": dict(zip(names, found.values.tolist(), strict=True)),
            "num_present": dict(zip(names, found.num_present.tolist(), strict=True)),
            "not_reached": short,
        }
    }


def honest_thresholds(
    question: AskedQuestion,
    examples: Sequence[Example],
    probabilities: FloatArray,
    settings: RunSettings,
    folds: IntArray | None = None,
) -> FloatArray:
    """Return thresholds for each of the texts that chose the run's, from the other folds, (N, L).

    Measured by the run's own they would look better than they are.

    Args:
        question: With several labels a text.
        examples: The texts.
        probabilities: Of them, (N, L).
        settings: All settings.
        folds: Fold of each text, (N,); None: five, drawn by the seed.
    """
    goal = goal_of(settings, question.task)
    assert goal is not None, "no thresholds were chosen"
    if folds is None:
        folds = np.arange(len(examples)) % FOLDS
        np.random.default_rng([settings.seed, 9]).shuffle(folds)
    return crossed_thresholds(
        probabilities,
        question.present(examples),
        folds,
        goal=goal,
        target=settings.calibration.target,
    )


def thresholds_record(
    question: AskedQuestion, examples: Sequence[Example], probabilities: FloatArray
) -> dict[str, dict[str, float]]:
    """Return metrics of answers with the thresholds and without; empty where there are none.

    Args:
        question: With its thresholds.
        examples: Labelled.
        probabilities: Of theirs, (N, L).
    """
    if question.calibration.thresholds is None:
        return {}
    present = question.present(examples)
    return {
        "without": answer_metrics(probabilities >= THRESHOLD, present),
        "with": answer_metrics(question.given(probabilities), present),
    }


def threshold_sentence(name: str, record: Mapping[str, Mapping[str, float]]) -> str:
    """Return what thresholds change on a set, for people."""
    before, after = record["without"], record["with"]
    words = {
        "macro_f1": "F1",
        "precision": "precision",
        "recall": "recall",
        "accuracy": "exactly right sets",
    }
    changes = ", ".join(f"{told} {before[k]:.3f} -> {after[k]:.3f}" for k, told in words.items())
    return f"{name}: {changes} (means over labels, at 0.5 -> with thresholds)"


def with_given_thresholds(classifier: Classifier, given: Mapping[str, float]) -> Classifier:
    """Return a classifier with thresholds that a user gives in the place of its own.

    Args:
        classifier: Of a finished run.
        given: Label -> threshold; that of `ALL` holds for all others.

    Raises:
        SettingsError: If a text has one label here, a label is not there, or a value is no
            probability.
    """
    tasks = list(classifier.asked.tasks.values())
    if not all(task.multi_label for task in tasks):
        raise SettingsError(
            "--threshold is for runs in which a text may have several labels (task.multi_label); "
            "here it has one, the most probable. --abstain-below leaves unsure answers out."
        )
    question = classifier.only
    names, values = list(question.task.label_names), question.thresholds.copy()
    if ALL in given:
        values[:] = given[ALL]
    for name, value in given.items():
        if not 0 <= value <= 1:
            raise SettingsError(
                f"--threshold {f'{name}=' * bool(name)}{value:g}: give a probability between 0 and "
                "1, such as 0.3."
            )
        if name != ALL and name not in names:
            raise SettingsError(
                f"--threshold {name}={value:g}: the run has no label {name!r}; it has "
                f"{', '.join(names)}.{suggestion(name, names)}"
            )
        if name != ALL:
            values[names.index(name)] = value
    return classifier.with_thresholds(values)


def _chosen_sentence(
    goal: Goal, target: float, found: Thresholds, num_examples: int, source: str
) -> str:
    what = "F1" if goal == "f1" else f"a {goal} of {target:g}"
    low, high = found.values.min(), found.values.max()
    return (
        f"thresholds for {what}, chosen on {num_examples:,} {source}: labels are given from a "
        f"probability of {low:.2f} to {high:.2f} on (calibration.thresholds=none: 0.5)"
    )


def _short_sentence(goal: Goal, target: float, names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_NAMED])
    if len(names) > MOST_NAMED:
        shown += f" and {len(names) - MOST_NAMED} more"
    if goal == "f1":
        return f"thresholds: none of these texts has {shown}; the threshold of all labels is taken"
    bound = "least" if goal == "precision" else "most"
    return (
        f"thresholds: too few texts, or too many mistakes, to keep a {goal} of {target:g} for "
        f"{shown}; each has the threshold that comes closest, and at {bound} 0.5"
    )
