"""The rows of instruction data: what they are, and how the fields of a record become them."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from taskfit.data.messages import (
    TOOL_CALLS,
    LeftOut,
    Message,
    RowProblem,
    messages_of,
    required_text,
    sound_text,
    text_of,
    transcript,
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns of a chat; what the assistant says is learned.

    Attributes:
        id: Where it stands, such as `alpaca.json:17`.
        messages: In order, at least one; a system message can only be the first.
        score: A quality score that came with it, from the column of the field `score`.
    """

    id: str
    messages: tuple[Message, ...]
    score: float | None = None

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Return what comes before the last answer of the assistant."""
        return self.messages[: self._last()]

    @property
    def answer(self) -> str:
        """Return the last answer of the assistant; empty where there is none."""
        last = self._last()
        return self.messages[last].content if last < len(self.messages) else ""

    def _last(self) -> int:
        found = [i for i, m in enumerate(self.messages) if m.role == "assistant"]
        return found[-1] if found else len(self.messages)


@dataclass(frozen=True, slots=True)
class Preference:
    """A better and a worse answer to one prompt.

    Attributes:
        id: Where it stands.
        prompt: Turns up to the answer, at least one.
        chosen: The better answer of the assistant.
        rejected: The worse one.
        score: A quality score that came with it, from the column of the field `score`.
    """

    id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Raw:
    """A text that is learned as it is.

    Attributes:
        id: Where it stands.
        text: The text.
        score: A quality score that came with it, from the column of the field `score`.
    """

    id: str
    text: str
    score: float | None = None


InstructionRow = Conversation | Preference | Raw


def to_record(row: InstructionRow) -> dict[str, Any]:
    """Return a row as JSON values; reading them gives the row again, but for id and score."""
    record: dict[str, Any] = {"id": row.id}
    if isinstance(row, Conversation):
        record["messages"] = [m.to_record() for m in row.messages]
    elif isinstance(row, Preference):
        record["prompt"] = [m.to_record() for m in row.prompt]
        record |= {"chosen": row.chosen, "rejected": row.rejected}
    else:
        record["text"] = row.text
    return record if row.score is None else {**record, "score": row.score}


def from_record(record: Mapping[str, Any]) -> InstructionRow:
    """Return the row of `to_record`, with its id and score."""
    name, score = record["id"], record.get("score")
    if "messages" in record:
        return Conversation(name, tuple(map(Message.from_record, record["messages"])), score)
    if "chosen" in record:
        prompt = tuple(map(Message.from_record, record["prompt"]))
        return Preference(name, prompt, record["chosen"], record["rejected"], score)
    return Raw(name, record["text"], score)


def rows_of(
    name: str, values: dict[str, Any], kind: str, need_answer: bool, unread: set[str]
) -> Iterator[InstructionRow]:
    """Yield the rows of one record: one, or one for each instance.

    A chat in which the assistant calls tools is not learned from: neither the calls nor what is
    said around them would make sense without the others.

    Args:
        name: The id.
        values: Value of each field, None where it is missing.
        kind: How to read them.
        need_answer: Whether a row without an answer is a problem.
        unread: Gets the keys of messages that hold something and are not read.

    Raises:
        RowProblem: If something is missing or of the wrong kind.
        LeftOut: If it is not learned from.
    """
    score = _score(values)
    for row in _unscored(name, values, kind, need_answer, unread):
        if need_answer and TOOL_CALLS in unread:
            raise LeftOut("with tool calls, which are not learned")
        yield row if score is None else replace(row, score=score)


def _score(values: dict[str, Any]) -> float | None:
    text = text_of(values.get("score"), "score")
    if not text:
        return None
    try:
        score = float(text)
    except ValueError as error:
        raise RowProblem(f"score is {text!r}; it must be a number") from error
    if not math.isfinite(score):
        raise RowProblem(f"score is {text!r}; it must be a finite number")
    return score


def _unscored(
    name: str, values: dict[str, Any], kind: str, need_answer: bool, unread: set[str]
) -> Iterator[InstructionRow]:
    system = sound_text(text_of(values.get("system"), "system") or "")
    start = (Message("system", system),) if system else ()
    if kind == "text":
        yield Raw(name, required_text(values, "text"))
    elif kind == "chat":
        messages = messages_of(values.get("messages"), "messages", unread)
        yield _conversation(name, (*start, *messages), need_answer)
    elif kind == "completion":
        prompt = _prompt_turns(values, unread)
        if not prompt:
            raise RowProblem("prompt is missing")
        turns = (*start, *_history(values, unread), *prompt)
        yield _answered(name, turns, values, "completion", need_answer, unread)
    elif kind == "preference":
        yield _preference(name, (*start, *_history(values, unread)), values, unread)
    elif isinstance(values.get("instances"), list | str) and values["instances"]:
        yield from _instances(name, start, values, need_answer, unread)
    else:
        question = Message("user", _question(values, "instruction"))
        turns = (*start, *_history(values, unread), question)
        yield _answered(name, turns, values, "output", need_answer, unread)


def _answered(
    name: str,
    turns: tuple[Message, ...],
    values: dict[str, Any],
    field: str,
    need_answer: bool,
    unread: set[str],
) -> Conversation:
    value = values.get(field)
    if value is None and not need_answer:
        return Conversation(name, turns)
    if _is_chat(value):
        return _conversation(name, (*turns, *_answer_turns(values, field, unread)), need_answer)
    return Conversation(name, (*turns, Message("assistant", required_text(values, field))))


def _is_chat(value: Any) -> bool:  # noqa: ANN401 - from a file
    """Whether a value is a message or a list of them, maybe as the JSON text of a CSV file."""
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return isinstance(value, list | dict)
    try:
        found = json.loads(value)
    except json.JSONDecodeError:
        return False
    # An answer may be JSON, too.
    return all(isinstance(one, dict) and ("role" in one or "from" in one) for one in found)


def _history(values: dict[str, Any], unread: set[str]) -> tuple[Message, ...]:
    """Return earlier turns: pairs of what was asked and answered (LLaMA-Factory), or messages."""
    value = values.get("history")
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise RowProblem(f"history is a text, but no JSON list: {error}") from error
    if value in (None, "", []) or (isinstance(value, str) and not value.strip()):
        return ()
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return messages_of(value, "history", unread)
    is_pairs = isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair)
        for pair in value
    )
    if not is_pairs:
        raise RowProblem("history must be a list of pairs: [[asked, answered], ...]")
    roles = ("user", "assistant")
    return tuple(
        Message(role, sound_text(text))
        for pair in value
        for role, text in zip(roles, pair, strict=True)
    )


def _question(values: dict[str, Any], field: str) -> str:
    instruction = required_text(values, field)
    given = values.get("input")
    if isinstance(given, list) and all(isinstance(part, str) for part in given):
        given = "\n\n".join(given)  # passages
    extra = sound_text(text_of(given, "input") or "")
    return f"{instruction}\n\n{extra}" if extra.strip() else instruction


def _instances(
    name: str,
    start: tuple[Message, ...],
    values: dict[str, Any],
    need_answer: bool,
    unread: set[str],
) -> Iterator[Conversation]:
    """Yield one conversation for each instance of a task, as self-instruct writes them."""
    instances = values["instances"]
    if isinstance(instances, str):
        try:
            instances = json.loads(instances)
        except json.JSONDecodeError as error:
            raise RowProblem(f"instances is not JSON: {error}") from error
    if not all(isinstance(instance, dict) for instance in instances):
        raise RowProblem("instances must be a list of objects with input and output")
    for number, instance in enumerate(instances, start=1):
        values_of_one = {**values, **instance}
        turns = (*start, Message("user", _question(values_of_one, "instruction")))
        one = name if len(instances) == 1 else f"{name}.{number}"
        yield _answered(one, turns, values_of_one, "output", need_answer, unread)


def _conversation(name: str, messages: tuple[Message, ...], need_answer: bool) -> Conversation:
    if any(message.role == "system" for message in messages[1:]):
        raise RowProblem("a system message stands behind others; it can only be the first")
    if need_answer and all(message.role != "assistant" for message in messages):
        raise RowProblem("no message is the assistant's, so there is nothing to learn")
    return Conversation(name, messages)


def _preference(
    name: str, start: tuple[Message, ...], values: dict[str, Any], unread: set[str]
) -> Preference:
    prompt = _prompt_turns(values, unread)
    chosen, rejected = (_answer_turns(values, field, unread) for field in ("chosen", "rejected"))
    # Where both answers hold the whole conversation, the prompt is what they share.
    if len(chosen) > 1 and len(rejected) > 1:
        if chosen[:-1] != rejected[:-1]:
            if not _is_chat(values["chosen"]):
                raise LeftOut("whose two texts are not one prompt with two answers")
            raise RowProblem("chosen and rejected differ before their last message")
        if chosen[: len(prompt)] != prompt:
            raise RowProblem("chosen and rejected do not start with the prompt")
        prompt = chosen[:-1]
    elif len(chosen) != 1 or len(rejected) != 1:
        raise RowProblem("chosen and rejected must both be one answer, or both whole chats")
    if not prompt:
        raise RowProblem(
            "prompt is missing, and chosen and rejected are no whole chats (lists of messages, or "
            "texts of '\\n\\nHuman: ...\\n\\nAssistant: ...')"
        )
    for turns, field in ((chosen, "chosen"), (rejected, "rejected")):
        if turns[-1].role != "assistant":
            raise RowProblem(f"{field} ends with a message of {turns[-1].role}, not the assistant")
    if start and prompt[0].role == start[0].role == "system":
        raise RowProblem("there is a system column and a system message in the prompt")
    return Preference(name, (*start, *prompt), chosen[-1].content, rejected[-1].content)


def _prompt_turns(values: dict[str, Any], unread: set[str]) -> tuple[Message, ...]:
    """Return the turns of the prompt column; none where there is no such column."""
    value = values.get("prompt")
    if value is None:
        return ()
    if _is_chat(value):
        return messages_of([value] if isinstance(value, dict) else value, "prompt", unread)
    turns = _written_turns(value)
    if turns and turns[-1].role == "assistant" and not turns[-1].content:
        turns = turns[:-1]  # the prompt opens the answer
    return turns or (Message("user", _question(values, "prompt")),)


def _written_turns(value: Any, *, surely: bool = True) -> tuple[Message, ...]:  # noqa: ANN401 - from a file
    """Return the turns of a text in the form of hh-rlhf; `surely`: it starts as texts there do."""
    if not isinstance(value, str) or (surely and not value.startswith("\n\n")):
        return ()
    return transcript(value)


def _answer_turns(values: dict[str, Any], field: str, unread: set[str]) -> tuple[Message, ...]:
    value = values.get(field)
    if _is_chat(value):
        return messages_of([value] if isinstance(value, dict) else value, field, unread)
    turns = _written_turns(value, surely=values.get("prompt") is not None)
    return turns or (Message("assistant", required_text(values, field)),)
