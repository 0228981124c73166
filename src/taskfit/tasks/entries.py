"""Parts of task files: what keys they have, and what is wrong with one in words for people."""

from collections.abc import Mapping
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from taskfit.errors import PromptError, close_match

# What a value of pydantic's kind of error must be instead.
NEEDED = {
    "string_type": "it needs text",
    "int_type": "it needs a whole number",
    "bool_type": "allowed are true and false",
    "list_type": "it needs a list",
}


def _listed(value: Any) -> Any:  # noqa: ANN401 - from a file
    """Return a single entry as a list of one."""
    return [value] if isinstance(value, str | int | float) else value


Texts = Annotated[list[str], BeforeValidator(_listed)]


class Entry(BaseModel):
    """Keys and values; a key with nothing behind it is a key that is not there."""

    # What is made in Python may have a number as a name or a word.
    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_gaps(cls, data: Any) -> Any:  # noqa: ANN401 - from a file
        if not isinstance(data, Mapping):
            return data
        return {str(key): value for key, value in data.items() if value is not None}

    @classmethod
    def read(cls, data: object) -> Self:
        """Read the contents of a file.

        Raises:
            PromptError: Listing everything that is wrong.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise PromptError("; ".join(entry_problems(error, cls)) + ".") from error


def entry_problems(error: ValidationError, kind: type[Entry], where: str = "") -> list[str]:
    """Say what pydantic found in an entry that stands at a place, in the words of a task file."""
    return [_describe(dict(problem), kind, where) for problem in error.errors()]


def _describe(problem: Mapping[str, Any], kind: type[Entry], where: str) -> str:
    # Such as `questions[2].options[1].name`, counted from 1.
    where += "".join(f"[{p + 1}]" if isinstance(p, int) else f".{p}" for p in problem["loc"])
    where = where.removeprefix(".")
    given, what = problem["input"], problem["type"]
    if what == "extra_forbidden":
        *above, key = problem["loc"]
        known = _keys(kind, above)
        close = close_match(str(key), known)
        hint = f", did you mean {close}?" if close else ""
        return f"unknown key {where}{hint} (allowed: {', '.join(known)})"
    if what == "missing":
        return f"{where} is missing"
    if what == "model_type":
        return f"{where} is {given!r}; it needs keys: {', '.join(_keys(kind, problem['loc']))}"
    if what in NEEDED:
        return f"{where} is {given!r}; {NEEDED[what]}"
    return f"{where} is {given!r}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"


def _keys(kind: type[Entry], place: Any) -> list[str]:  # noqa: ANN401 - pydantic's own
    """Return the keys of the entry at a place."""
    for name in place:
        if isinstance(name, str):
            kind = _entry_in(kind.model_fields[name].annotation) or kind
    return list(kind.model_fields)


def _entry_in(annotation: Any) -> type[Entry] | None:  # noqa: ANN401 - a type
    """Return the kind of entry that a type such as `list[Entry] | None` holds."""
    if isinstance(annotation, type) and issubclass(annotation, Entry):
        return annotation
    return next(filter(None, map(_entry_in, get_args(annotation))), None)
