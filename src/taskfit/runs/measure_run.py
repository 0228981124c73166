"""Measure a run: every evaluation set, and how long one text takes."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

from taskfit.data import Example
from taskfit.files import read_jsonl
from taskfit.methods.method import Advance, FloatArray, Method
from taskfit.runs.baselines import (
    BASELINES,
    Row,
    fit_baselines,
    row_of,
    to_plain,
    warnings_of,
)
from taskfit.runs.calibration import coverage_record
from taskfit.runs.classifier import Classifier
from taskfit.runs.cross_validation import RUN, TUNED
from taskfit.runs.cross_validation import SET as CROSS
from taskfit.runs.predictions import write_predictions
from taskfit.runs.run import Run, evaluation_sets
from taskfit.runs.slices import measure_slices, slice_columns, slices_text, write_slices
from taskfit.stats import Evaluation
from taskfit.training.distributed import divided

LATENCY_TEXTS = 5


def latency(run: Run) -> float | None:
    """Return the median seconds to predict one text by itself, see `time_of_one_text`.

    An endpoint is not asked for texts of no use.
    """
    if run.settings.method.name == "remote":
        return None
    examples = [e for found in evaluation_sets(run.data).values() for e in found]
    return time_of_one_text(run.classifier.probabilities, examples)


def time_of_one_text(
    predict: Callable[[Sequence[Example]], object], examples: Sequence[Example]
) -> float | None:
    """Return the median seconds to predict one text by itself, of the first few; None of none.

    The words stand in a new order, so that no cache knows the text.
    """
    if not examples:
        return None
    generator = random.Random(time.time_ns())
    seconds = []
    for example in examples[:LATENCY_TEXTS]:
        texts = {column: text.split() for column, text in example.texts.items()}
        for words in texts.values():
            generator.shuffle(words)
        shuffled = Example(example.id, {column: " ".join(w) for column, w in texts.items()})
        started = time.perf_counter()
        predict([shuffled])
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


@dataclass(frozen=True, slots=True)
class MeasuredSets:
    """What was measured on the evaluation sets.

    Attributes:
        evaluations, seconds: Metrics and time by set.
        coverage: Of prediction sets, for the record.
        tables: Baselines, parts of the run, and the run itself, by set.
    """

    evaluations: dict[str, Evaluation]
    seconds: dict[str, float]
    coverage: dict[str, Any]
    tables: dict[str, list[Row]] = field(default_factory=dict)


def measure_cross_validation(run: Run, parts: Mapping[str, FloatArray]) -> MeasuredSets:
    """Evaluate what cross-validation predicted of the training texts; write the predictions."""
    examples = run.data.train
    evaluation = run.classifier.evaluate(examples, parts[RUN])
    write_predictions(run.folder, CROSS, examples, parts[RUN], run.data.task)
    others = {name: p for name, p in parts.items() if name != RUN}
    table = _table(run, examples, others, evaluation)
    return MeasuredSets({CROSS: evaluation}, {}, {}, {CROSS: table})


def _table(
    run: Run,
    examples: Sequence[Example],
    others: Mapping[str, FloatArray],
    evaluation: Evaluation,
) -> list[Row]:
    """Return the rows of baselines and parts, and the run's last."""
    blend = run.classifier.blend
    names = {TUNED: f"{run.settings.method.name} alone"}
    order = [*BASELINES, *(() if blend is None else (*blend.names, TUNED))]
    rows = [
        row_of(names.get(name, name), run.classifier.evaluate(examples, others[name]))
        for name in order
        if name in others
    ]
    return [*rows, row_of("this run", evaluation)]


def _divided_parts(
    classifier: Classifier, examples: Sequence[Example], advance: Advance
) -> dict[str, FloatArray | None]:
    """Return the parts of a classifier by name, each process predicting its share of the texts."""
    predict = partial(classifier.method.probabilities, advance=advance)
    parts: dict[str, FloatArray | None] = {TUNED: divided(predict, examples)}
    blend = classifier.blend
    if blend is not None:
        for name, probe, weight in zip(blend.names, blend.probes, blend.weights[1:], strict=True):
            parts[name] = divided(probe.probabilities, examples) if weight else None
    return parts


def baselines_of(run: Run) -> dict[str, Method]:
    """Return fitted baselines for a run that learns from labels; they get all of its labels."""
    labelled = [e for e in (*run.data.train, *run.data.validation) if e.label is not None]
    if not run.classifier.method.learns or not labelled:
        return {}
    return fit_baselines(run.settings, run.data.task, labelled)


def held_against(run: Run, measured: MeasuredSets) -> dict[str, Any]:
    """Return what `result.json` records of baselines and warnings, which are told, too."""
    if not measured.tables:
        return {}
    records = read_jsonl(run.folder / "metrics.jsonl")
    losses = [float(record["loss"]) for record in records if record["kind"] == "step"]
    found: dict[str, None] = {}
    for name, rows in measured.tables.items():
        evaluation = measured.evaluations[name]
        for text in warnings_of(rows, evaluation, test_set=name, losses=losses):
            found.setdefault(text)
    return {"baselines": to_plain(measured.tables), "warnings": list(found)}


def evaluate_sets(run: Run, baselines: Mapping[str, Method] = MappingProxyType({})) -> MeasuredSets:
    """Evaluate every set; write its predictions and slices.

    Args:
        run: The run, trained and calibrated.
        baselines: What its results are shown beside.
    """
    sets = evaluation_sets(run.data, run.screen)
    evaluations: dict[str, Evaluation] = {}
    seconds: dict[str, float] = {}
    coverage: dict[str, Any] = {}
    tables: dict[str, list[Row]] = {}
    for name, examples in sets.items():
        started = time.perf_counter()
        with run.screen.progress(f"evaluating {name}", len(examples)) as advance:
            parts = _divided_parts(run.classifier, examples, advance)
        probabilities = run.classifier.combined(list(parts.values()))
        seconds[name] = time.perf_counter() - started
        evaluations[name] = run.classifier.evaluate(examples, probabilities)
        if baselines:
            others = {key: part for key, part in parts.items() if part is not None}
            others |= {key: method.probabilities(examples) for key, method in baselines.items()}
            tables[name] = _table(run, examples, others, evaluations[name])
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
    told = {"coverage": coverage} if coverage else {}
    return MeasuredSets(evaluations, seconds, told, tables)
