"""`POST /v1/decisions`: typed questions about an input, as OpenAI has them.

Checked against the parameters and answers of its client (`openai/types/decision*.py`, openai 3.57)
and against the client itself. How OpenAI computes its confidence is not published; ours is that of
System One.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from taskfit.serve.limits import refuse_more
from taskfit.serve.service import reply, service_of
from taskfit.serve.wires import questions as typed
from taskfit.serve.wires.decision_input import Part, state_of, text_of
from taskfit.serve.wires.route import JsonRoute, errors
from taskfit.serve.wires.strict import Strict
from taskfit.serve.wires.systemone import EXAMPLE_TEXT
from taskfit.serve.work import ModelCard, Question, RequestError, StateRequest

router = APIRouter(route_class=JsonRoute)
Instructions = str | list[Part]


class Asked(Strict):
    """What all kinds of questions have."""

    instructions: Instructions
    name: str | None = None

    def words(self) -> str:
        """Return the instructions as text."""
        return text_of(self.instructions)


class Predicate(Asked):
    """How likely it is that a statement about the input is true."""

    type: Literal["predicate"]

    def as_question(self) -> Question:
        """Return it as the engine takes it."""
        return typed.yes_or_no(self.words())

    def answer(self, probabilities: Sequence[float]) -> dict[str, Any]:
        """Return the answer."""
        return {"type": "predicate", "name": self.name, "probability": probabilities[0]}


class ChoiceOption(Strict):
    """An option; a boolean and a text of the same word are two."""

    value: str | bool
    description: str | None = None


class Choice(Asked):
    """One of the given options."""

    type: Literal["choice"]
    choices: list[ChoiceOption] = Field(min_length=2)

    def as_question(self) -> Question:
        """Return it as the engine takes it.

        Raises:
            RequestError: 422 if an option stands twice.
        """
        described: dict[str, str | None] = {}
        texts = {one.value for one in self.choices if isinstance(one.value, str)}
        for one in self.choices:
            name = one.value
            if isinstance(name, bool):
                name = json.dumps(name)
                # The model has to be shown two words.
                name = f"{name} (boolean)" if name in texts else name
            if name in described:
                raise RequestError(422, f"The choice {one.value!r} stands twice.")
            described[name] = one.description
        return typed.choice(self.words(), described)

    def answer(self, probabilities: Sequence[float]) -> dict[str, Any]:
        """Return the answer."""
        values = [one.value for one in self.choices]
        best = max(range(len(values)), key=probabilities.__getitem__)
        return {
            "type": "choice",
            "name": self.name,
            "choice": values[best],
            "confidence": typed.choice_confidence(probabilities),
            "probabilities": [
                {"value": value, "probability": p}
                for value, p in zip(values, probabilities, strict=True)
            ],
        }


class Level(Strict):
    """A level of a score."""

    label: str
    description: str | None = None


class Score(Asked):
    """A rating by ordered levels, the lowest first."""

    type: Literal["score"]
    levels: list[Level] = Field(min_length=1)

    def as_question(self) -> Question:
        """Return it as the engine takes it."""
        return typed.score(
            self.words(),
            [
                f"{one.label}: {one.description}" if one.description else one.label
                for one in self.levels
            ],
        )

    def answer(self, probabilities: Sequence[float]) -> dict[str, Any]:
        """Return the answer."""
        return {
            "type": "score",
            "name": self.name,
            "score": typed.mean_level(probabilities),
            "confidence": typed.score_confidence(probabilities),
            "probabilities": [
                {"value": value, "label": level.label, "probability": p}
                for value, (level, p) in enumerate(zip(self.levels, probabilities, strict=True))
            ],
        }


class DecisionRequest(Strict):
    """An input and questions about it."""

    model: str | None = Field(
        None, description="Name of a served model; may be left out where there is one."
    )
    input: str | list[dict[str, Any]]
    questions: list[Annotated[Predicate | Choice | Score, Field(discriminator="type")]] = Field(
        min_length=1
    )
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: str | None = None


class PredicateAnswer(BaseModel):
    """Probability that the statement is true."""

    type: Literal["predicate"]
    name: str | None
    probability: float


class ChoiceProbability(BaseModel):
    """Probability of an option."""

    value: str | bool
    probability: float


class ChoiceAnswer(BaseModel):
    """The most probable option; ours is `labels`: where a text may have several, those given."""

    type: Literal["choice"]
    name: str | None
    choice: str | bool
    confidence: float
    probabilities: list[ChoiceProbability]
    labels: list[str] | None = None


class ScoreProbability(BaseModel):
    """Probability of a level."""

    value: int
    label: str
    probability: float


class ScoreAnswer(BaseModel):
    """The expected level."""

    type: Literal["score"]
    name: str | None
    score: float
    confidence: float
    probabilities: list[ScoreProbability]


class InputDetails(BaseModel):
    """Of the tokens that were read."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(BaseModel):
    """Of the tokens that were written."""

    reasoning_tokens: int


class DecisionUsage(BaseModel):
    """Tokens of the request."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class DecisionResponse(BaseModel):
    """Answers in the order of their questions."""

    model: str
    answers: list[
        Annotated[PredicateAnswer | ChoiceAnswer | ScoreAnswer, Field(discriminator="type")]
    ]
    usage: DecisionUsage


@router.post(
    "/v1/decisions",
    response_model=DecisionResponse,
    responses=errors("/v1/decisions"),
    summary="Typed questions about an input (OpenAI)",
)
async def decisions(body: DecisionRequest, request: Request) -> Response:
    """Answer typed questions about one input; they cannot influence each other."""
    service = service_of(request)
    refuse_more(body.questions, service.limits.max_questions, "questions", "questions")
    names = named(body.questions)
    asked: dict[str, Question] = {}
    for index, (name, one) in enumerate(zip(names, body.questions, strict=True)):
        asked[name] = one.as_question()
        most = service.limits.max_options
        refuse_more(asked[name].options, most, "options", "questions", index)
    card = service.card(body.model)
    work = StateRequest(card.name, state_of(body.input), asked, service.shortens(request))
    answers = await service.score(request, work)
    found = answers.probabilities[0]
    given = [
        one.answer(list(typed.in_order(asked[name], found[name]).values()))
        | typed.given_labels(card, asked[name], found[name])
        for name, one in zip(names, body.questions, strict=True)
    ]
    return reply(
        {"model": card.name, "answers": given, "usage": usage(answers.num_tokens)}, answers
    )


def named(questions: Sequence[Asked]) -> list[str]:
    """Return a name for every question, its own where it has one.

    Raises:
        RequestError: 422 if two have the same.
    """
    names: list[str] = []
    for index, one in enumerate(questions):
        name = f"question {index + 1}" if one.name is None else one.name
        if name in names:
            raise RequestError(
                422, f"Two questions are called {name!r}.", where=("questions", index, "name")
            )
        names.append(name)
    return names


def usage(num_tokens: int) -> Mapping[str, Any]:
    """Return the tokens of a request; none are written."""
    return {
        "input_tokens": num_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": num_tokens,
    }


def example(cards: Sequence[ModelCard]) -> dict[str, Any] | None:
    """Return a request that the served models answer; None where none does."""
    for card in cards:
        if card.asks_anything:
            questions: list[dict[str, Any]] = [
                {"type": "predicate", "name": "billing", "instructions": "This is about billing."},
                {
                    "type": "choice",
                    "name": "tone",
                    "instructions": "What is the tone?",
                    "choices": [{"value": "angry"}, {"value": "calm", "description": "Polite"}],
                },
            ]
            return {"model": card.name, "input": EXAMPLE_TEXT, "questions": questions}
    for card in cards:
        if card.questions and len(card.columns) == 1:
            own = [as_json(name, question) for name, question in card.questions.items()]
            return {"model": card.name, "input": EXAMPLE_TEXT, "questions": own}
    return None


def as_json(name: str, question: Question) -> dict[str, Any]:
    """Return a question in this wire's shape."""
    asked: dict[str, Any] = {"name": name, "instructions": question.instructions}
    if question.kind == "noul":
        return {"type": "predicate", **asked}
    if question.kind == "score":
        levels = [{"label": option.description or option.name} for option in question.options]
        return {"type": "score", **asked, "levels": levels}
    return {"type": "choice", **asked, "choices": [{"value": o.name} for o in question.options]}
