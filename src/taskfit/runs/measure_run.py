"""Measure a run: every evaluation set, and how long one text takes."""

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.files import read_jsonl
from taskfit.methods.method import Advance, FloatArray
from taskfit.runs.baselines import (
    BASELINES,
    FROM_HALF,
    Predict,
    fit_baselines,
    missed_labels,
    row_of,
    to_plain,
    warnings_of,
)
from taskfit.runs.classifier import Classifier
from taskfit.runs.cross_validation import RUN, TUNED, folds_of
from taskfit.runs.cross_validation import SET as CROSS
from taskfit.runs.measured import MeasuredSets
from taskfit.runs.run import Run, evaluation_sets
from taskfit.runs.slices import slice_columns
from taskfit.runs.thresholds import honest_thresholds
from taskfit.tasks.shortening import noting_shortened
from taskfit.training.distributed import divided, gather

LATENCY_TEXTS = 5
IntArray = NDArray[np.int64]


def latency(run: Run) -> float | None:
    """Return the median seconds to predict one text by itself, of the first few; None of none.

    The words stand in a new order, so that no cache knows the text. An endpoint is not asked for
    texts of no use.
    """
    examples = [e for found in evaluation_sets(run.data).values() for e in found]
    if not examples or run.settings.method.name == "remote":
        return None
    generator = random.Random(time.time_ns())
    seconds = []
    for example in examples[:LATENCY_TEXTS]:
        texts = {column: text.split() for column, text in example.texts.items()}
        for words in texts.values():
            generator.shuffle(words)
        shuffled = Example(example.id, {column: " ".join(w) for column, w in texts.items()})
        started = time.perf_counter()
        run.classifier.probabilities([shuffled])
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure_cross_validation(run: Run, parts: Mapping[str, FloatArray]) -> MeasuredSets:
    """Evaluate what cross-validation predicted of the training texts; write the predictions."""
    examples, found = run.data.train, MeasuredSets()
    folds = folds_of(examples, seed=run.settings.seed)
    classifier = _measured(run, examples, parts[RUN], folds)
    found.add(
        *(classifier, CROSS, examples, parts[RUN], run.folder, run.screen), with_coverage=False
    )
    _add_tables(found, run, CROSS, examples, parts)
    return found


def _measured(
    run: Run, examples: Sequence[Example], probabilities: FloatArray, folds: IntArray | None = None
) -> Classifier:
    """Return the classifier as it is measured on texts that chose its thresholds."""
    if all(q.calibration.thresholds is None for q in run.classifier.questions.values()):
        return run.classifier
    question = run.classifier.only
    found = honest_thresholds(question, examples, probabilities, run.settings, folds)
    return run.classifier.with_thresholds(found)


def _add_tables(
    measured: MeasuredSets,
    run: Run,
    name: str,
    examples: Sequence[Example],
    others: Mapping[str, FloatArray],
) -> None:
    """Put a run beside baselines and its own parts on a set, the run's row last.

    All others give several labels from one half on, and so does the run in a row of its own.

    Args:
        measured: Has the run's own evaluation of the set.
        run: The run.
        name: Of the set.
        examples: Of the set, N.
        others: Probabilities by what they are of, those of the run (`RUN`) among them, (N, L).
    """
    blend = run.classifier.blend
    names = {TUNED: f"{run.settings.method.name} alone", RUN: FROM_HALF}
    plain = run.classifier.with_thresholds(None)
    has_thresholds = name in measured.thresholds
    parts = () if blend is None else (*blend.names, TUNED)
    order = [*BASELINES, *parts, *((RUN,) if has_thresholds else ())]
    compared = {
        names.get(key, key): plain.evaluate(examples, others[key]) for key in order if key in others
    }
    for question in run.classifier.questions.values():
        key = question.of_set(name)
        if key in measured.evaluations:
            rows = [row_of(what, found[question.name]) for what, found in compared.items()]
            measured.tables[key] = [*rows, row_of("this run", measured.evaluations[key])]


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


def baselines_of(run: Run) -> dict[str, Predict]:
    """Return fitted baselines for a run that learns from labels; they get all of its labels."""
    labelled = [e for e in (*run.data.train, *run.data.validation) if e.label is not None]
    if not run.classifier.method.learns or not labelled:
        return {}
    return fit_baselines(run.settings, run.data.asked, labelled)


def held_against(run: Run, measured: MeasuredSets) -> dict[str, Any]:
    """Return what `result.json` records of baselines and warnings, which are told, too."""
    if not measured.tables:
        return {"warnings": measured.shortened} if measured.shortened else {}
    records = read_jsonl(run.folder / "metrics.jsonl")
    losses = [float(record["loss"]) for record in records if record["kind"] == "step"]
    tasks = run.data.asked.tasks.values()
    guessing = sum(task.weight * float(np.log(max(2, len(task.labels)))) for task in tasks)
    found: dict[str, None] = dict.fromkeys(measured.shortened)
    for name, rows in measured.tables.items():
        evaluation = measured.evaluations[name]
        for text in warnings_of(rows, evaluation, test_set=name, losses=losses, guessing=guessing):
            found.setdefault(text)
    of_first = next(iter(measured.tables)).partition("/")[0]
    for name, evaluation in measured.evaluations.items():
        if name.partition("/")[0] == of_first:  # other sets repeat it
            found |= dict.fromkeys(missed_labels(evaluation, name))
    return {"baselines": to_plain(measured.tables), "warnings": list(found)}


def evaluate_sets(run: Run, baselines: Mapping[str, Predict]) -> MeasuredSets:
    """Evaluate every set; write its predictions and slices.

    Args:
        run: The run, trained and calibrated.
        baselines: What its results are shown beside.
    """
    measured = MeasuredSets()
    for name, examples in evaluation_sets(run.data, run.screen).items():
        started = time.perf_counter()
        with (
            noting_shortened() as own_shortened,
            run.screen.progress(f"evaluating {name}", len(examples)) as advance,
        ):
            parts = _divided_parts(run.classifier, examples, advance)
        shortened = set().union(*gather(own_shortened))
        probabilities = run.classifier.combined(list(parts.values()))
        measured.seconds[name] = time.perf_counter() - started
        # On the validation set promises would be checked with the examples that made them.
        is_fresh = name in run.data.evaluations
        classifier = run.classifier if is_fresh else _measured(run, examples, probabilities)
        measured.add(
            *(classifier, name, examples, probabilities, run.folder, run.screen),
            by=slice_columns(run.settings),
            with_coverage=is_fresh,
            shortened=shortened,
        )
        if baselines:
            others = {key: part for key, part in parts.items() if part is not None}
            others[RUN] = probabilities
            others |= {key: predict(examples) for key, predict in baselines.items()}
            _add_tables(measured, run, name, examples, others)
    return measured
