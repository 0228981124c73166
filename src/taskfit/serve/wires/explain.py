"""`POST /v1/taskfit/explain`: a prompt's tokens, and what leaving out each word does; for the page.

All variants of the text are scored in one batch, so that they share what they have in common.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from taskfit.serve.scheduler import Scored
from taskfit.serve.service import reply, service_of
from taskfit.serve.wires import questions as typed
from taskfit.serve.wires.route import JsonRoute, errors
from taskfit.serve.wires.strict import Strict
from taskfit.serve.wires.systemone import AnyQuestion, checked, example_text
from taskfit.serve.work import ModelCard, RequestError, StateRequest, TextsRequest

router = APIRouter(route_class=JsonRoute)
WORD = re.compile(r"\S+")


class ExplainRequest(Strict):
    """A text, or one for each column of a run, and a question; else the run's own."""

    model: str | None = Field(None, description="RUN, or RUN/QUESTION of a run with several.")
    state: str | dict[str, str]
    question: AnyQuestion | None = None


class TokenPart(BaseModel):
    """A token, and whether it belongs to the fixed prompt, the text or the question."""

    text: str
    part: str


class WordEffect(BaseModel):
    """A word, where it stands in its column, and the probabilities without it."""

    text: str
    column: str | None
    start: int
    end: int
    probabilities: dict[str, float]


class ExplainResponse(BaseModel):
    """How the model reads a text, and what each word does."""

    model: str
    question: str
    probabilities: dict[str, float]
    tokens: list[TokenPart]
    words: list[WordEffect]


@router.post(
    "/v1/taskfit/explain",
    response_model=ExplainResponse,
    responses=errors("/v1/taskfit/explain"),
    summary="What leaving out each word does",
)
async def explain(body: ExplainRequest, request: Request) -> Response:
    """Answer a text whole and without each of its words, in one batch."""
    service = service_of(request)
    places = words_of(body.state)
    if len(places) > service.limits.max_words:
        raise RequestError(
            422,
            f"{len(places):,} words; at most {service.limits.max_words:,} are explained.",
            where=("state",),
        )
    states = [body.state, *(without(body.state, *place) for place in places)]
    shorten = service.shortens(request)
    work: list[Scored]
    if body.question is None:
        card, name = service.question(body.model)
        work = [TextsRequest(card.name, states, shorten)]
    else:
        question = checked(body.question, service.limits, "question").as_question()
        card, name = service.card(body.model), "question"
        work = [StateRequest(card.name, state, {name: question}, shorten) for state in states]
    deadline = service.deadline(request)
    tokens = await service.scheduler.tokens(work[0], deadline=deadline)
    answers = await service.scheduler.score(work, deadline=deadline)
    found = [one[name] for answer in answers for one in answer.probabilities]
    if body.question is not None:
        found = [typed.in_order(question, one) for one in found]
    return reply(
        {
            "model": card.name,
            "question": name,
            "probabilities": found[0],
            "tokens": [{"text": token.text, "part": token.part} for token in tokens],
            "words": [
                {
                    "text": text_of(body.state, column)[start:end],
                    "column": column,
                    "start": start,
                    "end": end,
                    "probabilities": probabilities,
                }
                for (column, start, end), probabilities in zip(places, found[1:], strict=True)
            ],
        },
        answers[0],
    )


def words_of(state: str | Mapping[str, str]) -> list[tuple[str | None, int, int]]:
    """Return the words of a text, as column (None: it has none), start and end."""
    columns: Sequence[str | None] = [None] if isinstance(state, str) else list(state)
    return [
        (column, *match.span())
        for column in columns
        for match in WORD.finditer(text_of(state, column))
    ]


def text_of(state: str | Mapping[str, str], column: str | None) -> str:
    """Return the text of a column."""
    if isinstance(state, str):
        return state
    assert column is not None
    return state[column]


def without(
    state: str | Mapping[str, str], column: str | None, start: int, end: int
) -> str | dict[str, str]:
    """Return a state without a word and the space behind it; behind the last, before it."""
    text = text_of(state, column)
    rest = text[end:].lstrip() if text[end:].strip() else ""
    head = text[:start] if rest else text[:start].rstrip()
    shorter = head + rest
    if isinstance(state, str):
        return shorter
    assert column is not None
    return {**state, column: shorter}


def example(cards: Sequence[ModelCard]) -> dict[str, Any] | None:
    """Return a request that the served models answer; None where none does."""
    for card in cards:
        for question in card.questions:
            name = card.name if len(card.questions) == 1 else f"{card.name}/{question}"
            return {"model": name, "state": example_text(card)}
    return None
