"""The input of a decision: a text, or messages and calls of tools; as one state."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from taskfit.serve.wires.strict import Strict
from taskfit.serve.work import Content, RequestError


class TextPart(Strict):
    """A text."""

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = None


class JsonPart(Strict):
    """An object, or a list of objects; shown to the model as JSON."""

    type: Literal["input_json"]
    data: dict[str, Any] | list[dict[str, Any]]


class ImagePart(Strict):
    """An image; refused, since the models here read text."""

    type: Literal["input_image"]
    image_url: str
    detail: str | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None


class OutputPart(Strict):
    """A text of an assistant."""

    type: Literal["output_text"]
    text: str


class RefusalPart(Strict):
    """A refusal of an assistant."""

    type: Literal["refusal"]
    refusal: str


Part = Annotated[
    TextPart | JsonPart | ImagePart | OutputPart | RefusalPart, Field(discriminator="type")
]


class Message(Strict):
    """What somebody said."""

    role: Literal["user", "developer", "system", "assistant"]
    content: str | list[Part]
    type: Literal["message"] = "message"
    phase: Literal["commentary", "final_answer"] | None = None


class Call(Strict):
    """A call of a tool."""

    type: Literal["function_call", "custom_tool_call"]
    call_id: str
    name: str
    arguments: str | None = None
    input: str | None = None
    id: str | None = None
    namespace: str | None = None
    status: str | None = None


class CallOutput(Strict):
    """What a tool answered."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: str | list[Part]
    id: str | None = None
    status: str | None = None


Item = Annotated[Message | Call | CallOutput, Field(discriminator="type")]
ITEM: TypeAdapter[Message | Call | CallOutput] = TypeAdapter(Item)


def state_of(given: str | Sequence[dict[str, Any]]) -> Content:
    """Return what the questions are about.

    One message of a user is its content, so that a run answers it as it answers the text; more of
    them are a list in their order.

    Raises:
        RequestError: 422 for an image, for what is none of the known items, and for an answer of a
            tool that was not called.
    """
    if isinstance(given, str):
        return given
    if not given:
        raise RequestError(422, "The input is empty; give a text or messages.", where=("input",))
    items = [read_item(one, index) for index, one in enumerate(given)]
    if len(items) == 1 and isinstance(items[0], Message) and items[0].role == "user":
        content = items[0].content
        if isinstance(content, list) and len(content) == 1 and isinstance(content[0], JsonPart):
            return content[0].data
        return text_of(content)
    called: set[str] = set()
    state: list[dict[str, str]] = []
    for index, item in enumerate(items):
        if isinstance(item, Message):
            state.append({"role": item.role, "content": text_of(item.content)})
        elif isinstance(item, Call):
            called.add(item.call_id)
            state.append({"call": item.name, "input": item.arguments or item.input or ""})
        else:
            if item.call_id not in called:
                raise RequestError(
                    422,
                    f"No call before it has the id {item.call_id!r}.",
                    where=("input", index, "call_id"),
                )
            state.append({"output": text_of(item.output)})
    return state


def read_item(given: dict[str, Any], index: int) -> Message | Call | CallOutput:
    """Return an item of an input.

    Raises:
        RequestError: 422 if it is none.
    """
    try:
        # A message may leave its type out.
        return ITEM.validate_python({"type": "message", **given})
    except ValidationError as error:
        first = error.errors()[0]
        where = ("input", index, *first["loc"][1:])
        raise RequestError(
            422, f"{'.'.join(map(str, where))}: {first['msg']}", where=where
        ) from None


def text_of(content: str | Sequence[Part]) -> str:
    """Return the text of a content; JSON stays JSON.

    Raises:
        RequestError: 422 for an image.
    """
    if isinstance(content, str):
        return content
    parts = []
    for part in content:
        if isinstance(part, ImagePart):
            raise RequestError(
                422, "Images are not read here; the models of this server read text."
            )
        if isinstance(part, JsonPart):
            parts.append(json.dumps(part.data, ensure_ascii=False))
        else:
            parts.append(part.refusal if isinstance(part, RefusalPart) else part.text)
    return "\n".join(parts)
