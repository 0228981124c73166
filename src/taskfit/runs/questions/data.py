"""From settings to rows with answers: read, check, split, keep evaluation sets out of training."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from taskfit.data import (
    Columns,
    Example,
    check_labels,
    check_several_classes,
    draw,
    read_table,
    split_validation,
    to_examples,
)
from taskfit.data.overlap import text_key
from taskfit.data.tables import suggestion
from taskfit.errors import DataError, SettingsError
from taskfit.runs.prepare import fingerprint, validation_share
from taskfit.settings import RunSettings
from taskfit.tasks.question_files import load_questionnaire, questionnaire_to_dict
from taskfit.tasks.questions import AnsweredExample, Question, Questionnaire

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
SERVED = ("name", "num_demonstrations", "loss", "class_weights", "focal_gamma")


@dataclass(frozen=True, slots=True)
class QuestionData:
    """Questions with their examples.

    Attributes:
        questionnaire: The questions.
        train: Training examples, each with at least one answer; no text of the other sets is among
            them.
        validation: Held-out part of the training table.
        evaluations: Evaluation sets by name.
        notes: What people should know about them.
        fingerprint: Hash of the questions, and of each set's ids, texts and answers.
    """

    questionnaire: Questionnaire
    train: list[AnsweredExample]
    validation: list[AnsweredExample]
    evaluations: dict[str, list[AnsweredExample]]
    notes: list[str]
    fingerprint: dict[str, str]


def prepare_questions(settings: RunSettings) -> QuestionData:
    """Read and split everything that a run of questions needs.

    Raises:
        TaskfitError: If settings, the file of questions or a table do not allow it.
    """
    settings = settings.resolved(questions=True)
    questionnaire = _questionnaire(settings)
    data, notes = settings.data, list[str]()
    train: list[AnsweredExample] = []
    if data.train is not None:
        train = read_answered(data.train, questionnaire, encoding=data.encoding)
        unanswered = [example for example in train if not example.answers]
        if unanswered:
            notes.append(f"left out {len(unanswered)} training rows without any label")
        train = [example for example in train if example.answers]
    evaluations = {}
    for name, source in data.tests.items():
        found = read_answered(source, questionnaire, encoding=data.encoding, every_question=False)
        few = data.max_test is not None and data.max_test < len(found)
        evaluations[name] = _draw(found, questionnaire, data.max_test, seed=0) if few else found
        unasked = [q for q in questionnaire.names if not any(q in e.answers for e in found)]
        if unasked:
            notes.append(f"{name} has no label of {', '.join(unasked)}: not evaluated there")
    validation: list[AnsweredExample] = []
    if data.validation is not None:
        validation = read_answered(data.validation, questionnaire, encoding=data.encoding)
    if not train and not evaluations:
        raise SettingsError("No data: give a table with --data FILE, or with --test NAME=FILE.")
    if train:
        train, validation = _split(train, validation, evaluations, settings, questionnaire, notes)
    sets = {"train": train, "validation": validation}
    sets |= {f"evaluation {name}": found for name, found in evaluations.items()}
    shown = json.dumps(questionnaire_to_dict(questionnaire), ensure_ascii=False)
    return QuestionData(
        questionnaire=questionnaire,
        train=train,
        validation=validation,
        evaluations=evaluations,
        notes=notes,
        fingerprint={
            "questions": hashlib.sha256(shown.encode()).hexdigest()[:16],
            **{name: fingerprint(list(map(_with_answers, rows))) for name, rows in sets.items()},
        },
    )


def check_trainable(data: QuestionData) -> list[str]:
    """Check that there is something to learn about every question.

    Returns:
        A note on each question with an option that no training example has.

    Raises:
        DataError: Naming the question.
    """
    if not data.train:
        raise DataError("label_words needs training examples: give --data FILE.")
    notes = []
    for question in data.questionnaire.questions:
        known = [e.example(question.name) for e in data.train if question.name in e.answers]
        if not known:
            raise DataError(
                f"Question {question.name} has no label in training: column "
                f"{question.label_column!r} is empty in all {len(data.train)} training rows. Fill "
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


def read_answered(
    source: str, questionnaire: Questionnaire, *, encoding: str, every_question: bool = True
) -> list[AnsweredExample]:
    """Read a table with the labels of questions; an empty cell is a question without a label.

    Args:
        source: File or hub id.
        questionnaire: The questions.
        encoding: Of the file.
        every_question: Whether every question must have its column, or one suffices.

    Raises:
        DataError: If a column is missing or a label is none of the question's options.
    """
    table = read_table(source, encoding=encoding)
    present = [str(name) for name in table.columns]
    asked = [q for q in questionnaire.questions if q.label_column in present]
    for question in questionnaire.questions:
        if question not in asked and (every_question or not asked):
            raise DataError(
                f"{source} has no column {question.label_column!r} with the labels of question "
                f"{question.name}; it has: {', '.join(present)}."
                f"{suggestion(question.label_column, present)} Name the column with `label` in "
                "the file of questions."
            )
    texts = read_texts(table, questionnaire, source=source)
    answers: list[dict[str, str]] = [{} for _ in texts]
    problems = []
    for question in asked:
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
        AnsweredExample(example.id, example.texts, found)
        for example, found in zip(texts, answers, strict=True)
    ]


def read_texts(table: pd.DataFrame, questionnaire: Questionnaire, *, source: str) -> list[Example]:
    """Return the texts of a table, without labels.

    Raises:
        DataError: If a text column is missing or a row is without any text.
    """
    present = [str(name) for name in table.columns]
    for name in questionnaire.text:
        if name not in present:
            raise DataError(
                f"{source} has no text column {name!r}; it has: {', '.join(present)}."
                f"{suggestion(name, present)} The file of questions names it under `text`."
            )
    return to_examples(table, Columns(text=questionnaire.text, label=None), source=source)


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


def _split(
    train: list[AnsweredExample],
    validation: list[AnsweredExample],
    evaluations: Mapping[str, Sequence[AnsweredExample]],
    settings: RunSettings,
    questionnaire: Questionnaire,
    notes: list[str],
) -> tuple[list[AnsweredExample], list[AnsweredExample]]:
    """Keep other sets' texts out of training, hold out a validation set, draw."""
    data = settings.data
    held_out = [*validation, *(e for found in evaluations.values() for e in found)]
    kept = _without(train, held_out)
    if not kept:
        raise DataError(
            "Every training example also stands in an evaluation set, so none is left to train on. "
            "Are the same files given as training and evaluation data?"
        )
    if len(kept) < len(train):
        notes.append(
            f"removed {len(train) - len(kept)} training examples whose text also stands in an "
            "evaluation set"
        )
    train = kept
    if data.validation is None:
        _, held = split_validation(
            [_by_first(example, questionnaire) for example in train],
            fraction=validation_share(settings, len(train), len(train)),
            max_validation=data.max_validation,
            seed=settings.seed,
        )
        chosen = {example.id for example in held}
        validation = [example for example in train if example.id in chosen]
        # A text that stands several times stays on one side.
        train = _without(train, validation)
    if data.num_train is not None:
        train = _draw(train, questionnaire, data.num_train, seed=settings.seed)
    return train, validation


def _without(
    examples: Sequence[AnsweredExample], others: Sequence[AnsweredExample]
) -> list[AnsweredExample]:
    keys = {text_key(example.bare()) for example in others}
    return [example for example in examples if text_key(example.bare()) not in keys]


def _draw(
    examples: Sequence[AnsweredExample], questionnaire: Questionnaire, num: int | None, *, seed: int
) -> list[AnsweredExample]:
    """Draw examples with the proportions of the first question's labels."""
    by_id = {example.id: example for example in examples}
    plain = [_by_first(example, questionnaire) for example in examples]
    drawn = draw(plain, num_examples=num, shots_per_class=None, seed=seed)
    return [by_id[example.id] for example in drawn]


def _by_first(example: AnsweredExample, questionnaire: Questionnaire) -> Example:
    """Return an example with the label by which draws are stratified: the first answer it has."""
    given = [f"{q} {example.answers[q]}" for q in questionnaire.names if q in example.answers]
    return Example(example.id, example.texts, given[0] if given else "")


def _with_answers(example: AnsweredExample) -> Example:
    answers = json.dumps(dict(example.answers), sort_keys=True, ensure_ascii=False)
    return Example(example.id, example.texts, answers)


def _questionnaire(settings: RunSettings) -> Questionnaire:
    """Load the questions, with what the settings replace.

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
        if (value := plain[section].get(name)) not in (None, *allowed):
            problems.append(f"{key}={value} has no meaning for questions; leave it out")
    problems += [
        f"method.{name}={value} has no meaning for questions; leave it out"
        for name, value in settings.method.model_dump(exclude_defaults=True).items()
        if name not in SERVED
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
    )
