"""How well each class is told.

Legend: C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taskfit.stats.metrics import Evaluation

# Of fewer texts none may be found by chance.
FEWEST_TEXTS = 10
HARDLY = 0.1


@dataclass(frozen=True, slots=True)
class ClassRow:
    """How well one class is told.

    Attributes:
        name: The label.
        num_gold: Texts that have it.
        precision: Share of right ones among the texts to which it was given; None: given to none.
        recall: Share of its texts to which it was given; None: there are none.
        f1: Harmonic mean of the two, 0 where it is never right.
    """

    name: str
    num_gold: int
    precision: float | None
    recall: float | None
    f1: float


def class_rows(*evaluations: Evaluation, num_gold: Sequence[int] | None = None) -> list[ClassRow]:
    """Return a row for each class that occurs, the weakest first.

    Args:
        evaluations: Of one set; of several draws all texts count together.
        num_gold: Texts of each class, C, where some got no answer, which the matrix leaves out.
    """
    evaluation = evaluations[0]
    counts = np.array([one.confusion_matrix for one in evaluations], np.int64).sum(axis=0)
    if evaluation.multi_label:  # right absences, wrong presences, misses, hits of each label
        _, wrong, missed, hits = counts.T
        gold, said = hits + missed, hits + wrong
    else:
        hits, said = counts.diagonal(), counts.sum(axis=0)
        gold = counts.sum(axis=1) if num_gold is None else np.asarray(num_gold)
    rows = [
        ClassRow(
            name,
            int(there),
            float(right / given) if given else None,
            float(right / there) if there else None,
            float(2 * right / (there + given)),
        )
        for name, right, there, given in zip(evaluation.labels, hits, gold, said, strict=True)
        if there or given
    ]
    return sorted(rows, key=lambda row: row.f1)


def hardly_found(rows: Sequence[ClassRow]) -> list[ClassRow]:
    """Return the classes of which next to no text is found, the most frequent first."""
    found = [
        row
        for row in rows
        if row.num_gold >= FEWEST_TEXTS and row.recall is not None and row.recall < HARDLY
    ]
    return sorted(found, key=lambda row: -row.num_gold)
