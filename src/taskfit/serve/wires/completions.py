"""`POST /v1/completions`: how a generator goes on with a text, as OpenAI has it.

Checked against its client (`openai/types/completion*.py`, openai 3.57).
"""

import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from taskfit.serve.service import reply, service_of
from taskfit.serve.wires import generation
from taskfit.serve.wires.chat import ChatUsage
from taskfit.serve.wires.generation import EVENTS, Sampled, Written
from taskfit.serve.wires.route import JsonRoute, errors
from taskfit.serve.work import ModelCard, Piece, RequestError

router = APIRouter(route_class=JsonRoute)

# What OpenAI writes where nothing is asked for.
DEFAULT_TOKENS = 16
HARMLESS = ("user",)
NEUTRAL: Mapping[str, Sequence[Any]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "frequency_penalty": (None, 0, 0.0),
    "presence_penalty": (None, 0, 0.0),
    "logit_bias": (None, {}),
}


class CompletionRequest(Sampled):
    """A text to go on with."""

    prompt: str | list[str]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None


class CompletionLogprobs(BaseModel):
    """Log-probabilities of the tokens that were written, and where they begin."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """The text; there is one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str


class Completion(BaseModel):
    """How a text goes on."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: ChatUsage


@router.post(
    "/v1/completions",
    response_model=Completion,
    responses={200: EVENTS, **errors("/v1/completions")},
    summary="How a generator goes on with a text (OpenAI)",
)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Go on with a text, at once or as a stream of server-sent events."""
    service = service_of(request)
    body.checked(NEUTRAL, HARMLESS)
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if len(prompts) != 1:
        raise RequestError(
            422, f"{len(prompts)} prompts; send each as a request of its own.", where=("prompt",)
        )
    work = generation.generate_request(
        body,
        service,
        prompt=prompts[0],
        max_tokens=DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens,
        top_logprobs=body.logprobs,
    )
    head = {
        "id": f"cmpl-{secrets.token_hex(16)}",
        "object": "text_completion",
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
        "text": written.text,
        "logprobs": logprobs(written.pieces),
        "finish_reason": written.finish_reason,
    }
    return reply({**head, "choices": [choice], "usage": written.usage()})


async def events(
    pieces: AsyncGenerator[Piece, None], head: Mapping[str, Any], *, has_usage: bool
) -> AsyncGenerator[Mapping[str, Any], None]:
    """Yield the chunks of a stream."""
    written, offset = Written(), 0
    head = {**head, **({"usage": None} if has_usage else {})}
    async with aclosing(pieces):
        async for piece in pieces:
            written.add(piece)
            choice = {
                "index": 0,
                "text": piece.text,
                "logprobs": logprobs([piece], offset=offset),
                "finish_reason": piece.finish_reason,
            }
            offset += len(piece.text)
            yield {**head, "choices": [choice]}
    if has_usage:
        yield {**head, "choices": [], "usage": written.usage()}


def logprobs(pieces: Sequence[Piece], *, offset: int = 0) -> dict[str, Any] | None:
    """Return log-probabilities by token, where they were asked for."""
    found: dict[str, list[Any]] = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    for piece in pieces:
        if piece.score is not None:
            found["tokens"].append(piece.score.token)
            found["token_logprobs"].append(piece.score.logprob)
            found["top_logprobs"].append({one.token: one.logprob for one in piece.top})
            found["text_offset"].append(offset)
        offset += len(piece.text)
    return found if found["tokens"] else None


def example(cards: Sequence[ModelCard]) -> dict[str, Any] | None:
    """Return a request that the served models answer; None where none does."""
    for card in cards:
        if card.generates:
            return {"model": card.name, "prompt": "Once upon a time", "max_tokens": 20}
    return None
