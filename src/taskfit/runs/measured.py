"""What is measured on evaluation sets, in a run and of a finished one; it needs no PyTorch."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.runs.baselines import Row
from taskfit.runs.calibration import coverage_record
from taskfit.runs.classifier import Classifier
from taskfit.runs.coarse import as_measured
from taskfit.runs.predictions import write_predictions
from taskfit.runs.slices import measure_slices, slices_text, write_slices
from taskfit.runs.thresholds import thresholds_record
from taskfit.screen import Screen
from taskfit.stats import Evaluation
from taskfit.tasks.shortening import shortened_note

FloatArray = NDArray[np.float64]
# Under this name `result.json` keeps what scores have besides the usual metrics.
LEVELS = "levels"


@dataclass(slots=True)
class MeasuredSets:
    """What was measured on evaluation sets; of several questions under SET/QUESTION.

    Attributes:
        evaluations: Metrics.
        seconds: Time by set.
        coverage: Of prediction sets, for the record.
        levels: How far scores are off, for the record.
        thresholds: What answers are worth with thresholds and without, for the record.
        tables: Baselines, parts of the run, and the run itself.
        shortened: A line on each set of which texts lost their end.
    """

    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    coverage: dict[str, Any] = field(default_factory=dict)
    levels: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, list[Row]] = field(default_factory=dict)
    shortened: list[str] = field(default_factory=list)

    def add(
        self,
        classifier: Classifier,
        name: str,
        examples: Sequence[Example],
        probabilities: FloatArray,
        folder: Path,
        screen: Screen,
        *,
        by: Sequence[str] = (),
        with_coverage: bool = True,
        shortened: Set[str] | None = None,
    ) -> None:
        """Measure every question on a set; write predictions and slices.

        Args:
            classifier: Whose probabilities they are.
            name: Of the set.
            examples: N; those without a label are not measured.
            probabilities: Of them, (N, L).
            folder: Of the run.
            screen: Where slices are shown.
            by: Columns to cut the metrics up by.
            with_coverage: Whether prediction sets are checked.
            shortened: Ids of texts that lost their end, which are marked; None: it is not known.
        """
        asked, shown, own = classifier.questions, examples, probabilities
        if "" in asked:
            only, shown, own = as_measured(classifier.only, examples, probabilities)
            asked = {"": only}
        write_predictions(folder, name, shown, own, asked, shortened)
        if shortened and (count := sum(example.id in shortened for example in examples)):
            self.shortened.append(shortened_note(name, count, len(examples)))
        for question, labelled, part in classifier.by_question(examples, probabilities):
            key = question.of_set(name)
            self.evaluations[key] = question.evaluate(labelled, part)
            if levels := question.level_metrics(labelled, part):
                self.levels[key] = levels
            if of_thresholds := thresholds_record(question, labelled, part):
                self.thresholds[key] = of_thresholds
            if with_coverage and (record := coverage_record(question, labelled, part)):
                self.coverage[key] = record
            if slices := measure_slices(question, key, labelled, part, by):
                write_slices(folder, {key: slices})
                screen.note(slices_text(key, slices))
