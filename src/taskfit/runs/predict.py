"""Use a finished run on new files: predict, or evaluate."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from taskfit.data import Columns, Example, check_labels, read_table, to_examples
from taskfit.errors import DataError, SettingsError, suggestion
from taskfit.methods.method import Advance
from taskfit.runs.calibration import coverage_record
from taskfit.runs.classifier import Classifier
from taskfit.runs.load import load_classifier
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
from taskfit.runs.slices import (
    GOLD,
    group_examples,
    measure_slices,
    slices_text,
    write_slices,
)
from taskfit.screen import Screen
from taskfit.settings import DataSettings
from taskfit.stats import Evaluation

if TYPE_CHECKING:
    from taskfit.runs.questions.classifier import QuestionClassifier

CHUNK = 5000
WRITERS = (".csv", ".tsv", ".jsonl", ".parquet")


# Texts of a part of the table, and what is written about them.
Read = Callable[[pd.DataFrame], list[Example]]
Answer = Callable[[list[Example], Advance], pd.DataFrame]


@dataclass(frozen=True, slots=True)
class PredictedFile:
    """What `predict_file` gives back.

    Attributes:
        num_texts: Texts predicted.
        counts: Column of answers (one a question) -> how often each was given, most frequent first.
        set_sizes: How many prediction sets there are of each size; empty without a coverage.
    """

    num_texts: int
    counts: dict[str, dict[str, int]]
    set_sizes: dict[int, int]


def predict_file(
    folder: Path,
    source: str,
    target: Path,
    *,
    encoding: str,
    device: str,
    screen: Screen,
    options: Mapping[str, Sequence[str]] | None = None,
    coverage: float | None = None,
    per_class: bool = False,
) -> PredictedFile:
    """Predict the labels of a file's texts and write them with all probabilities.

    Finished chunks are kept beside the target until it is whole; the same call goes on from them.

    Args:
        folder: A finished run of one question or several.
        source: File or hub id with the task's text columns; labels are not needed.
        target: File to write: .csv, .tsv, .jsonl or .parquet.
        encoding: Of the source.
        device: See `model.device`.
        screen: Where progress is shown.
        options: Several questions: question -> names of its options, where they are others.
        coverage: One question: adds sets of labels that hold the right one with this probability;
            None: none.
        per_class: Whether the coverage is to hold for the texts of every label.

    Raises:
        TaskfitError: If the run, the source, the target's kind or the coverage does not allow it.
    """
    check_target(target)
    fitted = load_classifier(folder, device=device)
    if isinstance(fitted, Classifier):
        if options:
            raise SettingsError(f"--options is for runs of questions; {folder} is none.")
        read, answer, columns = _of_labels(fitted, source, coverage, screen, per_class=per_class)
    else:
        if coverage is not None:
            raise SettingsError(f"--coverage is for runs of one question; {folder} has several.")
        read, answer, columns = _of_questions(fitted.with_options(options or {}), source)
    table = read_table(source, encoding=encoding, split="test")
    partial = PartialPredictions(
        target,
        {
            # All chunks are read once before any is predicted, so that what is wrong in the last
            # one is said now.
            "source": _fingerprint(table, read),
            "run": describe_run(folder),
            "options": f"{dict(options or {})}, coverage {coverage}, per class {per_class}, "
            f"chunks of {CHUNK}",
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
            partial.write(index, answer(read(table.iloc[start : start + CHUNK]), advance))
    counts = {
        column: dict(partial.count(column, num_chunks=len(starts)).most_common())
        for column in columns
    }
    sizes: Counter[str] = Counter()
    if coverage is not None:
        sizes = partial.count(SET_SIZE, num_chunks=len(starts))
    by_size = {int(size): count for size, count in sorted(sizes.items(), key=lambda s: int(s[0]))}
    partial.join(target, num_chunks=len(starts))
    return PredictedFile(len(table), counts, by_size)


def _of_labels(
    classifier: Classifier,
    source: str,
    coverage: float | None,
    screen: Screen,
    *,
    per_class: bool,
) -> tuple[Read, Answer, list[str]]:
    """Return how texts are read and answered, and the column of answers."""
    task = classifier.task
    columns = task_columns(task, DataSettings())
    if coverage is not None:
        classifier.set_limit(coverage, per_class=per_class)
    told: set[str] = set()

    def read(rows: pd.DataFrame) -> list[Example]:
        examples = to_examples(rows, columns, source=source, require_labels=False)
        # A label column in a file to predict may hold anything; it is not looked at.
        return [Example(example.id, example.texts) for example in examples]

    def answer(chunk: list[Example], advance: Advance) -> pd.DataFrame:
        note = renaming_note(chunk, task.label_names)
        if note is not None and note not in told:
            told.add(note)
            screen.note(note)
        probabilities = classifier.probabilities(chunk, advance=advance)
        sets = None
        if coverage is not None:
            sets = classifier.prediction_sets(probabilities, coverage, per_class=per_class)
        return prediction_table(chunk, probabilities, task, sets=sets)

    return read, answer, ["predicted"]


def _of_questions(classifier: "QuestionClassifier", source: str) -> tuple[Read, Answer, list[str]]:
    """Return how texts are read and answered, and the columns of answers."""
    from taskfit.runs.questions.classifier import answer_table
    from taskfit.runs.questions.data import read_texts

    questionnaire = classifier.questionnaire

    def read(rows: pd.DataFrame) -> list[Example]:
        return read_texts(rows, questionnaire, source=source)

    def answer(chunk: list[Example], advance: Advance) -> pd.DataFrame:
        probabilities = classifier.probabilities(chunk, advance=advance)
        return answer_table(questionnaire, chunk, probabilities)

    return read, answer, [f"predicted_{name}" for name in questionnaire.names]


def evaluate_file(
    folder: Path,
    source: str,
    *,
    name: str,
    encoding: str,
    device: str,
    screen: Screen,
    by: Sequence[str] = (),
) -> dict[str, Evaluation]:
    """Evaluate a finished run on a labelled file; add it to the run's result and predictions.

    Args:
        folder: A finished run of one question or several.
        source: File or hub id with the task's columns; of several questions at least one label.
        name: What to call the evaluation set.
        encoding: Of the source.
        device: See `model.device`.
        screen: Where progress is shown.
        by: One question: columns of the file to cut the metrics up by, `gold` being the right
            label.

    Returns:
        Metrics by set; SET/QUESTION where there are several.

    Raises:
        TaskfitError: If the run or the source does not allow it.
    """
    checked_set_name(name)
    result = RunResult.load(folder)
    fitted = load_classifier(folder, device=device)
    if isinstance(fitted, Classifier):
        found = _evaluate(fitted, source, name, result, folder, encoding, screen, by)
        evaluations = {name: found}
    else:
        from taskfit.runs.questions.data import read_answered
        from taskfit.runs.questions.run import LEVELS, evaluate_set, levels_of

        if by:
            raise SettingsError(f"--by is for runs of one question; {folder} is one of several.")
        examples = read_answered(
            source, fitted.questionnaire, encoding=encoding, every_question=False
        )
        measured, _ = evaluate_set(fitted, name, examples, folder, screen)
        result.details.setdefault(LEVELS, {}).update(levels_of(measured))
        evaluations = {key: found.evaluation for key, found in measured.items()}
    result.evaluations.update(evaluations)
    result.save(folder)
    return evaluations


def _evaluate(
    classifier: Classifier,
    source: str,
    name: str,
    result: RunResult,
    folder: Path,
    encoding: str,
    screen: Screen,
    by: Sequence[str],
) -> Evaluation:
    """Evaluate a run of one question; write predictions and slices."""
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
    if record := coverage_record(classifier, examples, probabilities):
        result.details.setdefault("coverage", {})[name] = record
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


def _fingerprint(table: pd.DataFrame, read: Read) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(table), CHUNK):
        digest.update(fingerprint(read(table.iloc[start : start + CHUNK])).encode())
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
