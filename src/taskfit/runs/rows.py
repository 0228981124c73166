"""Tables as examples, of a task of one question or of several; what questions need of settings."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pandas as pd

from taskfit.data import (
    Columns,
    Example,
    check_labels,
    check_several_classes,
    left_out_note,
    notes_of,
    to_examples,
    without_blank,
)
from taskfit.errors import DataError, SettingsError, suggestion
from taskfit.runs.sources import read_source
from taskfit.settings import DataSettings, RunSettings
from taskfit.tasks import Task
from taskfit.tasks.question_files import load_questionnaire
from taskfit.tasks.questions import Asked, Question, Questionnaire

METHODS = ("in_context", "label_words")
# Settings that mean nothing here, and the values that leave them alone.
UNSERVED: dict[str, tuple[object, ...]] = {
    "data.label": (None,),
    "data.soft_labels": ({},),
    "data.shots_per_class": (None,),
    "task.line": (None,),
    "task.separator": (None,),
    "task.label_words": ({},),
    "task.multi_label": (False,),
    "method.num_demonstrations": (None, 0),
    "method.loss": (None, "labels", "branches"),
}
# All else that the two methods read is for one question.
SERVED = (
    *("name", "num_demonstrations", "loss", "class_weights", "focal_gamma"),
    *("option_orders", "shuffle_options"),
)
SAME_COLUMNS = "All tables of a task have the same columns; rename those of this one."


def task_columns(task: Task, data: DataSettings, advice: str = SAME_COLUMNS) -> Columns:
    """Return the columns that the tables of a task of one question must have."""
    return Columns(
        text=task.text,
        label=data.label or task.label_column,
        values=dict(task.values),
        shares=data.soft_labels,
        separator=data.label_separator if task.multi_label else None,
        carried=tuple(data.slices),
        advice=advice,
    )


def labelled_examples(
    table: pd.DataFrame,
    asked: Asked,
    data: DataSettings,
    *,
    source: str,
    every_question: bool = True,
    advice: str = SAME_COLUMNS,
) -> list[Example]:
    """Return the rows of a labelled table.

    Args:
        table: As it was read.
        asked: One question, or several; then an empty cell is a question without a label.
        data: Names columns.
        source: Name of the table, for ids and messages.
        every_question: Whether each of several questions must have its column, or one suffices, as
            where a table is for measuring alone; then labels may be coarse ones of the task, too.
        advice: What to do about a column that is not there.

    Raises:
        DataError: If a column is missing or a label is none of the question's.
    """
    if isinstance(asked, Task):
        examples = to_examples(table, task_columns(asked, data, advice), source=source)
        coarse = () if every_question else asked.coarse
        check_labels(examples, [*asked.label_names, *coarse])
        return examples
    present = [str(name) for name in table.columns]
    there = [q for q in asked.questions if q.label_column in present]
    for question in asked.questions:
        if question not in there and (every_question or not there):
            raise DataError(
                f"{source} has no column {question.label_column!r} with the labels of question "
                f"{question.name}; it has: {', '.join(present)}."
                f"{suggestion(question.label_column, present)} Name the column with `label` in "
                "the file of questions."
            )
    if all(name in present for name in asked.text):
        table = without_blank(table, [*asked.text, *(q.label_column for q in there)])
    texts = text_examples(table, asked, source=source, carried=data.slices)
    answers: list[dict[str, str]] = [{} for _ in texts]
    problems = []
    for question in there:
        try:
            labels = _labels(table, question, texts)
        except DataError as error:
            problems.append(f"Question {question.name}, column {question.label_column!r}: {error}")
            continue
        for found, label in zip(answers, labels, strict=True):
            if label:
                found[question.name] = label
    if problems:
        raise DataError("\n".join(problems))
    return [
        replace(
            example,
            label=next((f"{q} {found[q]}" for q in asked.names if q in found), ""),
            answers=found,
        )
        for example, found in zip(texts, answers, strict=True)
    ]


def read_test(
    source: str,
    asked: Asked,
    data: DataSettings,
    *,
    every_question: bool = True,
    notes: list[str] | None = None,
) -> list[Example]:
    """Read a labelled table that is not for training; see `labelled_examples`.

    What people should know about how it was read is added to `notes`.
    """
    table = read_source(source, encoding=data.encoding, split="test", quotes=data.quotes)
    if isinstance(asked, Task) and data.label not in table and asked.label_column in table:
        # In a run that goes on, the new table alone may call its labels otherwise.
        data = data.model_copy(update={"label": None})
    examples = labelled_examples(table, asked, data, source=source, every_question=every_question)
    if notes is not None:
        notes += reading_notes(table, examples, source)
    return examples


def reading_notes(table: pd.DataFrame, examples: Sequence[Example], source: str) -> list[str]:
    """Return what people should know about how a table was read, and the rows left out."""
    left_out = left_out_note(table, examples, source)
    return [*notes_of(table), *([left_out] if left_out else [])]


def labelled_rows(
    table: pd.DataFrame, asked: Asked, data: DataSettings, *, source: str, advice: str
) -> list[Example]:
    """Return every row of a labelled table, those without any text without a label.

    Args:
        table: As it was read, blank rows kept.
        asked: One question, or several, of which one suffices.
        data: Names columns.
        source: Name of the table, for ids and messages.
        advice: What to do about a column that is not there.

    Raises:
        DataError: As `labelled_examples`, or if no row has a text.
    """
    labelled = partial(labelled_examples, source=source, every_question=False, advice=advice)
    texts = [name for name in asked.text if name in table.columns]
    is_blank = ~table[texts].apply(lambda column: column.str.strip() != "").any(axis=1)
    if not texts or not is_blank.any():
        return labelled(table, asked, data)
    if is_blank.all():
        raise DataError(f"{source}: no row has a text in {', '.join(texts)}.")
    rest = iter(labelled(table[~is_blank], asked, data))
    blank = iter(
        text_examples(
            table[is_blank], asked, source=source, carried=data.slices, require_text=False
        )
    )
    return [next(blank) if found else next(rest) for found in is_blank]


def text_examples(
    table: pd.DataFrame,
    asked: Asked,
    *,
    source: str,
    carried: Sequence[str] = (),
    require_text: bool = True,
) -> list[Example]:
    """Return the texts of a table, without labels.

    Args:
        table: As it was read.
        asked: Names the text columns.
        source: Name of the table, for ids and messages.
        carried: Further columns to carry along.
        require_text: See `to_examples`.

    Raises:
        DataError: If a text column is missing or a row is without any text.
    """
    present = [str(name) for name in table.columns]
    for name in asked.text if isinstance(asked, Questionnaire) else ():
        if name not in present:
            raise DataError(
                f"{source} has no text column {name!r}; it has: {', '.join(present)}."
                f"{suggestion(name, present)} The file of questions names it under `text`."
            )
    # A label column in a file to predict may hold anything; it is not looked at.
    columns = Columns(
        text=asked.text, label=None, carried=tuple(carried), advice=advice_on_columns(asked.text)
    )
    return to_examples(table, columns, source=source, require_text=require_text)


def advice_on_columns(text: Sequence[str]) -> str:
    """Return how the table of a finished run's task says which columns are its own."""
    return f"Say which column is which with --column, such as --column {text[0]}=COLUMN."


def fingerprint(examples: Sequence[Example]) -> str:
    """Return a hash of ids, texts and labels, so that changed data is noticed on resuming."""
    digest = hashlib.sha256()
    for example in examples:
        row: list[object] = [example.id, dict(example.texts), example.label]
        row += [dict(more) for more in (example.target, example.answers) if more is not None]
        digest.update(json.dumps(row, ensure_ascii=False).encode())
    return digest.hexdigest()[:16]


def check_every_question(asked: Asked, train: Sequence[Example]) -> list[str]:
    """Check that there is something to learn about each of several questions.

    Returns:
        A note on each question with an option that no training example has.

    Raises:
        DataError: Naming the question.
    """
    notes = []
    for question in asked.questions if isinstance(asked, Questionnaire) else ():
        known = [e for e in (e.of(question.name) for e in train) if e.label is not None]
        if not known:
            raise DataError(
                f"Question {question.name} has no label in training: column "
                f"{question.label_column!r} is empty in all {len(train)} training rows. Fill "
                "it in, or take the question out of the file."
            )
        try:
            check_several_classes(known)
        except DataError as error:
            raise DataError(f"Question {question.name}: {error}") from error
        seen = {example.label for example in known}
        unseen = [name for name in question.option_names if name not in seen]
        if unseen:
            notes.append(
                f"question {question.name}: no training example of {', '.join(map(repr, unseen))}"
            )
    return notes


def _labels(table: pd.DataFrame, question: Question, texts: Sequence[Example]) -> list[str]:
    """Return the label of each row, empty where there is none."""
    raw = [str(value).strip() for value in table[question.label_column]]
    labels = [question.values.get(value, value) for value in raw]
    check_labels(
        [
            replace(example, label=label)
            for example, label in zip(texts, labels, strict=True)
            if label
        ],
        question.option_names,
    )
    return labels


def settings_questionnaire(settings: RunSettings) -> Questionnaire:
    """Load the questions that settings name, with what the settings replace.

    Raises:
        SettingsError: Listing settings that questions cannot follow.
    """
    assert settings.task.name is not None, "a run of questions has a file of questions"
    questionnaire = load_questionnaire(settings.task.name)
    problems = []
    if settings.method.name not in METHODS:
        problems.append(
            f"method.name={settings.method.name}: questions are answered by {' and '.join(METHODS)}"
        )
    plain = settings.model_dump()
    for key, allowed in UNSERVED.items():
        section, name = key.split(".")
        value = plain[section].get(name, allowed[0])  # a method has its own settings only
        if value not in allowed:
            problems.append(f"{key}={value} has no meaning for questions; leave it out")
    problems += [
        f"method.{name}={value} has no meaning for questions; leave it out"
        for name, value in settings.method.model_dump(exclude_defaults=True).items()
        if name not in SERVED and value != []  # blended with nothing, as without the setting
    ]
    if settings.data.text and tuple(settings.data.text) != questionnaire.text:
        problems.append(
            f"--text names {', '.join(settings.data.text)}, but the questions read "
            f"{', '.join(questionnaire.text)}; leave out --text"
        )
    if problems:
        raise SettingsError("; ".join(problems) + ".")
    instruction = settings.task.instruction
    return replace(
        questionnaire,
        instruction=questionnaire.instruction if instruction is None else instruction,
        chat=questionnaire.chat or settings.task.chat,
        allow_control_tokens=(
            questionnaire.allow_control_tokens or settings.task.allow_control_tokens
        ),
    )
