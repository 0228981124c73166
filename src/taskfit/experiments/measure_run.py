"""Measure a run: every evaluation set, and how long one text takes."""

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from taskfit.data import Example
from taskfit.evaluation import Evaluation
from taskfit.experiments.calibration import coverage_record
from taskfit.experiments.predictions import write_predictions
from taskfit.experiments.report import HardExample, hardest
from taskfit.experiments.run import Run
from taskfit.experiments.slices import measure_slices, slice_columns, slices_text, write_slices
from taskfit.training.distributed import divided

LATENCY_TEXTS = 5


def evaluation_sets(run: Run) -> Mapping[str, Sequence[Example]]:
    """Return the sets to evaluate; the validation set serves where there is none."""
    return run.data.evaluations or (
        {"validation": run.data.validation} if run.data.validation else {}
    )


def latency(run: Run) -> float | None:
    """Return the median seconds to predict one text by itself, of a few.

    The words stand in a new order, so that no cache knows the text. An endpoint is not asked for
    texts of no use.
    """
    examples = [e for found in evaluation_sets(run).values() for e in found][:LATENCY_TEXTS]
    if not examples or run.settings.method.name == "remote":
        return None
    generator = random.Random(time.time_ns())
    seconds = []
    for example in examples:
        texts = {column: text.split() for column, text in example.texts.items()}
        for words in texts.values():
            generator.shuffle(words)
        shuffled = Example(example.id, {column: " ".join(w) for column, w in texts.items()})
        started = time.perf_counter()
        run.classifier.probabilities([shuffled])
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured on the evaluation sets.

    Attributes:
        evaluations, seconds: Metrics and time by set.
        hard: The worst errors.
        coverage: Of prediction sets, for the record.
    """

    evaluations: dict[str, Evaluation]
    seconds: dict[str, float]
    hard: list[HardExample]
    coverage: dict[str, Any]


def evaluate_sets(run: Run) -> Measured:
    """Evaluate every set; write its predictions and slices."""
    sets = evaluation_sets(run)
    if not sets:
        run.screen.note(
            "no evaluation set: give one with --test NAME=FILE, or raise data.validation_fraction"
        )
    evaluations: dict[str, Evaluation] = {}
    seconds: dict[str, float] = {}
    hard: list[HardExample] = []
    coverage: dict[str, Any] = {}
    for name, examples in sets.items():
        started = time.perf_counter()
        with run.screen.progress(f"evaluating {name}", len(examples)) as advance:
            probabilities = divided(
                partial(run.classifier.probabilities, advance=advance), examples
            )
        seconds[name] = time.perf_counter() - started
        evaluations[name] = run.classifier.evaluate(examples, probabilities)
        write_predictions(run.folder, name, examples, probabilities, run.data.task)
        if slices := measure_slices(
            run.classifier, name, examples, probabilities, slice_columns(run.settings)
        ):
            write_slices(run.folder, {name: slices})
            run.screen.note(slices_text(name, slices))
        # On the validation set the promise would be checked with the examples that made it.
        checkable = name in run.data.evaluations
        if checkable and (record := coverage_record(run.classifier, examples, probabilities)):
            coverage[name] = record
        if not run.data.task.multi_label:
            hard += hardest(name, examples, probabilities, run.data.task.label_names)
    return Measured(evaluations, seconds, hard, {"coverage": coverage} if coverage else {})
