"""The messages of a chat, in the forms in which data sets write them."""

import json
import re
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
# What calls a tool: as a role (LLaMA-Factory), as keys (OpenAI), as a part of content (Anthropic).
CALLING_ROLES = ("function_call", "tool_call")
CALLS = ("tool_calls", "function_call")
CALLING_PARTS = ("tool_use", "tool_result", "tool_call")
TOOL_CALLS = "tool calls"
# Keys by which a turn of the assistant is told to be learned or not.
FLAGS = ("weight", "train", "training", "train_on_turn", "loss")
KEYS = ("role", "from", "content", "value", *CALLS, "tool_call_id", "id", "call_id")
HUMAN = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):[ \t]?")


class LeftOut(Exception):
    """Why a row is not learned from, by a stated rule; readers count these by their reason."""


class RowProblem(Exception):
    """What one row lacks; readers collect these and raise one `DataError`."""


@dataclass(frozen=True, slots=True)
class Message:
    """A turn of a chat.

    Attributes:
        role: system, user, assistant or tool.
        content: What is said.
        learned: Whether a turn of the assistant is learned where turns are.
    """

    role: str
    content: str
    learned: bool = True

    @property
    def turn(self) -> dict[str, str]:
        """Return what a chat template gets."""
        return {"role": self.role, "content": self.content}

    def to_record(self) -> dict[str, Any]:
        """Return it as JSON values; one that is not learned has the weight 0, as OpenAI's have."""
        return self.turn if self.learned else {**self.turn, "weight": 0}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Message":
        """Return the message of `to_record`."""
        return cls(record["role"], record["content"], record.get("weight", 1) != 0)


def messages_of(
    value: Any,  # noqa: ANN401 - from a file
    field: str,
    unread: set[str],
) -> tuple[Message, ...]:
    """Return the messages of a list of {role, content} or {from, value} objects.

    Args:
        value: The list, or its JSON text (CSV files).
        field: Its name, for messages.
        unread: Gets the names of keys that hold something and are not read, and `TOOL_CALLS`.

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
    return tuple(_message(one, f"{field}[{place}]", unread) for place, one in enumerate(value))


def transcript(text: str) -> tuple[Message, ...]:
    """Return the turns of a text of `Human:` and `Assistant:`, as hh-rlhf writes them; or none."""
    before, *parts = HUMAN.split(text)
    if before.strip() or not parts:
        return ()
    spoken = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(ROLES[role.casefold()], sound_text(said.strip())) for role, said in spoken)


def _message(value: Any, where: str, unread: set[str]) -> Message:  # noqa: ANN401 - from a file
    if not isinstance(value, dict):
        raise RowProblem(f"{where} is a {type(value).__name__}; it must be an object")
    role = value.get("role", value.get("from"))
    content = value.get("content", value.get("value"))
    if not isinstance(role, str):
        raise RowProblem(f"{where} has no role")
    read = (*KEYS, *FLAGS)
    unread |= {key for key, said in value.items() if key not in read and is_filled(said)}
    if role.casefold() in CALLING_ROLES or any(value.get(key) for key in CALLS):
        unread.add(TOOL_CALLS)
        role = "assistant"
    if role.casefold() not in ROLES:
        raise RowProblem(f"{where} has the role {role!r}; known are {', '.join(ROLES)}")
    known = ROLES[role.casefold()]
    if isinstance(content, list):
        content = _joined(content, where, unread)
    text = text_of(content, f"{where} content")
    is_null = "content" in value or "value" in value or TOOL_CALLS in unread
    if text is None and not (known == "assistant" and is_null):
        raise RowProblem(f"{where} has no content")
    learned = known != "assistant" or _is_learned(value, where, unread)
    return Message(known, sound_text(text or ""), learned)


def is_filled(value: Any) -> bool:  # noqa: ANN401 - from a file
    """Whether a value says anything; CSV files have lists as texts, and so have some others."""
    return value is not None and value not in ("", [], {}, "[]", "{}", "null")


def _is_learned(value: Mapping[str, Any], where: str, unread: set[str]) -> bool:
    """Return what the flags of a message say; 1 and true mean yes."""
    flags = [(key, value[key]) for key in FLAGS if value.get(key) is not None]
    for key, flag in flags:
        if not isinstance(flag, bool | int | float):
            raise RowProblem(f"{where} has the {key} {flag!r}; it must be 0 or 1")
        # Such as a loss that was measured, or half a weight: neither yes nor no.
        if flag not in (0, 1):
            unread.add(f"{key} other than 0 and 1")
    return all(flag != 0 for _, flag in flags)


def _joined(parts: list[Any], where: str, unread: set[str]) -> str:
    """Return the text of content that is given in parts."""
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in CALLING_PARTS:
            unread.add(TOOL_CALLS)
            continue
        if kind in ("thinking", "redacted_thinking", "reasoning"):
            unread.add("thinking")
            continue
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
