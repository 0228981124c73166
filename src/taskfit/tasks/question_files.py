"""Files of questions: YAML in, YAML-ready dictionaries out."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from taskfit.errors import PromptError
from taskfit.tasks.questions import (
    DEFAULT_YES_NO,
    Kind,
    Option,
    Question,
    Questionnaire,
    default_words,
    level_number,
)
from taskfit.yaml_text import parse_yaml


def _listed(value: Any) -> Any:  # noqa: ANN401 - from a file
    """Return a single entry as a list of one."""
    return [value] if isinstance(value, str | int | float) else value


def _named(value: Any) -> Any:  # noqa: ANN401 - from a file
    """Return an option that is only a name as an entry; None is an option without one."""
    return value if isinstance(value, Mapping) else {"name": value}


Texts = Annotated[list[str], BeforeValidator(_listed)]


class _Entry(BaseModel):
    # YAML reads 1 as a number, and a name or a word may be one.
    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)


class _Option(_Entry):
    name: str
    words: Texts | None = None
    description: str = ""
    number: float | None = None
    values: Texts | None = None


class _Question(_Entry):
    name: str
    ask: str
    kind: Kind
    label: str | None = None
    options: list[Annotated[_Option, BeforeValidator(_named)]] | None = None
    weight: float = 1.0


class _Questionnaire(_Entry):
    name: str
    version: int = 1
    text: Texts = Field(min_length=1)
    instruction: str = ""
    metric: str = "accuracy"
    chat: bool = False
    questions: list[_Question] = Field(min_length=1)


KEYS: dict[type[_Entry], tuple[str, ...]] = {
    kind: tuple(kind.model_fields) for kind in (_Questionnaire, _Question, _Option)
}


def is_questionnaire(name_or_path: str | None) -> bool:
    """Return whether a task is a file with the key `questions`."""
    if name_or_path is None or not Path(name_or_path).expanduser().is_file():
        return False
    try:
        text = Path(name_or_path).expanduser().read_text(encoding="utf-8")
        data = parse_yaml(text)
    except (UnicodeDecodeError, yaml.YAMLError):
        # Whoever reads it as a task says what is wrong with it.
        return False
    return isinstance(data, dict) and "questions" in data


def load_questionnaire(path: str) -> Questionnaire:
    """Load a file of questions.

    Raises:
        PromptError: If there is no such file, or it is not a sound one.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise PromptError(f"There is no file of questions {path}.")
    try:
        data = parse_yaml(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except yaml.YAMLError as error:
        raise PromptError(f"{path} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise PromptError(
            f"{path} holds no questions; it needs: {', '.join(KEYS[_Questionnaire])}."
        )
    try:
        return questionnaire_from_dict(data)
    except PromptError as error:
        raise PromptError(f"{path}: {error}") from error


def questionnaire_from_dict(data: Mapping[str, Any]) -> Questionnaire:
    """Make a questionnaire from the contents of a file of questions.

    Raises:
        PromptError: Listing everything that is wrong.
    """
    try:
        found = _Questionnaire.model_validate(_without_gaps(data))
    except ValidationError as error:
        problems = [_describe(dict(problem)) for problem in error.errors()]
        raise PromptError("; ".join(problems) + ".") from error
    return Questionnaire(
        name=found.name,
        version=found.version,
        text=tuple(found.text),
        questions=tuple(_question(entry) for entry in found.questions),
        instruction=found.instruction,
        metric=found.metric,
        chat=found.chat,
    )


def questionnaire_to_dict(questionnaire: Questionnaire) -> dict[str, Any]:
    """Return the contents of a file; `questionnaire_from_dict` gives the same questions again."""
    return {
        "name": questionnaire.name,
        "version": questionnaire.version,
        "text": list(questionnaire.text),
        "instruction": questionnaire.instruction,
        "metric": questionnaire.metric,
        "chat": questionnaire.chat,
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
    options = [] if entry.options is None else entry.options
    words = default_words([option.name for option in options])
    made = [
        Option(
            name=option.name,
            words=(words[option.name],) if option.words is None else tuple(option.words),
            description=option.description,
            number=_number(option) if entry.kind == "score" else option.number,
            values=_values(option, entry.kind),
        )
        for option in options
    ]
    return Question(
        name=entry.name,
        ask=entry.ask,
        kind=entry.kind,
        label_column=entry.name if entry.label is None else entry.label,
        options=DEFAULT_YES_NO if entry.kind == "yes_no" and not made else tuple(made),
        weight=entry.weight,
    )


def _number(option: _Option) -> float | None:
    return level_number(option.name) if option.number is None else option.number


def _values(option: _Option, kind: Kind) -> tuple[str, ...]:
    if option.values is None and kind == "yes_no":
        return next((o.values for o in DEFAULT_YES_NO if o.name == option.name), ())
    return tuple(option.values or ())


def _without_gaps(value: Any) -> Any:  # noqa: ANN401 - from a file
    """Leave out keys with nothing behind them: they are keys that are not there."""
    if isinstance(value, Mapping):
        return {str(k): _without_gaps(v) for k, v in value.items() if v is not None}
    return [_without_gaps(entry) for entry in value] if isinstance(value, list) else value


def _describe(problem: Mapping[str, Any]) -> str:
    """Say what pydantic found in the words of a task file."""
    where = _place(problem["loc"])
    given = problem["input"]
    if problem["type"] == "extra_forbidden":
        key, known = str(problem["loc"][-1]), KEYS[_owner(problem["loc"])]
        close = difflib.get_close_matches(key, known, n=1)
        hint = f", did you mean {close[0]}?" if close else ""
        return f"unknown key {where}{hint} (allowed: {', '.join(known)})"
    if problem["type"] == "missing":
        return f"{where} is missing"
    if isinstance(given, bool) and problem["type"].startswith("string"):
        return f"{where}: YAML reads a word of yours as {given}; put it into quotes, as in 'true'"
    message = problem["msg"]
    return f"{where} is {given!r}: {message[:1].lower()}{message[1:]}"


def _owner(parts: tuple[int | str, ...]) -> type[_Entry]:
    """Return the entry that a key stands in."""
    if "options" in parts:
        return _Option
    return _Question if "questions" in parts else _Questionnaire


def _place(parts: tuple[int | str, ...]) -> str:
    """Return where in the file, such as `questions[2].options[1].name`, counted from 1."""
    place = ""
    for part in parts:
        place += f"[{part + 1}]" if isinstance(part, int) else f".{part}"
    return place.removeprefix(".")
