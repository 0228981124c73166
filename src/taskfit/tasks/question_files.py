"""Files of questions: YAML in, YAML-ready dictionaries out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from taskfit.errors import PromptError
from taskfit.tasks.entries import Entry, Texts
from taskfit.tasks.questions import (
    DEFAULT_YES_NO,
    Kind,
    Option,
    Question,
    Questionnaire,
    level_number,
)
from taskfit.tasks.task import default_words
from taskfit.yaml_text import read_yaml


def _named(value: Any) -> Any:  # noqa: ANN401 - from a file
    """Return an option that is only a name as an entry; None is an option without one."""
    return value if isinstance(value, Mapping) else {"name": value}


class _Option(Entry):
    name: str
    words: Texts | None = None
    description: str = ""
    number: float | None = None
    values: Texts | None = None


class _Question(Entry):
    name: str
    ask: str
    kind: Kind
    label: str | None = None
    options: list[Annotated[_Option, BeforeValidator(_named)]] = Field([])
    weight: float = 1.0


class _Questionnaire(Entry):
    name: str
    version: int = 1
    text: Texts = Field(min_length=1)
    instruction: str = ""
    metric: str = "accuracy"
    chat: bool = False
    allow_control_tokens: bool = False
    questions: list[_Question] = Field(min_length=1)


def is_questionnaire(name_or_path: str | None) -> bool:
    """Return whether a task is a file with the key `questions`."""
    if name_or_path is None:
        return False
    try:
        data = read_yaml(Path(name_or_path).expanduser(), "task file", PromptError)
    except PromptError:
        # Whoever reads it as a task says what is wrong with it.
        return False
    return isinstance(data, dict) and "questions" in data


def load_questionnaire(path: str) -> Questionnaire:
    """Load a file of questions.

    Raises:
        PromptError: If there is no such file, or it is not a sound one.
    """
    data = read_yaml(Path(path).expanduser(), "file of questions", PromptError, _Questionnaire)
    if not isinstance(data, dict):
        needed = ", ".join(_Questionnaire.model_fields)
        raise PromptError(f"{path} holds no questions; it needs: {needed}.")
    try:
        return questionnaire_from_dict(data)
    except PromptError as error:
        raise PromptError(f"{path}: {error}") from error


def questionnaire_from_dict(data: Mapping[str, Any]) -> Questionnaire:
    """Make a questionnaire from the contents of a file of questions.

    Raises:
        PromptError: Listing everything that is wrong.
    """
    found = _Questionnaire.read(data)
    return Questionnaire(
        name=found.name,
        version=found.version,
        text=tuple(found.text),
        questions=tuple(_question(entry) for entry in found.questions),
        instruction=found.instruction,
        metric=found.metric,
        chat=found.chat,
        allow_control_tokens=found.allow_control_tokens,
    )


def questionnaire_to_dict(questionnaire: Questionnaire) -> dict[str, Any]:
    """Return the contents of a file; `questionnaire_from_dict` gives the same questions again."""
    allowed = {"allow_control_tokens": True} if questionnaire.allow_control_tokens else {}
    return {
        "name": questionnaire.name,
        "version": questionnaire.version,
        "text": list(questionnaire.text),
        "instruction": questionnaire.instruction,
        "metric": questionnaire.metric,
        "chat": questionnaire.chat,
        **allowed,
        "questions": [
            {
                "name": question.name,
                "ask": question.ask,
                "kind": question.kind,
                "label": question.label_column,
                "weight": question.weight,
                "options": [_option_to_dict(option) for option in question.options],
            }
            for question in questionnaire.questions
        ],
    }


def _option_to_dict(option: Option) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": option.name,
        "words": list(option.words),
        "description": option.description,
        "values": list(option.values),
    }
    return entry if option.number is None else {**entry, "number": option.number}


def _question(entry: _Question) -> Question:
    words = default_words([option.name for option in entry.options])
    options = tuple(
        Option(
            name=option.name,
            words=(words[option.name],) if option.words is None else tuple(option.words),
            description=option.description,
            number=(
                level_number(option.name)
                if entry.kind == "score" and option.number is None
                else option.number
            ),
            values=_values(option, entry.kind),
        )
        for option in entry.options
    )
    return Question(
        name=entry.name,
        ask=entry.ask,
        kind=entry.kind,
        label_column=entry.name if entry.label is None else entry.label,
        options=DEFAULT_YES_NO if entry.kind == "yes_no" and not options else options,
        weight=entry.weight,
    )


def _values(option: _Option, kind: Kind) -> tuple[str, ...]:
    if option.values is None and kind == "yes_no":
        return next((o.values for o in DEFAULT_YES_NO if o.name == option.name), ())
    return tuple(option.values or ())
