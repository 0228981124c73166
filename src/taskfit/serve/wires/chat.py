"""`POST /v1/chat/completions`: answers of a generator, as OpenAI has them.

Checked against its client (`openai/types/chat`, openai 3.57).
"""

import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from taskfit.serve.service import reply, service_of
from taskfit.serve.wires import generation
from taskfit.serve.wires.generation import EVENTS, Sampled, Written
from taskfit.serve.wires.route import JsonRoute, errors
from taskfit.serve.wires.strict import Strict
from taskfit.serve.work import GenerateRequest, ModelCard, Piece, RequestError

router = APIRouter(route_class=JsonRoute)

HARMLESS = (
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "service_tier",
    "parallel_tool_calls",
)
NEUTRAL: Mapping[str, Sequence[Any]] = {
    "n": (None, 1),
    "store": (None, False),
    "frequency_penalty": (None, 0, 0.0),
    "presence_penalty": (None, 0, 0.0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
}


class ContentPart(Strict):
    """A text."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """What somebody said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]
    name: str | None = None

    def as_plain(self) -> dict[str, str]:
        """Return it as a chat template reads it; a developer's word is a system's."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(Sampled):
    """Messages to answer."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class TopToken(BaseModel):
    """A token that might have stood here."""

    token: str
    logprob: float
    bytes: list[int]


class Token(TopToken):
    """A token that was written."""

    top_logprobs: list[TopToken]


class Logprobs(BaseModel):
    """Log-probabilities of the answer's tokens."""

    content: list[Token]
    refusal: None


class Answer(BaseModel):
    """What was written."""

    role: str
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """The answer; there is one."""

    index: int
    message: Answer
    logprobs: Logprobs | None
    finish_reason: str


class ChatUsage(BaseModel):
    """Tokens that were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """An answer to messages."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={200: EVENTS, **errors("/v1/chat/completions")},
    summary="Answers of a generator (OpenAI)",
)
async def chat(body: ChatRequest, request: Request) -> Response:
    """Answer messages, at once or as a stream of server-sent events."""
    service = service_of(request)
    body.checked(NEUTRAL, HARMLESS)
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError(422, "`top_logprobs` needs `logprobs`.", where=("top_logprobs",))
    asked = body.max_completion_tokens
    work = generation.generate_request(
        body,
        service,
        prompt=[message.as_plain() for message in body.messages],
        max_tokens=body.max_tokens if asked is None else asked,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    head = {
        "id": f"chatcmpl-{secrets.token_hex(16)}",
        "created": int(time.time()),
        "model": work.model,
    }
    if body.stream:
        pieces = generation.pieces_of(service, request, work)
        options = body.stream_options or generation.StreamOptions()
        return await generation.stream(events(pieces, head, has_usage=options.include_usage))
    written = await generation.write_whole(service, request, work)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": written.text, "refusal": None},
        "logprobs": logprobs(written.pieces, work),
        "finish_reason": written.finish_reason,
    }
    return reply(
        {**head, "object": "chat.completion", "choices": [choice], "usage": written.usage()}
    )


async def events(
    pieces: AsyncGenerator[Piece, None], head: Mapping[str, Any], *, has_usage: bool
) -> AsyncGenerator[Mapping[str, Any], None]:
    """Yield the chunks of a stream: who speaks, what is written, why it ended, and usage."""
    written = Written()
    chunk = {**head, "object": "chat.completion.chunk", **({"usage": None} if has_usage else {})}

    def one(delta: Mapping[str, Any], **more: Any) -> dict[str, Any]:  # noqa: ANN401
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return {**chunk, "choices": [choice]}

    async with aclosing(pieces):
        async for piece in pieces:
            if not written.pieces:
                yield one({"role": "assistant", "content": "", "refusal": None})
            written.add(piece)
            if piece.text or piece.score is not None:
                yield one({"content": piece.text}, logprobs=_logprobs([piece]))
        yield one({}, finish_reason=written.finish_reason)
    if has_usage:
        yield {**chunk, "choices": [], "usage": written.usage()}


def logprobs(pieces: Sequence[Piece], work: GenerateRequest) -> dict[str, Any] | None:
    """Return the log-probabilities of an answer, where they were asked for."""
    return None if work.top_logprobs is None else _logprobs(pieces) or {"content": []}


def _logprobs(pieces: Sequence[Piece]) -> dict[str, Any] | None:
    content = [
        {
            **generation.token_as_json(piece.score),
            "top_logprobs": [generation.token_as_json(one) for one in piece.top],
        }
        for piece in pieces
        if piece.score is not None
    ]
    return {"content": content, "refusal": None} if content else None


def example(cards: Sequence[ModelCard]) -> dict[str, Any] | None:
    """Return a request that the served models answer; None where none does."""
    for card in cards:
        if card.generates:
            messages = [{"role": "user", "content": "Name three colours."}]
            return {"model": card.name, "messages": messages, "max_tokens": 20, "temperature": 0}
    return None
