"""Predict new files with a finished run."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypedDict, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taskfit.data import Example, notes_of, read_table, rename_columns
from taskfit.errors import DataError, suggestion
from taskfit.files import refuse_over_input
from taskfit.lock import only_one_at_a_time
from taskfit.methods.method import Advance
from taskfit.models.identity import describe_model
from taskfit.runs.classifier import Classifier
from taskfit.runs.load import load_classifier
from taskfit.runs.partial import PartialPredictions, describe_run
from taskfit.runs.predictions import (
    ERROR,
    SET_SIZE,
    SHORTENED,
    prediction_table,
    renaming_note,
)
from taskfit.runs.rows import fingerprint, text_examples
from taskfit.screen import Screen
from taskfit.stats.conformal import prediction_sets
from taskfit.tasks.shortening import noting_shortened

CHUNK = 5000
FloatArray = NDArray[np.float64]
WRITERS = (".csv", ".tsv", ".jsonl", ".parquet")


# Texts of a part of the table.
Read = Callable[[pd.DataFrame], list[Example]]


@dataclass(frozen=True, slots=True)
class PredictedTable:
    """What `predict_table` gives back.

    Attributes:
        table: One row a text, as `prediction_table` makes it.
        labels: Question (one without a name for the usual task) -> its labels, in their order.
        num_errors: Rows without an answer, as they have no text.
        num_shortened: Texts that lost their end.
    """

    table: pd.DataFrame
    labels: dict[str, list[str]]
    num_errors: int = 0
    num_shortened: int = 0

    def answers(self, question: str) -> Iterator[tuple[str | None, dict[str, float]]]:
        """Return each text's answer to a question (None: there is none) and all probabilities."""
        end = f"_{question}" if question else ""
        names = self.labels[question]
        columns = [self.table[f"p{end}_{name}"] for name in names]
        rows = zip(*columns, strict=True)
        for found, row in zip(self.table[f"predicted{end}"], rows, strict=True):
            answer = None if pd.isna(found) else str(found)
            yield answer, dict(zip(names, map(float, row), strict=True))


@dataclass(frozen=True, slots=True)
class PredictedFile:
    """What `predict_file` gives back.

    Attributes:
        num_rows: Rows of the file.
        num_errors: Rows without an answer, as they have no text.
        num_shortened: Texts that lost their end.
        counts: Column of answers (one a question) -> how often each was given, most frequent first.
        set_sizes: Column of their sizes (one a question) -> how many prediction sets there are of
            each size; empty without a coverage.
    """

    num_rows: int
    num_errors: int
    num_shortened: int
    counts: dict[str, dict[str, int]]
    set_sizes: dict[str, dict[int, int]]


class Asking(TypedDict, total=False):
    """What is asked of a run beside the texts; all may be left out.

    Attributes:
        device: See `model.device`.
        options: Several questions: question -> names of its options, where they are others.
        coverage: Adds sets of labels that hold the right one with this probability; None: none.
        per_class: Whether the coverage is to hold for the texts of every label.
        allow_other_base: Whether a base will do that is not the one of the run.
        only_predictions: Whether id, texts and predictions are written alone.
    """

    device: str
    options: Mapping[str, Sequence[str]] | None
    coverage: float | None
    per_class: bool
    allow_other_base: bool
    only_predictions: bool


def predict_file(
    folder: Path,
    source: str,
    target: Path,
    *,
    encoding: str,
    screen: Screen,
    columns: Mapping[str, str] = MappingProxyType({}),
    quotes: str = "auto",
    overwrite: bool = False,
    **asking: Unpack[Asking],
) -> PredictedFile:
    """Predict the labels of a file's texts and write them with all probabilities.

    As many rows come out as the file has, in its order and with its other columns; one without any
    text says so in a column `error`.

    Finished chunks are kept beside the target until it is whole; the same call goes on from them.

    Args:
        folder: A finished run of one question or several.
        source: File or hub id with the task's text columns; labels are not needed.
        target: File to write: .csv, .tsv, .jsonl or .parquet.
        encoding: Of the source.
        screen: Where progress is shown.
        columns: Column of the task -> column of the source, where it has another name.
        quotes: Of a CSV or TSV file; see `data.quotes`.
        overwrite: Whether the source may be the target.
        asking: See `Asking`.

    Raises:
        TaskfitError: If the run, the source, the target or the coverage does not allow it.
    """
    check_target(target)
    refuse_over_input(target, [source], overwrite=overwrite)
    with only_one_at_a_time(target, beside=True):
        predictor = _Predictor(folder, **asking)
        table = read_table(source, encoding=encoding, split="test", quotes=quotes)
        table = named_columns(table, columns, predictor.columns, source, screen)
        made_from = {"run": describe_run(folder), "options": predictor.describe()}
        return _predict_file(predictor, table, source, target, screen, made_from=made_from)


def _predict_file(
    predictor: "_Predictor",
    table: pd.DataFrame,
    source: str,
    target: Path,
    screen: Screen,
    *,
    made_from: Mapping[str, str],
) -> PredictedFile:
    read = functools.partial(predictor.read, source=source)
    # All chunks are read once before any is predicted, so that what is wrong in the last one is
    # said now.
    made_from = {"source": _fingerprint(table, read), **made_from}
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
    num_errors, num_shortened = partial.count(ERROR).total(), partial.count(SHORTENED)["True"]
    partial.join(without=predictor.left_out)
    return PredictedFile(len(table), num_errors, num_shortened, counts, sizes)


def predict_table(
    folder: Path,
    make_table: Callable[[tuple[str, ...]], pd.DataFrame],
    *,
    source: str,
    screen: Screen,
    columns: Mapping[str, str] = MappingProxyType({}),
    **asking: Unpack[Asking],
) -> PredictedTable:
    """Predict the labels of texts at hand, such as a few lines; nothing is written.

    Args:
        folder: A finished run of one question or several.
        make_table: Given the text columns of the run's task, returns the texts with at least these
            columns, as `read_table` would.
        source: What messages and ids call it.
        screen: Where progress is shown.
        columns: See `predict_file`.
        asking: See `Asking`.

    Raises:
        TaskfitError: If the run, the texts or the coverage does not allow it.
    """
    predictor = _Predictor(folder, **asking)
    table = named_columns(make_table(predictor.columns), columns, predictor.columns, source, screen)
    texts = predictor.read(table, source=source)
    predictor.say_renamed(texts[:1], screen)
    with screen.progress(f"predicting {source}", len(texts)) as advance:
        found = predictor.answer(texts, advance)
    labels = {name: question.task.label_names for name, question in predictor.questions.items()}
    return PredictedTable(
        found.drop(columns=list(predictor.left_out)),
        labels,
        num_errors=int(found[ERROR].notna().sum()),
        num_shortened=int(found[SHORTENED].sum()),
    )


class _Predictor:
    """A finished run with what is asked of it: texts in, rows of predictions out."""

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "auto",
        options: Mapping[str, Sequence[str]] | None = None,
        coverage: float | None = None,
        per_class: bool = False,
        allow_other_base: bool = False,
        only_predictions: bool = False,
    ) -> None:
        """Load the run of a folder; see `Asking`.

        Raises:
            TaskfitError: If the run does not allow it.
        """
        found = load_classifier(folder, device=device, allow_other_base=allow_other_base)
        self._classifier = found.with_options(options or {})
        self.questions = self._classifier.questions
        self._only_predictions = only_predictions
        self._described = (
            f"{dict(options or {})}, coverage {coverage}, per class {per_class}, only predictions "
            f"{only_predictions}"
        )
        if allow_other_base:  # its own is part of the run
            model = self._classifier.method.context.model
            base = "" if model is None else describe_model(model.name, model.revision)
            self._described += f", base {base}"
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

    def describe(self) -> str:
        """Return what predictions hang on beside run and texts."""
        return self._described

    @property
    def left_out(self) -> tuple[str, ...]:
        """Return the columns that are no predictions, where these are asked for alone."""
        return (SHORTENED, ERROR) if self._only_predictions else ()

    def read(self, table: pd.DataFrame, *, source: str) -> list[Example]:
        """Return the rows of a table with all its columns; see `text_examples`."""
        others = () if self._only_predictions else other_columns(table, self.columns)
        asked = self._classifier.asked
        return text_examples(table, asked, source=source, carried=others, require_text=False)

    def answer(self, texts: Sequence[Example], advance: Advance) -> pd.DataFrame:
        """Return a row for each text; see `prediction_table`."""
        found, shortened = answers_of(self._classifier, texts, advance)
        sets = {
            name: prediction_sets(found[:, self.questions[name].columns], limit)
            for name, limit in self.limits.items()
        }
        return prediction_table(
            texts, found, self.questions, sets=sets, shortened=shortened, keeps_id=True
        )

    def say_renamed(self, texts: Sequence[Example], screen: Screen) -> None:
        """Say which columns stand under other names."""
        if note := renaming_note(texts, self._classifier.asked.tasks, keeps_id=True):
            screen.note(note)


def answers_of(
    classifier: Classifier, examples: Sequence[Example], advance: Advance
) -> tuple[FloatArray, set[str]]:
    """Return the probabilities of all rows, and the ids of those whose texts were shortened.

    Rows without any text have no answer: NaN for every label, (N, L).
    """
    asked = [i for i, example in enumerate(examples) if not example.is_blank]
    width = max(question.columns.stop for question in classifier.questions.values())
    found = np.full((len(examples), width), np.nan)
    with noting_shortened() as shortened:
        if asked:
            found[asked] = classifier.probabilities([examples[i] for i in asked], advance=advance)
    advance(len(examples) - len(asked))
    return found, shortened


def other_columns(table: pd.DataFrame, texts: Sequence[str]) -> list[str]:
    """Return the columns of a table beside those of the texts."""
    return [str(name) for name in table.columns if name not in texts]


def named_columns(
    table: pd.DataFrame,
    columns: Mapping[str, str],
    known: Sequence[str],
    source: str,
    screen: Screen,
) -> pd.DataFrame:
    """Return a table whose columns have the names of the task's; say how it was read.

    Args:
        table: As it was read.
        columns: Column of the task -> column of the table.
        known: Columns of the task.
        source: What messages call the table.
        screen: Where it is said.

    Raises:
        DataError: If the task or the table has no such column.
    """
    for note in notes_of(table):
        screen.note(note)
    for name in columns:
        if name not in known:
            raise DataError(
                f"--column {name}={columns[name]}: the task reads no column {name!r}, but "
                f"{', '.join(known)}.{suggestion(name, known)}"
            )
    return rename_columns(table, columns, source=source) if columns else table


def check_target(target: Path) -> None:
    """Check that predictions can be written to a file of this kind.

    Raises:
        DataError: If not.
    """
    if target.suffix.lower() not in WRITERS:
        raise DataError(
            f"{target}: predictions are written as {', '.join(WRITERS)}; name the file so."
        )
    if target.is_dir():
        raise DataError(f"{target} is a folder; name a file to write.")


def _fingerprint(table: pd.DataFrame, read: Read) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(table), CHUNK):
        rows = read(table.iloc[start : start + CHUNK])
        digest.update(fingerprint(rows).encode())
        # What is only handed through makes other chunks, too.
        digest.update(json.dumps([dict(row.columns or {}) for row in rows]).encode())
    return digest.hexdigest()[:16]
