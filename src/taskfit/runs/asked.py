"""One question of a fitted classifier: what its probabilities mean, and how they are corrected.

Legend: N examples, L labels of the question.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from taskfit.data import Example
from taskfit.errors import SettingsError
from taskfit.methods.targets import target_matrix
from taskfit.stats import Evaluation, evaluate_multi_label, evaluate_probabilities
from taskfit.stats.conformal import class_thresholds, prediction_sets, threshold
from taskfit.stats.multi_label import THRESHOLD
from taskfit.stats.temperature import apply_temperature
from taskfit.tasks import Task

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What held-out examples say about a fitted method; see `taskfit.stats`.

    Attributes:
        temperature: Divides the log-probabilities; 1 changes nothing.
        scores: Conformal scores of the n held-out examples in rising order, (n,), or None.
        score_labels: Indices of their right labels, (n,), or None.
        thresholds: Where a text may have several labels, from which probability on each is given,
            (L,), or (N, L) where texts have their own; None: from one half.
    """

    temperature: float = 1.0
    scores: FloatArray | None = None
    score_labels: IntArray | None = None
    thresholds: FloatArray | None = None


@dataclass(slots=True, eq=False)
class AskedQuestion:
    """One question of a classifier.

    Attributes:
        name: Its name; empty where it is the only one.
        task: It as a task.
        columns: Its labels among those of all questions side by side.
        calibration: What corrects its probabilities.
    """

    name: str
    task: Task
    columns: slice
    calibration: Calibration

    @property
    def ending(self) -> str:
        """Return what its columns in tables end with."""
        return f"_{self.name}" if self.name else ""

    def of_set(self, name: str) -> str:
        """Return what its evaluation on a set is called: SET, or SET/QUESTION."""
        return f"{name}/{self.name}" if self.name else name

    def calibrated(self, probabilities: FloatArray) -> FloatArray:
        """Return its probabilities of the method at its temperature, (N, L)."""
        return apply_temperature(
            probabilities, self.calibration.temperature, multi_label=self.task.multi_label
        )

    @property
    def thresholds(self) -> FloatArray:
        """Return from which probability on each label is given, (L,); of several labels a text."""
        own = self.calibration.thresholds
        return np.full(len(self.task.labels), THRESHOLD) if own is None else own

    def given(self, probabilities: FloatArray) -> BoolArray:
        """Return which of several labels texts are given, none where there is no answer, (N, L)."""
        return np.asarray(probabilities >= self.thresholds)

    def prediction_sets(
        self, probabilities: FloatArray, coverage: float, *, per_class: bool = False
    ) -> BoolArray:
        """Return the labels of each set that holds the right one with a chosen probability.

        Args:
            probabilities: Calibrated, (N, L).
            coverage: The probability, over texts like the held-out ones.
            per_class: Whether it is to hold for the texts of every label, and not only for all.

        Returns:
            Which labels are in each set, (N, L).

        Raises:
            SettingsError: If the run keeps no held-out scores, or too few for the coverage.
        """
        limit = self.set_limit(coverage, per_class=per_class)
        return prediction_sets(probabilities, limit)

    def set_limit(self, coverage: float, *, per_class: bool = False) -> float | FloatArray:
        """Return up to which score labels are in a set; see `prediction_sets`."""
        scores, labels = self.calibration.scores, self.calibration.score_labels
        if self.task.multi_label:
            raise SettingsError(
                "Prediction sets are for tasks in which a text has one label; here it may have "
                "several (task.multi_label). Leave out the coverage."
            )
        if scores is None or labels is None:
            raise SettingsError(
                "This run kept no held-out scores, which prediction sets need. Fit it with "
                "--set calibration.prediction_sets=true and a validation set."
            )
        if per_class:
            num_labels = len(self.task.label_names)
            return class_thresholds(scores, labels, coverage, num_labels=num_labels)
        return threshold(scores, coverage)

    def gold(self, examples: Sequence[Example]) -> IntArray:
        """Return the indices of the right labels of labelled examples, (N,)."""
        places = {name: place for place, name in enumerate(self.task.label_names)}
        return np.array([places[str(example.label)] for example in examples], np.int64)

    def present(self, examples: Sequence[Example]) -> BoolArray:
        """Return which labels hold of labelled examples with several labels, (N, L)."""
        targets = [example.target_vector(self.task.label_names) for example in examples]
        return np.stack([target for target in targets if target is not None]) > 0

    def losses(self, examples: Sequence[Example], probabilities: FloatArray) -> FloatArray:
        """Return the Brier score of each labelled example, lower is better, (N,).

        A proper score (Gneiting & Raftery 2007, section 3.1) that, unlike the log loss, a single
        confident mistake cannot decide. No answer counts as undecided.
        """
        targets = target_matrix(examples, self.task.label_names)
        even = 0.5 if self.task.multi_label else 1 / len(self.task.label_names)
        found = np.nan_to_num(probabilities, nan=even)
        return np.asarray(((found - targets) ** 2).sum(axis=1))

    def evaluate(self, examples: Sequence[Example], probabilities: FloatArray) -> Evaluation:
        """Measure calibrated probabilities of labelled examples, (N, L)."""
        names = self.task.label_names
        if self.task.multi_label:
            return evaluate_multi_label(
                probabilities, self.present(examples), labels=names, thresholds=self.thresholds
            )
        return evaluate_probabilities(probabilities, self.gold(examples), labels=names)

    def level_metrics(
        self, examples: Sequence[Example], probabilities: FloatArray
    ) -> dict[str, float]:
        """Return how far a score is off; nothing for other kinds of questions.

        `mean_absolute_error` is the mean distance of the expected level from the gold one (levels);
        `quadratic_kappa` is Cohen's kappa of the most probable level, weighted by squared distance
        in rank (Cohen 1968), 0 where it is undefined.

        Args:
            examples: Labelled.
            probabilities: Of the levels, (N, L).
        """
        if not self.task.levels:
            return {}
        levels, gold = np.array(self.task.levels), self.gold(examples)
        predicted, kappa = probabilities.argmax(axis=1), 0.0
        if len(np.union1d(gold, predicted)) > 1:
            ranks = np.arange(len(levels))
            kappa = float(cohen_kappa_score(gold, predicted, labels=ranks, weights="quadratic"))
        error = float(np.abs(probabilities @ levels - levels[gold]).mean())
        return {"mean_absolute_error": error, "quadratic_kappa": kappa}
