"""Use a finished run on new files: predict, or evaluate."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from taskfit.data import Example, read_table
from taskfit.errors import DataError, suggestion
from taskfit.methods.method import Advance
from taskfit.runs.file_names import SETTINGS_FILE
from taskfit.runs.known_texts import free_name, seen_note
from taskfit.runs.load import load_classifier
from taskfit.runs.measured import LEVELS, MeasuredSets
from taskfit.runs.partial import PartialPredictions, describe_run
from taskfit.runs.predictions import (
    SET_SIZE,
    checked_set_name,
    prediction_table,
    renaming_note,
)
from taskfit.runs.records import RunResult
from taskfit.runs.rows import fingerprint, labelled_examples, text_examples
from taskfit.runs.slices import GOLD, group_examples
from taskfit.screen import Screen
from taskfit.settings import DataSettings
from taskfit.settings_file import load_run_settings
from taskfit.stats import Evaluation
from taskfit.stats.conformal import prediction_sets

CHUNK = 5000
WRITERS = (".csv", ".tsv", ".jsonl", ".parquet")


# Texts of a part of the table.
Read = Callable[[pd.DataFrame], list[Example]]


@dataclass(frozen=True, slots=True)
class PredictedTable:
    """What `predict_table` gives back.

    Attributes:
        table: One row a text, as `prediction_table` makes it.
        labels: Question (one without a name for the usual task) -> its labels, in their order.
    """

    table: pd.DataFrame
    labels: dict[str, list[str]]

    def answers(self, question: str) -> Iterator[tuple[str | None, dict[str, float]]]:
        """Return each text's answer to a question (None: there is none) and all probabilities."""
        end = f"_{question}" if question else ""
        names = self.labels[question]
        columns = [self.table[f"p{end}_{name}"] for name in names]
        rows = zip(*columns, strict=True)
        for found, row in zip(self.table[f"predicted{end}"], rows, strict=True):
            yield found, dict(zip(names, map(float, row), strict=True))


@dataclass(frozen=True, slots=True)
class PredictedFile:
    """What `predict_file` gives back.

    Attributes:
        num_texts: Texts predicted.
        counts: Column of answers (one a question) -> how often each was given, most frequent first.
        set_sizes: Column of their sizes (one a question) -> how many prediction sets there are of
            each size; empty without a coverage.
    """

    num_texts: int
    counts: dict[str, dict[str, int]]
    set_sizes: dict[str, dict[int, int]]


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
        coverage: Adds sets of labels that hold the right one with this probability; None: none.
        per_class: Whether the coverage is to hold for the texts of every label.

    Raises:
        TaskfitError: If the run, the source, the target's kind or the coverage does not allow it.
    """
    check_target(target)
    predictor = _Predictor(folder, device, options or {}, coverage, per_class=per_class)
    read = functools.partial(predictor.read, source=source)
    table = read_table(source, encoding=encoding, split="test")
    # All chunks are read once before any is predicted, so that what is wrong in the last one is
    # said now.
    digest = _fingerprint(table, read)
    given = f"{dict(options or {})}, coverage {coverage}, per class {per_class}"
    made_from = {"source": digest, "run": describe_run(folder), "options": given}
    partial = PartialPredictions(target, made_from, num_rows=len(table), chunk=CHUNK, screen=screen)

    def answer(index: int, rows: slice, advance: Advance) -> pd.DataFrame:
        return predictor.answer(read(table.iloc[rows]), advance)

    predictor.say_renamed(read(table.iloc[:1]), screen)
    partial.fill(f"predicting {source}", answer)
    counts, sizes = {}, {}
    for question in predictor.questions.values():
        column = f"predicted{question.ending}"
        counts[column] = dict(partial.count(column).most_common())
        if predictor.limits:
            column = f"{SET_SIZE}{question.ending}"
            by_size = partial.count(column)
            sizes[column] = {size: by_size[str(size)] for size in sorted(map(int, by_size))}
    partial.join()
    return PredictedFile(len(table), counts, sizes)


def predict_table(
    folder: Path,
    make_table: Callable[[tuple[str, ...]], pd.DataFrame],
    *,
    source: str,
    device: str,
    screen: Screen,
    options: Mapping[str, Sequence[str]] | None = None,
    coverage: float | None = None,
    per_class: bool = False,
) -> PredictedTable:
    """Predict the labels of texts at hand, such as a few lines; nothing is written.

    Args:
        folder: A finished run of one question or several.
        make_table: Given the text columns of the run's task, returns the texts with at least these
            columns, as `read_table` would.
        source: What messages and ids call it.
        device: See `model.device`.
        screen: Where progress is shown.
        options: See `predict_file`.
        coverage: See `predict_file`.
        per_class: See `predict_file`.

    Raises:
        TaskfitError: If the run, the texts or the coverage does not allow it.
    """
    predictor = _Predictor(folder, device, options or {}, coverage, per_class=per_class)
    texts = predictor.read(make_table(predictor.columns), source=source)
    predictor.say_renamed(texts[:1], screen)
    with screen.progress(f"predicting {source}", len(texts)) as advance:
        found = predictor.answer(texts, advance)
    labels = {name: question.task.label_names for name, question in predictor.questions.items()}
    return PredictedTable(found, labels)


class _Predictor:
    """A finished run with what is asked of it: texts in, rows of predictions out."""

    def __init__(
        self,
        folder: Path,
        device: str,
        options: Mapping[str, Sequence[str]],
        coverage: float | None,
        *,
        per_class: bool,
    ) -> None:
        """Load the run.

        Args:
            folder: The run's folder.
            device: See `model.device`.
            options: See `predict_file`.
            coverage: See `predict_file`.
            per_class: See `predict_file`.

        Raises:
            TaskfitError: If the run does not allow it.
        """
        self._classifier = load_classifier(folder, device=device).with_options(options)
        self.questions = self._classifier.questions
        self.limits = {}
        if coverage is not None:
            self.limits = {
                name: question.set_limit(coverage, per_class=per_class)
                for name, question in self.questions.items()
            }

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the text columns that are read."""
        return tuple(self._classifier.asked.text)

    def read(self, table: pd.DataFrame, *, source: str) -> list[Example]:
        """Return the texts of a table; see `text_examples`."""
        return text_examples(table, asked=self._classifier.asked, source=source)

    def answer(self, texts: Sequence[Example], advance: Advance) -> pd.DataFrame:
        """Return a row for each text; see `prediction_table`."""
        found = self._classifier.probabilities(texts, advance=advance)
        sets = {
            name: prediction_sets(found[:, self.questions[name].columns], limit)
            for name, limit in self.limits.items()
        }
        return prediction_table(texts, found, self.questions, sets=sets)

    def say_renamed(self, texts: Sequence[Example], screen: Screen) -> None:
        """Say which columns stand under other names."""
        if note := renaming_note(texts, self._classifier.asked.tasks):
            screen.note(note)


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
        name: What to call the evaluation set; another set of this name keeps it, and the new one
            gets a number behind it.
        encoding: Of the source.
        device: See `model.device`.
        screen: Where progress is shown.
        by: Columns of the file to cut the metrics up by, `gold` being the right label.

    Returns:
        Metrics by set; SET/QUESTION where there are several.

    Raises:
        TaskfitError: If the run or the source does not allow it.
    """
    checked_set_name(name)
    result = RunResult.load(folder)
    classifier = load_classifier(folder, device=device)
    asked, carried = classifier.asked, list(dict.fromkeys(c for c in by if c != GOLD))
    table = read_table(source, encoding=encoding, split="test")
    _check_carried(table, carried, source)
    separator = load_run_settings(folder / SETTINGS_FILE).data.label_separator
    data = DataSettings(slices=carried, label_separator=separator)
    examples = labelled_examples(table, asked, data, source=source, every_question=False)
    taken, name = name, free_name(folder, name, examples, classifier.questions)
    if name != taken:
        screen.note(
            f"another set was evaluated as {taken}; this one is called {name} (--name gives it "
            "another name)"
        )
    if note := seen_note(folder, examples, name=name):
        screen.note(note)
    group_examples(name, examples, by)
    if note := renaming_note(examples, asked.tasks):
        screen.note(note)
    with screen.progress(f"evaluating {name}", len(examples)) as advance:
        probabilities = classifier.probabilities(examples, advance=advance)
    found = MeasuredSets()
    found.add(classifier, name, examples, probabilities, folder, screen, by=by)
    for key, records in (("coverage", found.coverage), (LEVELS, found.levels)):
        if records:
            result.details.setdefault(key, {}).update(records)
    result.evaluations.update(found.evaluations)
    result.save(folder)
    return found.evaluations


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


def _check_carried(table: pd.DataFrame, carried: Sequence[str], source: str) -> None:
    present = [str(name) for name in table.columns]
    for name in carried:
        if name not in present:
            raise DataError(
                f"{source} has no column {name!r} to cut the metrics up by; it has: "
                f"{', '.join(present)}; and {GOLD} is the right label."
                f"{suggestion(name, [*present, GOLD])}"
            )
