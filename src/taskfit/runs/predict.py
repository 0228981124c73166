"""Use a finished run on new files: predict, or evaluate."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from taskfit.data import Columns, Example, check_labels, read_table, to_examples
from taskfit.data.tables import suggestion
from taskfit.errors import DataError
from taskfit.stats import Evaluation
from taskfit.runs.calibration import coverage_record
from taskfit.runs.classifier import Classifier
from taskfit.runs.partial import PartialPredictions, describe_run
from taskfit.runs.predictions import (
    SET_SIZE,
    checked_set_name,
    prediction_table,
    renaming_note,
    write_predictions,
)
from taskfit.runs.prepare import fingerprint, task_columns
from taskfit.runs.records import RunResult, library_versions
from taskfit.screen import Screen
from taskfit.runs.slices import (
    GOLD,
    group_examples,
    measure_slices,
    slices_text,
    write_slices,
)
from taskfit.files import file_atomic
from taskfit.settings import DataSettings

CHUNK = 5000
WRITERS = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True, slots=True)
class PredictedFile:
    """What `predict_file` gives back.

    Attributes:
        num_texts: Texts predicted.
        counts: How often each answer was given, most frequent first.
        set_sizes: How many prediction sets there are of each size; empty without a coverage.
    """

    num_texts: int
    counts: dict[str, int]
    set_sizes: dict[int, int]


def predict_file(
    folder: Path,
    source: str,
    target: Path,
    *,
    encoding: str,
    device: str,
    screen: Screen,
    coverage: float | None = None,
    per_class: bool = False,
) -> PredictedFile:
    """Predict the labels of a file's texts and write them with all probabilities.

    Finished chunks are kept beside the target until it is whole; the same call goes on from them.

    Args:
        folder: A finished run.
        source: File or hub id with the task's text columns; a label column is not needed.
        target: File to write: .csv, .tsv, .jsonl or .parquet.
        encoding: Of the source.
        device: See `model.device`.
        screen: Where progress is shown.
        coverage: Adds sets of labels that hold the right one with this probability; None: none.
        per_class: Whether the coverage is to hold for the texts of every label.

    Raises:
        TaskfitError: If the run, the source, the target's kind or the coverage does not allow it.
    """
    check_target(target)
    classifier = Classifier.load(folder, device=device)
    if coverage is not None:
        classifier.set_limit(coverage, per_class=per_class)
    table = read_table(source, encoding=encoding, split="test")
    columns = task_columns(classifier.task, DataSettings())
    partial = PartialPredictions(
        target,
        {
            # All chunks are read once before any is predicted, so that what is wrong in the last
            # one is said now.
            "source": _fingerprint(table, columns, source),
            "run": describe_run(folder),
            "options": f"coverage {coverage}, per class {per_class}, chunks of {CHUNK}",
            "versions": str(library_versions()),
        },
    )
    starts = range(0, len(table), CHUNK)
    _tell_about_partial(partial, len(starts), screen)
    with screen.progress(f"predicting {source}", len(table)) as advance:
        for index, start in enumerate(starts):
            if partial.has(index):
                advance(min(CHUNK, len(table) - start))
                continue
            chunk = _texts(table.iloc[start : start + CHUNK], columns, source)
            if index == 0 and (note := renaming_note(chunk, classifier.task.label_names)):
                screen.note(note)
            probabilities = classifier.probabilities(chunk, advance=advance)
            sets = None
            if coverage is not None:
                sets = classifier.prediction_sets(probabilities, coverage, per_class=per_class)
            partial.write(index, prediction_table(chunk, probabilities, classifier.task, sets=sets))
    found = _counts(partial, len(starts), len(table), with_sets=coverage is not None)
    partial.join(target, num_chunks=len(starts))
    return found


def _counts(
    partial: PartialPredictions, num_chunks: int, num_texts: int, *, with_sets: bool
) -> PredictedFile:
    counts = partial.count("predicted", num_chunks=num_chunks)
    sizes: Counter[str] = Counter()
    if with_sets:
        sizes = partial.count(SET_SIZE, num_chunks=num_chunks)
    by_size = {int(size): count for size, count in sorted(sizes.items(), key=lambda s: int(s[0]))}
    return PredictedFile(num_texts, dict(counts.most_common()), by_size)


def evaluate_file(
    folder: Path,
    source: str,
    *,
    name: str,
    encoding: str,
    device: str,
    screen: Screen,
    by: Sequence[str] = (),
) -> Evaluation:
    """Evaluate a finished run on a labelled file; add it to the run's result and predictions.

    Args:
        folder: A finished run.
        source: File or hub id with the task's columns.
        name: What to call the evaluation set.
        encoding: Of the source.
        device: See `model.device`.
        screen: Where progress is shown.
        by: Columns of the file to cut the metrics up by, `gold` being the right label.

    Raises:
        TaskfitError: If the run or the source does not allow it.
    """
    checked_set_name(name)
    result = RunResult.load(folder)
    classifier = Classifier.load(folder, device=device)
    carried = tuple(dict.fromkeys(column for column in by if column != GOLD))
    columns = replace(task_columns(classifier.task, DataSettings()), carried=carried)
    table = read_table(source, encoding=encoding, split="test")
    _check_carried(table, columns, source)
    examples = to_examples(table, columns, source=source)
    check_labels(examples, classifier.task.label_names)
    group_examples(name, examples, by)
    if note := renaming_note(examples, classifier.task.label_names):
        screen.note(note)
    with screen.progress(f"evaluating {name}", len(examples)) as advance:
        probabilities = classifier.probabilities(examples, advance=advance)
    evaluation = classifier.evaluate(examples, probabilities)
    write_predictions(folder, name, examples, probabilities, classifier.task)
    result.evaluations[name] = evaluation
    if record := coverage_record(classifier, examples, probabilities):
        result.details.setdefault("coverage", {})[name] = record
    result.save(folder)
    if slices := measure_slices(classifier, name, examples, probabilities, by):
        write_slices(folder, {name: slices})
        screen.note(slices_text(name, slices))
    return evaluation


def check_target(target: Path) -> None:
    """Check that predictions can be written to a file of this kind.

    Raises:
        DataError: If not.
    """
    if target.suffix.lower() not in WRITERS:
        raise DataError(
            f"{target}: predictions are written as {', '.join(WRITERS)}; name the file so."
        )


def write_table(table: pd.DataFrame, target: Path) -> None:
    """Write a table in the format that the file's ending names, whole or not at all."""
    kind = target.suffix.lower()
    with file_atomic(target) as path:
        if kind == ".parquet":
            table.to_parquet(path, index=False)
        elif kind == ".jsonl":
            table.to_json(path, orient="records", lines=True, force_ascii=False)
        else:
            table.to_csv(path, index=False, sep="\t" if kind == ".tsv" else ",")


def _texts(table: pd.DataFrame, columns: Columns, source: str) -> list[Example]:
    examples = to_examples(table, columns, source=source, require_labels=False)
    # A label column in a file to predict may hold anything; it is not looked at.
    return [Example(example.id, example.texts) for example in examples]


def _chunks(table: pd.DataFrame, columns: Columns, source: str) -> Iterator[list[Example]]:
    for start in range(0, len(table), CHUNK):
        yield _texts(table.iloc[start : start + CHUNK], columns, source)


def _fingerprint(table: pd.DataFrame, columns: Columns, source: str) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(table, columns, source):
        digest.update(fingerprint(chunk).encode())
    return digest.hexdigest()[:16]


def _tell_about_partial(partial: PartialPredictions, num_chunks: int, screen: Screen) -> None:
    done = sum(partial.has(index) for index in range(num_chunks))
    if done:
        screen.note(f"going on from {partial.folder}: {done} of {num_chunks} parts are finished")
    if partial.started_anew:
        screen.note(
            f"{partial.folder} held parts made from something else "
            f"({', '.join(partial.started_anew)}); started anew"
        )


def _check_carried(table: pd.DataFrame, columns: Columns, source: str) -> None:
    present = [str(name) for name in table.columns]
    for name in columns.carried:
        if name not in present:
            raise DataError(
                f"{source} has no column {name!r} to cut the metrics up by; it has: "
                f"{', '.join(present)}; and {GOLD} is the right label."
                f"{suggestion(name, [*present, GOLD])}"
            )
