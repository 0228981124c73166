"""The task and its training examples, as settings name them: a table, or a built-in set."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from taskfit.data import (
    BUILTIN_NAMES,
    Columns,
    Example,
    check_labels,
    check_one_label_each,
    check_several_classes,
    guess_columns,
    guess_note,
    label_names,
    look_alike_note,
    to_examples,
)
from taskfit.data.columns import check_present
from taskfit.errors import DataError, SettingsError
from taskfit.runs.data_notes import joined_note
from taskfit.runs.origin import Origin
from taskfit.runs.rows import labelled_examples, reading_notes, settings_questionnaire, task_columns
from taskfit.runs.sources import read_builtin, read_source
from taskfit.settings import RunSettings
from taskfit.tasks import Task, load_task, override_task, task_from_columns, with_labels
from taskfit.tasks.question_files import is_questionnaire
from taskfit.tasks.questions import Asked

# The name of tasks that are made from the columns of a table.
CUSTOM = "custom"


def named_task(settings: RunSettings) -> Asked | None:
    """Return the task that the settings name, with what they replace; None: they name none."""
    data, name = settings.data, settings.task.name
    if name is None:
        return None
    if is_questionnaire(name):
        return settings_questionnaire(settings)
    task = load_task(name)
    if data.text and set(data.text) != set(task.text):
        raise SettingsError(
            f"Task {task.name} reads the columns {', '.join(task.text)}, but --text names "
            f"{', '.join(data.text)}. Leave out --text, or use a task file with these columns."
        )
    return override_task(task, settings.task, settings.method.shown)


def asked_and_train(
    settings: RunSettings, origin: Origin | None
) -> tuple[Asked, list[Example], dict[str, list[Example]], list[str]]:
    """Return what is asked, the training examples, built-in evaluation sets, and notes.

    Raises:
        DataError: If the table cannot be read or does not fit the task.
        SettingsError: If the settings name no data, or not the task's columns.
    """
    data, name = settings.data, settings.task.name
    asked = named_task(settings)
    if data.train is None:
        if name in BUILTIN_NAMES:
            builtin = read_builtin(str(name), folder=data.folder)
            assert isinstance(asked, Task)
            check_labels(builtin.train, asked.label_names)
            return asked, builtin.train, dict(builtin.evaluations), []
        if asked is not None and (data.tests or data.unlabeled):
            return asked, [], {}, []
        raise SettingsError(
            "No data: give a table, such as `taskfit fit mine.csv` (data.train), or a built-in "
            f"task with --task ({', '.join(BUILTIN_NAMES)})."
        )
    table = read_source(data.train, encoding=data.encoding, quotes=data.quotes)
    return _read_table(table, asked, settings, origin)


def asked_and_rows(
    table: pd.DataFrame, settings: RunSettings
) -> tuple[Asked, list[Example], list[str]]:
    """Return what is asked, the examples of a table that was read before, and notes.

    Raises:
        DataError: If the table does not fit the task.
    """
    asked, examples, _, notes = _read_table(table, named_task(settings), settings, None)
    return asked, examples, notes


def columns_of(table: pd.DataFrame, settings: RunSettings) -> Columns:
    """Return the columns of a table that a task of one question reads.

    Raises:
        DataError: If they are not there, or there is more than one way to read the table.
    """
    asked = named_task(settings)
    if asked is None:
        return _guessed(table, settings)
    assert isinstance(asked, Task)
    columns = task_columns(asked, settings.data)
    needed = [*columns.text, *([columns.label] if columns.label else [])]
    check_present(needed, [str(name) for name in table], str(settings.data.train), columns.advice)
    return columns


def _guessed(table: pd.DataFrame, settings: RunSettings) -> Columns:
    data = settings.data
    columns = guess_columns(
        table,
        text=data.text,
        label=data.label,
        shares=data.soft_labels,
        separator=data.label_separator if settings.task.multi_label else None,
    )
    return replace(columns, carried=tuple(data.slices))


def _read_table(
    table: pd.DataFrame, asked: Asked | None, settings: RunSettings, origin: Origin | None
) -> tuple[Asked, list[Example], dict[str, list[Example]], list[str]]:
    """Return the same as `asked_and_train`, of a table."""
    data, source = settings.data, str(settings.data.train)
    if asked is None and origin is not None and origin.task is not None:
        return _task_of(origin, origin.task, table, settings)
    if asked is None:
        columns = _guessed(table, settings)
        examples = to_examples(table, columns, source=source)
        check_several_classes(examples)
        if not settings.task.multi_label:
            check_one_label_each(examples, data.label_separator)
        task = task_from_columns(
            name=CUSTOM,
            text=columns.text,
            label_column=columns.label or "label",
            labels=label_names(examples),
        )
        asked = override_task(task, settings.task, settings.method.shown)
        guessed = None if data.text else guess_note(columns, table)
        notes = [
            guessed,
            *reading_notes(table, examples, source),
            _look_alikes(table, columns, examples),
            None if settings.task.multi_label else joined_note(examples),
        ]
        return asked, examples, {}, [note for note in notes if note]
    examples = labelled_examples(table, asked, data, source=source)
    notes = [*reading_notes(table, examples, source)]
    if isinstance(asked, Task):
        notes += [_look_alikes(table, task_columns(asked, data), examples)]
    return asked, examples, {}, [note for note in notes if note]


def _task_of(
    origin: Origin, task: Task, table: pd.DataFrame, settings: RunSettings
) -> tuple[Asked, list[Example], dict[str, list[Example]], list[str]]:
    """Return an earlier run's task, with the classes of a new table behind its own, and its rows.

    Raises:
        DataError: If a column is missing, or a label is new to a task that names its own.
    """
    data = settings.data
    missing = [name for name in task.text if name not in table]
    if missing:
        raise DataError(
            f"{data.train} has no column {', '.join(map(repr, missing))}, where {origin.run} reads "
            f"texts; it has: {', '.join(map(str, table))}. Rename the columns of the table."
        )
    examples = to_examples(table, task_columns(task, data), source=str(data.train))
    if task.name == CUSTOM:
        if not task.multi_label:
            check_one_label_each(examples, data.label_separator)
        known = set(task.label_names)
        task = with_labels(task, [name for name in label_names(examples) if name not in known])
    else:
        check_labels(examples, task.label_names)
    notes = [
        *reading_notes(table, examples, str(data.train)),
        _look_alikes(table, task_columns(task, data), examples),
    ]
    asked = override_task(task, settings.task, settings.method.shown)
    return asked, examples, {}, [note for note in notes if note]


def _look_alikes(table: pd.DataFrame, columns: Columns, examples: Sequence[Example]) -> str | None:
    """Say which labels of a table look the same."""
    if columns.separator is not None or columns.label not in table.columns:
        return look_alike_note(label_names(examples))
    return look_alike_note(value for value in table[columns.label].unique() if value.strip())
