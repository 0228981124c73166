"""The table that is audited: every row of it, also those that a fit would refuse."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from taskfit.data import Columns, Example
from taskfit.data.cells import not_texts
from taskfit.errors import DataError, SettingsError
from taskfit.labels.audit_findings import SEPARATOR, Finding, row_mark
from taskfit.runs.rows import read_test
from taskfit.runs.sources import check_labels_task, read_source
from taskfit.runs.training_table import asked_and_rows, asked_and_train, columns_of
from taskfit.settings import RunSettings
from taskfit.tasks import Task

VALIDATION = "validation"


@dataclass(frozen=True, slots=True)
class AuditedTable:
    """A table with labels, and what is measured on beside it.

    Attributes:
        task: As a fit would make it.
        examples: Rows with a text and a label.
        evaluations: Evaluation sets by name.
        columns: Those of the table; None for a built-in task.
        marks: Row -> hash of what it says; see `row_mark`.
        unjudged: Rows without a text or a label.
        notes: What people should know about how it was read.
    """

    task: Task
    examples: list[Example]
    evaluations: dict[str, list[Example]]
    columns: Columns | None
    marks: dict[str, str]
    unjudged: list[Finding]
    notes: list[str]


def read_audited(settings: RunSettings) -> AuditedTable:
    """Read the table and evaluation sets that settings name.

    Raises:
        TaskfitError: If they name none, one cannot be read, or the task has no plain labels.
    """
    check_labels_task(settings, several=False)
    if settings.data.soft_labels:
        raise SettingsError(
            "An audit asks whether labels are right; data.soft_labels has shares of them instead. "
            "Give a table with a label column."
        )
    data = settings.data
    if data.train is None:
        asked, examples, evaluations, notes = asked_and_train(settings, None)
        assert isinstance(asked, Task), "questions were refused"
        if not examples:
            raise SettingsError("No table to audit: taskfit audit TABLE, or a built-in task.")
        marks = {e.id: row_mark(list(e.texts.values()), e.label or "") for e in examples}
        found = AuditedTable(asked, examples, evaluations, None, marks, [], notes)
    else:
        found = _read(settings, read_rows(settings))
    sets = dict(found.evaluations)
    named = {**data.tests, **({VALIDATION: data.validation} if data.validation else {})}
    for name, source in named.items():
        sets[name] = read_test(source, found.task, data, every_question=False, notes=found.notes)
    return replace(found, evaluations=sets)


def read_rows(settings: RunSettings) -> pd.DataFrame:
    """Read the table.

    Raises:
        DataError: If it cannot be read.
    """
    data = settings.data
    return read_source(str(data.train), encoding=data.encoding, quotes=data.quotes)


def _read(settings: RunSettings, table: pd.DataFrame) -> AuditedTable:
    columns, source = columns_of(table, settings), str(settings.data.train)
    rows = label_and_texts(table, columns, source)
    unjudged = []
    kept = []
    for line, (texts, label) in zip(table.index, rows, strict=True):
        has_text = any(text.strip() for text in texts)
        has_label = bool(label.strip()) or columns.separator is not None
        if has_text and not has_label:
            found = Finding("no label", "", id=f"{source}:{line}", text=SEPARATOR.join(texts))
            unjudged.append(found)
        elif not has_text and label.strip():
            unjudged.append(Finding("no text", label.strip(), id=f"{source}:{line}"))
        kept.append(has_text and has_label)
    if not any(kept):
        raise DataError(f"{source}: no row has both a text and a label.")
    asked, examples, notes = asked_and_rows(table[kept], settings)
    assert isinstance(asked, Task), "questions were refused"
    marks = {
        f"{source}:{line}": row_mark(texts, label)
        for line, (texts, label) in zip(table.index, rows, strict=True)
    }
    return AuditedTable(asked, examples, {}, columns, marks, unjudged, notes)


def label_and_texts(
    table: pd.DataFrame, columns: Columns, source: str
) -> list[tuple[Sequence[str], str]]:
    """Return the texts and the label of each row, as they were read.

    Raises:
        DataError: If the columns have no label, or a text is a list or an object.
    """
    if columns.label is None:
        raise DataError(f"{source}: name the label column with --label.")
    for name in columns.text:
        if found := not_texts(table[name]):
            place, value = found[0]
            raise DataError(
                f"{source}:{table.index[place]}: column {name!r} holds {value.what}, where a text "
                "is needed."
            )
    texts = zip(*(table[name].tolist() for name in columns.text), strict=True)
    labels = table[columns.label].tolist()
    return [(list(row), str(label)) for row, label in zip(texts, labels, strict=True)]
