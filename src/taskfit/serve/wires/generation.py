"""What OpenAI's two wires for generators share: sampling, usage, and events of a stream."""

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Request
from pydantic import ConfigDict, Field
from starlette.responses import StreamingResponse

from taskfit.serve.replies import CHAT, error_body
from taskfit.serve.service import Service
from taskfit.serve.waiting import REQUEST_ID
from taskfit.serve.wires.neutral import refuse_other_than
from taskfit.serve.wires.strict import Strict
from taskfit.serve.work import GenerateRequest, Piece, RequestError, TokenScore
from taskfit.serve.worker import as_request_error

Stop = str | Annotated[list[str], Field(max_length=16)] | None
# What the OpenAI document says of a stream.
EVENTS = {
    "content": {
        "text/event-stream": {
            "schema": {"type": "object", "properties": {"data": {"type": "string"}}}
        }
    }
}
MAX_SEED = 2**63 - 1


class StreamOptions(Strict):
    """What a stream tells besides the text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Sampled(Strict):
    """Fields of both wires; others are refused by name unless they ask for nothing."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: Stop = None
    seed: Annotated[int, Field(ge=-MAX_SEED, le=MAX_SEED)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def checked(self, neutral: Mapping[str, Sequence[Any]], harmless: Sequence[str]) -> None:
        """Refuse fields that would change the answer.

        Raises:
            RequestError: 422 that names the field.
        """
        refuse_other_than(neutral, self.model_extra or {}, harmless=harmless)
        if self.stream_options is not None and not self.stream:
            raise RequestError(422, "Only a stream has options.", where=("stream_options",))

    def stops(self) -> list[str]:
        """Return the texts that end an answer.

        Raises:
            RequestError: 422 if one is empty.
        """
        stops = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        if "" in stops:
            raise RequestError(422, "A stop text is empty.", where=("stop",))
        return stops


def generate_request(
    body: Sampled,
    service: Service,
    *,
    prompt: str | list[dict[str, str]],
    max_tokens: int | None,
    top_logprobs: int | None,
) -> GenerateRequest:
    """Return what the engine is asked for.

    Raises:
        RequestError: 404 or 422 for the model, 422 for more tokens than the server writes.
    """
    writers = [card for card in service.scheduler.cards() if card.generates]
    card = service.card(body.model, among=writers)
    most = service.limits.max_new_tokens
    if max_tokens is not None and max_tokens > most:
        raise RequestError(
            422,
            f"{max_tokens:,} tokens to write; this server writes at most {most:,} for a request.",
            where=("max_tokens",),
        )
    return GenerateRequest(
        model=card.name,
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else float(body.temperature),
        top_p=1.0 if body.top_p is None else float(body.top_p),
        stop=body.stops(),
        seed=body.seed,
        top_logprobs=top_logprobs,
    )


@dataclass
class Written:
    """A text that is written: what has come, and how many tokens.

    Attributes:
        pieces: What has come.
        num_prompt_tokens: Tokens of the prompt.
        num_tokens: Tokens that were written.
    """

    pieces: list[Piece] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_tokens: int = 0

    def add(self, piece: Piece) -> None:
        """Take what came next."""
        self.pieces.append(piece)
        self.num_prompt_tokens = piece.num_prompt_tokens or self.num_prompt_tokens
        self.num_tokens += 1

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def finish_reason(self) -> str:
        """Why it ended."""
        return self.pieces[-1].finish_reason or "stop"

    def usage(self) -> dict[str, int]:
        """Return the tokens that were read and written."""
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_tokens,
        }


async def pieces_of(
    service: Service, request: Request, work: GenerateRequest
) -> AsyncGenerator[Piece, None]:
    """Yield what is written, no more tokens than the server's limit."""
    count = 0
    most = service.limits.max_new_tokens
    written = service.scheduler.generate(work, deadline=service.deadline(request))
    async with aclosing(written):
        async for piece in written:
            count += 1
            if count == most and piece.finish_reason is None:
                yield Piece(piece.text, piece.score, piece.top, "length", piece.num_prompt_tokens)
                return
            yield piece


async def write_whole(service: Service, request: Request, work: GenerateRequest) -> Written:
    """Write a text to its end."""
    written = Written()
    async with aclosing(pieces_of(service, request, work)) as pieces:
        async for piece in pieces:
            written.add(piece)
    return written


async def stream(
    events: AsyncGenerator[Mapping[str, Any], None],
) -> StreamingResponse:
    """Return a stream of server-sent events, once the first one is there.

    What is wrong before that is an answer with its status; later it is an event.
    """
    first = await anext(events)

    async def lines() -> AsyncGenerator[bytes, None]:
        try:
            yield line(first)
            async for event in events:
                yield line(event)
            yield b"data: [DONE]\n\n"
        except Exception as error:
            told = as_request_error(error, REQUEST_ID.get())
            yield line(error_body(CHAT, told))
        finally:
            await events.aclose()

    return StreamingResponse(
        lines(), media_type="text/event-stream", headers={"cache-control": "no-cache"}
    )


def line(event: Mapping[str, Any]) -> bytes:
    """Return an event of a stream."""
    text = json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def token_as_json(score: TokenScore) -> dict[str, Any]:
    """Return a token with its log-probability and its bytes."""
    return {
        "token": score.token,
        "logprob": score.logprob,
        "bytes": list(score.token.encode()),
    }
