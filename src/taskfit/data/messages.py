"""The messages of a chat, in the forms in which data sets write them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskfit.data.cells import NotText

# Names of roles in data sets, and the ones that chat templates know.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


class RowProblem(Exception):
    """What one row lacks; readers collect these and raise one `DataError`."""


@dataclass(frozen=True, slots=True)
class Message:
    """A turn of a chat.

    Attributes:
        role: system, user, assistant or tool.
        content: What is said.
    """

    role: str
    content: str


def messages_of(value: Any, field: str) -> tuple[Message, ...]:  # noqa: ANN401 - from a file
    """Return the messages of a list of {role, content} or {from, value} objects.

    Args:
        value: The list, or its JSON text (CSV files).
        field: Its name, for messages.

    Raises:
        RowProblem: If it is not such a list.
    """
    if value is None or value == "":
        raise RowProblem(f"{field} is missing")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise RowProblem(f"{field} is a text, but no JSON list of messages: {error}") from error
    if not isinstance(value, list):
        raise RowProblem(f"{field} is a {type(value).__name__}; it must be a list of messages")
    if not value:
        raise RowProblem(f"{field} is an empty list")
    return tuple(_message(one, f"{field}[{place}]") for place, one in enumerate(value))


def _message(value: Any, where: str) -> Message:  # noqa: ANN401 - from a file
    if not isinstance(value, dict):
        raise RowProblem(f"{where} is a {type(value).__name__}; it must be an object")
    role = value.get("role", value.get("from"))
    content = value.get("content", value.get("value"))
    if not isinstance(role, str):
        raise RowProblem(f"{where} has no role")
    if role.casefold() not in ROLES:
        raise RowProblem(f"{where} has the role {role!r}; known are {', '.join(ROLES)}")
    if isinstance(content, list):
        content = _joined(content, where)
    text = text_of(content, f"{where} content")
    if text is None:
        raise RowProblem(f"{where} has no content")
    return Message(ROLES[role.casefold()], sound_text(text))


def _joined(parts: list[Any], where: str) -> str:
    """Return the text of content that is given in parts."""
    texts = []
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise RowProblem(f"{where} has content other than text, which is not learned here")
        texts.append(part["text"])
    return "".join(texts)


def required_text(values: Mapping[str, Any], field: str) -> str:
    """Return a field's text; an empty text is a text.

    Raises:
        RowProblem: If it is missing, or no text.
    """
    text = text_of(values.get(field), field)
    if text is None:
        raise RowProblem(f"{field} is missing")
    return sound_text(text)


def text_of(value: Any, field: str) -> str | None:  # noqa: ANN401 - from a file
    """Return a value as text, None where it is missing.

    Raises:
        RowProblem: If it is a list or an object.
    """
    if isinstance(value, NotText):
        raise RowProblem(f"{field} is {value.what}; it must be a text")
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise RowProblem(f"{field} is a {type(value).__name__}; it must be a text")


def sound_text(text: str) -> str:
    """Return a text that can be written.

    Raises:
        RowProblem: If it holds half of a surrogate pair, which JSON in a text can write.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowProblem(
            "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character"
        ) from error
    return text
