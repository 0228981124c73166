"""Evaluation sets with coarser labels than the task has, such as HANS for three classes of MNLI."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.runs.asked import AskedQuestion, Calibration

FloatArray = NDArray[np.float64]


def as_measured(
    question: AskedQuestion, examples: Sequence[Example], probabilities: FloatArray
) -> tuple[AskedQuestion, Sequence[Example], FloatArray]:
    """Return a question over coarser labels where an evaluation set has one, else what is given.

    The probability of a coarse label is the sum of those of its labels (McCoy et al. 2019 fold
    neutral and contradiction into non-entailment so), and a finer gold label counts as the coarse
    one that it is part of. Prediction sets are promised for the task's own labels alone.

    Args:
        question: Of the task.
        examples: N of an evaluation set, some of which may have no label.
        probabilities: Calibrated, (N, L).

    Returns:
        The question, the examples, and their probabilities, (N, C) for C coarser labels.
    """
    task = question.task
    if not any(example.label in task.coarse for example in examples):
        return question, examples, probabilities
    made = {member: name for name, members in task.coarse.items() for member in members}
    coarser = task.coarsened()
    place = {name: i for i, name in enumerate(coarser.label_names)}
    members = np.zeros((len(task.labels), len(place)))  # (L, C)
    for row, name in enumerate(task.label_names):
        members[row, place[made.get(name, name)]] = 1.0
    labelled = [
        replace(e, label=made[e.label], target=None) if e.label in made else e for e in examples
    ]
    asked = AskedQuestion(question.name, coarser, slice(0, len(place)), Calibration())
    return asked, labelled, probabilities @ members
