"""Predict new files with a finished run."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Unpack

import pandas as pd

from taskfit.errors import DataError
from taskfit.files import refuse_over_input
from taskfit.lock import only_one_at_a_time
from taskfit.methods.method import Advance
from taskfit.runs.cluster import RayCluster
from taskfit.runs.load import saved_asked
from taskfit.runs.partial import PartialPredictions, describe_run
from taskfit.runs.predictions import (
    ABSTAINED,
    ERROR,
    NO_TEXT,
    SET_SIZE,
    SHORTENED,
    renaming_note,
)
from taskfit.runs.predictor import Asking, Predictor, describe_asking, left_out
from taskfit.runs.table_texts import GivenFile, GivenTable, Texts
from taskfit.screen import Screen
from taskfit.tasks.questions import Questionnaire

CHUNK = 5000
WRITERS = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(slots=True)
class Shortfalls:
    """What did not go as it should.

    Attributes:
        num_rows: All rows.
        num_errors: Rows without an answer, which say why.
        num_failed: Those of them that could not be read or scored; the others have no text.
        first_failure: What the first of these says.
        num_shortened: Texts that lost their end.
    """

    num_rows: int = 0
    num_errors: int = 0
    num_failed: int = 0
    first_failure: str | None = None
    num_shortened: int = 0

    def add(self, errors: Iterable[str | None], shortened: Iterable[bool]) -> None:
        """Count rows, by their two columns."""
        for error, is_shortened in zip(errors, shortened, strict=True):
            self.num_rows += 1
            self.num_shortened += bool(is_shortened)
            if error is None:
                continue
            self.num_errors += 1
            if error != NO_TEXT:
                self.num_failed += 1
                self.first_failure = self.first_failure or error

    def add_all(self, other: "Shortfalls") -> None:
        """Add what there was among other rows."""
        self.num_rows += other.num_rows
        self.num_errors += other.num_errors
        self.num_failed += other.num_failed
        self.first_failure = self.first_failure or other.first_failure
        self.num_shortened += other.num_shortened


@dataclass(frozen=True, slots=True)
class PredictedTable:
    """Predictions of a window.

    Attributes:
        table: One row a text, as `prediction_table` makes it.
        labels: Question (one without a name for the usual task) -> its labels, in their order.
        shortfalls: What did not go as it should.
    """

    table: pd.DataFrame
    labels: dict[str, list[str]]
    shortfalls: Shortfalls

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
        shortfalls: What did not go as it should.
        counts: Column of answers (one a question) -> how often each was given, most frequent first.
        set_sizes: Column of their sizes (one a question) -> how many prediction sets there are of
            each size; empty without a coverage.
        num_abstained: Column of abstentions (one a question) -> how many there are; empty without
            a threshold.
    """

    shortfalls: Shortfalls
    counts: dict[str, dict[str, int]]
    set_sizes: dict[str, dict[int, int]]
    num_abstained: dict[str, int]

    @property
    def num_rows(self) -> int:
        """Return the rows of the file."""
        return self.shortfalls.num_rows

    @property
    def num_errors(self) -> int:
        """Return the rows without an answer that say why."""
        return self.shortfalls.num_errors

    @property
    def num_shortened(self) -> int:
        """Return the texts that lost their end."""
        return self.shortfalls.num_shortened


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
    cluster: RayCluster | None = None,
    workers: int | None = None,
    **asking: Unpack[Asking],
) -> PredictedFile:
    """Predict the labels of a file's texts and write them with all probabilities.

    As many rows come out as the file has, in its order and with its other columns; one without any
    text, that cannot be read or that cannot be scored says so in a column `error`. The file is
    never held whole, unless it is an Excel file or a JSON array.

    Finished windows are kept beside the target until it is whole; the same call goes on from them.

    Args:
        folder: A finished run of one question or several.
        source: File or hub id with the task's text columns; labels are not needed.
        target: File to write: .csv, .tsv, .jsonl or .parquet.
        encoding: Of the source.
        screen: Where progress is shown.
        columns: Column of the task -> column of the source, where it has another name.
        quotes: Of a CSV or TSV file; see `data.quotes`.
        overwrite: Whether the source may be the target.
        cluster: A Ray cluster that does the work; None: this process.
        workers: Copies of the run on the cluster; None: as many as it holds.
        asking: See `Asking`.

    Raises:
        TaskfitError: If the run, the source, the target or the coverage does not allow it.
    """
    refuse_over_input(target, [source], overwrite=overwrite)
    given = GivenFile(source, encoding=encoding, quotes=quotes)
    return predict_into(
        folder,
        given,
        target,
        screen=screen,
        columns=columns,
        cluster=cluster,
        workers=workers,
        **asking,
    )


def predict_into(
    folder: Path,
    given: GivenTable,
    target: Path,
    *,
    screen: Screen,
    columns: Mapping[str, str] = MappingProxyType({}),
    cluster: RayCluster | None = None,
    workers: int | None = None,
    **asking: Unpack[Asking],
) -> PredictedFile:
    """Predict the labels of texts from anywhere into a file; see `predict_file`."""
    check_target(target)
    with only_one_at_a_time(target, beside=True):
        partial, texts = predict_parts(
            folder,
            given,
            target,
            screen=screen,
            columns=columns,
            cluster=cluster,
            workers=workers,
            **asking,
        )
        found = _looked_through(partial, texts, **asking)
        partial.join(without=left_out(**asking))
    return found


def predict_parts(
    folder: Path,
    given: GivenTable,
    target: Path,
    *,
    screen: Screen,
    columns: Mapping[str, str] = MappingProxyType({}),
    cluster: RayCluster | None = None,
    workers: int | None = None,
    **asking: Unpack[Asking],
) -> tuple[PartialPredictions, Texts]:
    """Predict texts from anywhere; return the finished parts beside a target, and the texts.

    The parts stay until they are joined or discarded, so that the same call goes on from them. Call
    it with the lock of the target; see `predict_file`.
    """
    texts = _opened(folder, given, columns, screen, **asking)
    made_from = {
        "source": f"{given.content()} {dict(columns)}",
        "run": describe_run(folder),
        "options": describe_asking(**asking),
    }
    if cluster is None:
        predictor = Predictor(folder, screen=screen, **asking)
        made_from["options"] += predictor.describe_base()
    partial = PartialPredictions(
        target, made_from, num_rows=texts.table.num_rows, chunk=CHUNK, screen=screen
    )
    label = f"predicting {given.name}"
    if cluster is None:
        partial.fill(label, _answers(texts, predictor))
    else:
        from taskfit.runs.predict_cluster import Order, fill_on_cluster

        order = Order(folder, given, dict(columns), asking, CHUNK)
        fill_on_cluster(partial, order, cluster, workers=workers, label=label, screen=screen)
    if not given.is_unchanged():
        raise DataError(
            f"{given.name} has changed while it was read, so that rows of both may have been "
            f"labelled. The same command begins anew: nothing was written to {target}."
        )
    return partial, texts


def predict_windows(
    folder: Path,
    given: GivenTable,
    *,
    screen: Screen,
    columns: Mapping[str, str] = MappingProxyType({}),
    **asking: Unpack[Asking],
) -> Iterator[PredictedTable]:
    """Yield the predictions of one window of texts after the other; nothing is written.

    Args:
        folder: A finished run of one question or several.
        given: Where the texts come from.
        screen: Where progress is shown.
        columns: See `predict_file`.
        asking: See `Asking`.

    Raises:
        TaskfitError: If the run, the texts or the coverage does not allow it.
    """
    texts = _opened(folder, given, columns, screen, **asking)
    predictor = Predictor(folder, screen=screen, **asking)
    labels = {name: question.task.label_names for name, question in predictor.questions.items()}
    with screen.progress(f"predicting {given.name}", texts.table.num_rows) as advance:
        for make in texts.windows(CHUNK):
            found, shortfalls = predictor.answer(make(), advance), Shortfalls()
            errors = [None if pd.isna(error) else str(error) for error in found[ERROR]]
            shortfalls.add(errors, found[SHORTENED])
            table = found.drop(columns=list(left_out(**asking)))
            yield PredictedTable(table, labels, shortfalls)


def _opened(
    folder: Path,
    given: GivenTable,
    columns: Mapping[str, str],
    screen: Screen,
    **asking: Unpack[Asking],
) -> Texts:
    """Open a table, so that what is wrong with it is told before a model is loaded."""
    asked = saved_asked(folder)
    texts = given.texts(asked, columns, only_predictions=asking.get("only_predictions", False))
    for note in texts.table.notes:
        screen.note(note)
    tasks = asked.tasks
    if isinstance(asked, Questionnaire) and (options := asking.get("options")):
        tasks = asked.with_options(options).tasks
    if note_on_names := renaming_note(texts.first.texts[:1], tasks, keeps_id=True):
        screen.note(note_on_names)
    return texts


def _answers(texts: Texts, predictor: Predictor) -> Callable[[int, slice, Advance], pd.DataFrame]:
    """Return what makes the predictions of a window; windows are asked for in order."""
    windows = enumerate(texts.windows(CHUNK))

    def answer(index: int, rows: slice, advance: Advance) -> pd.DataFrame:
        make = next(make for place, make in windows if place == index)
        return predictor.answer(make(), advance)

    return answer


def _looked_through(
    partial: PartialPredictions, texts: Texts, **asking: Unpack[Asking]
) -> PredictedFile:
    """Count what finished windows hold."""
    shortfalls = Shortfalls()
    shortfalls.add(partial.values(ERROR), partial.values(SHORTENED))
    counts, sizes, abstained = {}, {}, {}
    for name in texts.asked.tasks:
        end = f"_{name}" if name else ""
        column = f"predicted{end}"
        counts[column] = dict(partial.count(column).most_common())
        if asking.get("coverage") is not None:
            column = f"{SET_SIZE}{end}"
            by_size = partial.count(column)
            sizes[column] = {size: by_size[str(size)] for size in sorted(map(int, by_size))}
        if asking.get("abstain_below") is not None:
            column = f"{ABSTAINED}{end}"
            abstained[column] = partial.count(column)["True"]
    return PredictedFile(shortfalls, counts, sizes, abstained)


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
