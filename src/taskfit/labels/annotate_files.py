"""What an annotation leaves: soft labels, rows without an answer, a report, settings for a fit."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from taskfit.data import Example
from taskfit.errors import DataError, SettingsError
from taskfit.files import write_json_atomic, write_text_atomic
from taskfit.labels.annotate_check import Agreement
from taskfit.labels.annotate_data import ToAnnotate
from taskfit.methods.remote_reader import RemoteReadings
from taskfit.remote import Usage
from taskfit.remote.estimate import Estimate
from taskfit.remote.words import usage_words
from taskfit.runs.asked import AskedQuestion, Calibration
from taskfit.runs.partial import write_table
from taskfit.runs.predictions import ERROR, ID, NO_TEXT, names_beside, prediction_table
from taskfit.settings import RunSettings
from taskfit.stats.as_json import as_json
from taskfit.stats.temperature import TemperatureFit
from taskfit.tasks import Task
from taskfit.yaml_text import dump_yaml

READ_FROM = "read_from"
# What the report knows the rows for people by.
CONTENT = "unanswered_sha256"
# Where the labelled sample stands in a run that learns from the soft labels.
CHECK_SET = "human"


@dataclass(frozen=True, slots=True)
class AnnotatedFiles:
    """Where everything is written, beside the table of soft labels.

    Attributes:
        table: The soft labels: a column with each label's share.
        unanswered: Rows without an answer, with what the annotator said.
        report: What it did cost, and how it agrees with people.
        settings: What `taskfit fit --config` learns from the soft labels with.
    """

    table: Path
    unanswered: Path
    report: Path
    settings: Path

    @classmethod
    def beside(cls, table: Path) -> "AnnotatedFiles":
        """Return the files of a table."""
        return cls(
            table,
            table.with_name(f"{table.stem}.unanswered{table.suffix}"),
            table.with_name(f"{table.stem}.report.json"),
            table.with_name(f"{table.stem}.fit.yaml"),
        )


@dataclass(frozen=True, slots=True)
class Annotation:
    """What `annotate` gives back.

    Attributes:
        files: What was written; None: nothing was asked for but the estimate.
        estimate: What was to be sent, before it was.
        num_texts: Rows of the table.
        counts: Label -> how often it is the most probable one.
        read_from: How probabilities were read -> of how many texts.
        num_unanswered: Texts whose answer names no label, and rows without a text.
        num_not_asked: Texts that the budget, or the number of requests, left over.
        stopped: What ended the asking before all were asked; None: nothing.
        usage: What this command has sent, and what it did cost.
        paid: What all answers did cost, those of earlier commands too.
        agreement: With people's labels; None: there are none.
        calibrated: The same at the cross-fitted temperature; None: it was not asked for.
        temperature: What the written shares are corrected by.
    """

    files: AnnotatedFiles | None
    estimate: Estimate
    num_texts: int
    counts: Mapping[str, int] = field(default_factory=dict)
    read_from: Mapping[str, int] = field(default_factory=dict)
    num_unanswered: int = 0
    num_not_asked: int = 0
    stopped: str | None = None
    usage: Usage = field(default_factory=Usage)
    paid: Usage = field(default_factory=Usage)
    agreement: Agreement | None = None
    calibrated: Agreement | None = None
    temperature: TemperatureFit | None = None


def refuse_over_answers(files: AnnotatedFiles, *, overwrite: bool) -> None:
    """Check that nothing is lost that people have filled into the rows without an answer.

    Raises:
        SettingsError: If the file is not what was written, and is not given up.
    """
    if overwrite or not files.unanswered.is_file():
        return
    written = None
    if files.report.is_file():
        written = json.loads(files.report.read_text(encoding="utf-8")).get(CONTENT)
    if written != _content(files.unanswered):
        raise SettingsError(
            f"{files.unanswered} has changed since it was written, as where people have labelled "
            "its rows, and would be written over. Rename it, or --overwrite to lose what it holds."
        )


def _content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_annotation(
    settings: RunSettings,
    given: ToAnnotate,
    readings: RemoteReadings,
    found: Annotation,
    check: str | None,
) -> None:
    """Write the four files; a table without any answer is none.

    Args:
        settings: As `annotate` has them.
        given: What was asked about.
        readings: What was answered about the texts that are not blank, in their order.
        found: What came of it.
        check: File with people's labels.

    Raises:
        DataError: If no text has an answer.
    """
    files = found.files
    assert files is not None
    asked = given.filled
    table = _answered(given.task, asked, readings, found.temperature)
    without = _unanswered(given, asked, readings)
    if not len(table):
        said = next((text for text in readings.said if text), "")
        raise DataError(
            found.stopped
            or f"None of {len(asked):,} answers names a label of the task "
            f"({', '.join(given.task.label_names)}). The first is: {said!r}. Say in "
            "task.instruction how it is to answer, or set method.max_new_tokens higher."
        )
    write_table(table, files.table)
    files.unanswered.unlink(missing_ok=True)
    if len(without):
        write_table(without, files.unanswered)
    report = _report(settings, given, found)
    if len(without):
        report[CONTENT] = _content(files.unanswered)
    write_json_atomic(files.report, report)
    write_text_atomic(files.settings, dump_yaml(_fit_settings(settings, given, files, check)))


def question_of(task: Task, temperature: TemperatureFit | None = None) -> AskedQuestion:
    """Return a task as a question, with a temperature that corrects its probabilities."""
    calibration = Calibration(1.0 if temperature is None else temperature.temperature)
    return AskedQuestion("", task, slice(0, len(task.labels)), calibration)


def _answered(
    task: Task,
    asked: Sequence[Example],
    readings: RemoteReadings,
    temperature: TemperatureFit | None,
) -> pd.DataFrame:
    """Return the rows that have an answer, with the share of every label."""
    places = [int(place) for place in np.flatnonzero(readings.has_answer)]
    if not places:
        return pd.DataFrame()
    question = question_of(task, temperature)
    table = prediction_table(
        [asked[i] for i in places],
        question.calibrated(readings.probabilities[places]),
        {"": question},
        keeps_id=True,
    ).drop(columns=ERROR)
    table = table.rename(columns=names_beside(list(map(str, table)), {READ_FROM}))
    table[READ_FROM] = [readings.read_from[i] for i in places]
    return table


def _unanswered(
    given: ToAnnotate, asked: Sequence[Example], readings: RemoteReadings
) -> pd.DataFrame:
    """Return the rows without an answer, with what was said: for people to label."""
    said = {
        text.id: f"the answer names no label: {answer!r}"
        for text, answer, named, was in zip(
            asked, readings.said, readings.has_answer, readings.was_asked, strict=True
        )
        if was and not named
    }
    left = [text for text in given.texts if text.id in said or text.is_blank]
    table = pd.DataFrame([{ID: e.id, **e.texts, **(e.columns or {})} for e in left])
    table = table.rename(columns=names_beside(list(map(str, table)), {ERROR}))
    table[ERROR] = [said.get(text.id, NO_TEXT) for text in left]
    return table


def _report(settings: RunSettings, given: ToAnnotate, found: Annotation) -> dict[str, Any]:
    remote = settings.remote
    plain = dataclasses.replace(found, files=None)
    return {
        "table": settings.data.train,
        "task": given.task.name,
        "labels": list(given.task.label_names),
        "endpoint": remote.base_url.rpartition("@")[2],
        "model": remote.model,
        "samples": remote.samples,
        "num_shown": len(given.shown),
        **{key: value for key, value in as_json(plain).items() if key != "files"},
    }


def _fit_settings(
    settings: RunSettings, given: ToAnnotate, files: AnnotatedFiles, check: str | None
) -> dict[str, Any]:
    """Return what a fit reads to learn from the soft labels and be measured on people's."""
    shares = {name: f"p_{name}" for name in given.task.label_names}
    data: dict[str, Any] = {"train": str(files.table), "soft_labels": shares}
    if settings.task.name is None:
        data["text"] = list(given.task.text)
    if settings.data.label is not None:
        data["label"] = settings.data.label
    if check is not None:
        data["tests"] = {CHECK_SET: check}
    task = settings.task.model_dump(exclude_defaults=True)
    return {"data": data, **({"task": task} if task else {})}


def summary(found: Annotation) -> list[str]:
    """Return what came of an annotation, in lines."""
    files = found.files
    assert files is not None
    labelled = sum(found.counts.values())
    counts = ", ".join(f"{label} {count:,}" for label, count in found.counts.items())
    how = ", ".join(f"{name} {count:,}" for name, count in found.read_from.items())
    lines = [
        f"{labelled:,} of {found.num_texts:,} texts labelled ({counts}): {files.table}",
        f"read from: {how}",
        f"this command: {usage_words(found.usage)}",
    ]
    if found.usage.num_answers < found.paid.num_answers and found.paid.cost is not None:
        lines.append(f"all answers, those of earlier commands too: {found.paid.cost:.4g}")
    if found.num_unanswered:
        rows = f"{found.num_unanswered:,} row{'s' * (found.num_unanswered != 1)}"
        lines.append(f"{rows} without an answer, for people to label: {files.unanswered}")
    if found.stopped:
        lines.append(f"{found.num_not_asked:,} texts were not asked about. {found.stopped}")
    return lines
