"""What an annotator is asked about: the texts, and the sample that people have labelled."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from taskfit.data import Example, check_labels, left_out_note, notes_of, to_examples
from taskfit.data.columns import Columns
from taskfit.errors import DataError, SettingsError
from taskfit.runs.rows import read_test, task_columns
from taskfit.runs.sources import check_labels_task, read_source
from taskfit.runs.table_texts import other_columns
from taskfit.runs.training_table import asked_and_train, named_task
from taskfit.settings import RunSettings
from taskfit.tasks import Task, choose_demonstrations


@dataclass(frozen=True, slots=True)
class ToAnnotate:
    """Texts to label, and what they are checked by.

    Attributes:
        task: What is asked.
        texts: Every row of the table, in its order, with its other columns; those that people
            labelled there have their label.
        human: Texts with people's labels that the annotator is checked by.
        shown: Labelled examples that stand in the prompt, none of them in `human`.
        notes: What people should know about how tables were read.
    """

    task: Task
    texts: list[Example]
    human: list[Example]
    shown: list[Example]
    notes: list[str]

    @property
    def filled(self) -> list[Example]:
        """Return the texts that are not blank, which are asked about."""
        return [text for text in self.texts if not text.is_blank]


def read_texts(settings: RunSettings, check: str | None) -> ToAnnotate:
    """Read the table of `data.train`, and the sample of people's labels.

    Args:
        settings: Names table, task and columns; `method` is remote.
        check: File with people's labels; None: the rows of the table that have one.

    Raises:
        DataError: If a table cannot be read or does not fit the task.
        SettingsError: If nothing says what the labels are.
    """
    check_labels_task(settings, several=False)
    source = settings.data.train
    if source is None:
        raise SettingsError("Give the table of texts to label: taskfit label texts.csv")
    notes: list[str] = []
    task, human = _task(settings, check, notes)
    data = settings.data
    table = read_source(source, encoding=data.encoding, quotes=data.quotes)
    notes += notes_of(table)
    given = task_columns(task, data)
    has_labels = given.label in table.columns
    columns = replace(
        given,
        label=given.label if has_labels and check is None else None,
        carried=tuple(other_columns(table, task.text)),
        shares={},
    )
    texts = _texts(table, columns, task, source)
    if left_out := left_out_note(table, texts, source):
        notes.append(left_out)
    if check is None:
        human = [text for text in texts if text.label is not None and not text.is_blank]
    shown = _shown(settings, task, human)
    if len(shown) < task.num_demonstrations:
        notes.append("no labelled examples to show: the annotator sees the instruction alone")
    ids = {example.id for example in shown}
    human = [example for example in human if example.id not in ids]
    return ToAnnotate(task, texts, human, shown, notes)


def _task(settings: RunSettings, check: str | None, notes: list[str]) -> tuple[Task, list[Example]]:
    """Return the task that settings name, or that of the labelled sample, with this sample."""
    asked = named_task(settings)
    if asked is None and check is not None:
        data = settings.data.model_copy(update={"train": check})
        asked, human, _, told = asked_and_train(settings.model_copy(update={"data": data}), None)
        notes += told
        assert isinstance(asked, Task)
        return asked, human
    if asked is None:
        raise SettingsError(
            "The annotator must know the labels: give a task file or a built-in task with --task, "
            "or a table with some labels by people with --check."
        )
    assert isinstance(asked, Task)
    return asked, [] if check is None else read_test(check, asked, settings.data, notes=notes)


def _texts(table: pd.DataFrame, columns: Columns, task: Task, source: str) -> list[Example]:
    """Return every row, with its label where it has one."""
    texts = to_examples(table, columns, source=source, require_labels=False, require_text=False)
    if all(text.is_blank for text in texts):
        raise DataError(f"{source}: no row has a text in {', '.join(task.text)}.")
    try:
        check_labels(texts, task.label_names)
    except DataError as error:
        raise DataError(
            f"{error} Rows of {source} that have a label in column {columns.label!r} check the "
            "annotator; if it is no label of this task, give the labelled sample with --check, or "
            "rename the column."
        ) from error
    return texts


def _shown(settings: RunSettings, task: Task, human: Sequence[Example]) -> list[Example]:
    """Return the labelled examples for the prompt, as many as are asked for.

    A task's own number is left out where nothing is labelled; one that the user gives is not.
    """
    how, num = settings.method.chosen_by, task.num_demonstrations
    if how is None or num == 0 or (not human and settings.method.shown is None):
        return []
    return choose_demonstrations(
        human, how=how, num=num, labels=task.label_names, seed=settings.seed
    )
