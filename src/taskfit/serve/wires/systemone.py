"""`POST /v1/systemone`: typed questions about a state, as Typesafe's System One has them.

Checked against the schema that its client is generated from (`typesafe_sdk/_schemas/models.py`,
typesafe-sdk 0.7) and against the client itself.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from taskfit.serve.limits import Limits, refuse_more
from taskfit.serve.service import reply, service_of
from taskfit.serve.wires import questions as typed
from taskfit.serve.wires.questions import Json
from taskfit.serve.wires.route import JsonRoute, errors
from taskfit.serve.wires.strict import Strict
from taskfit.serve.work import ModelCard, Question, RequestError, StateRequest

router = APIRouter(route_class=JsonRoute)

EXAMPLE_TEXT = "I was charged twice. Please help."
EXAMPLE_QUESTIONS = {
    "billing": {"type": "noul", "instructions": "Is this about billing?"},
    "tone": {
        "type": "choice",
        "instructions": "What is the tone?",
        "criteria": {"angry": "An upset message", "calm": None},
    },
    "urgency": {
        "type": "score",
        "instructions": "How urgent is it?",
        "criteria": ["Can wait", "This week", "Today"],
    },
}


class NoulCriteria(Strict):
    """What counts as yes and as no."""

    true: Json | None = None
    false: Json | None = None


class NoulQuestion(Strict):
    """A question whose answer is yes or no, or a statement that is true or not."""

    type: Literal["noul"]
    instructions: Json | None = None
    criteria: NoulCriteria | None = None

    def as_question(self) -> Question:
        """Return it as the engine takes it."""
        criteria = self.criteria or NoulCriteria()
        return typed.yes_or_no(
            typed.as_text(self.instructions), true=criteria.true, false=criteria.false
        )

    def answer(self, probabilities: Mapping[str, float]) -> dict[str, Any]:
        """Return the answer."""
        return {"type": "noul", "noul": probabilities["true"]}


class ChoiceQuestion(Strict):
    """A question that selects one of named options; their descriptions may be null."""

    type: Literal["choice"]
    instructions: Json | None = None
    criteria: dict[str, Json | None] = Field(min_length=1)

    def as_question(self) -> Question:
        """Return it as the engine takes it."""
        return typed.choice(typed.as_text(self.instructions), self.criteria)

    def answer(self, probabilities: Mapping[str, float]) -> dict[str, Any]:
        """Return the answer."""
        return {
            "type": "choice",
            "choice": max(probabilities, key=probabilities.__getitem__),
            "confidence": typed.choice_confidence(list(probabilities.values())),
            "probabilities": probabilities,
        }


class ScoreQuestion(Strict):
    """A question that rates by ordered levels, the lowest first."""

    type: Literal["score"]
    instructions: Json | None = None
    criteria: list[Json] = Field(min_length=1)

    def as_question(self) -> Question:
        """Return it as the engine takes it."""
        return typed.score(typed.as_text(self.instructions), self.criteria)

    def answer(self, probabilities: Mapping[str, float]) -> dict[str, Any]:
        """Return the answer."""
        values = list(probabilities.values())
        return {
            "type": "score",
            "score": typed.mean_level(values),
            "confidence": typed.score_confidence(values),
            "legend": {str(i): level for i, level in enumerate(self.criteria)},
            "probabilities": probabilities,
        }


class BoxQuestion(Strict):
    """A place in an image; refused, since the models here read text."""

    type: Literal["box"]
    instructions: Json | None = None


AnyQuestion = Annotated[
    NoulQuestion | ChoiceQuestion | ScoreQuestion | BoxQuestion, Field(discriminator="type")
]


class SystemOneRequest(Strict):
    """A state and questions about it."""

    model: str | None = Field(
        None, description="Name of a served model; may be left out where there is one."
    )
    state: Json = Field(description="What all questions are about: text, or JSON.")
    questions: dict[str, AnyQuestion] = Field(min_length=1)
    assets: dict[str, Any] | None = Field(
        None, description="Images; refused, since the models here read text."
    )


class NoulAnswer(BaseModel):
    """Probability of yes."""

    type: Literal["noul"]
    noul: float


class ChoiceAnswer(BaseModel):
    """The most probable option, how far it stands above chance, and all probabilities.

    `labels` is ours: where a text may have several, those that it is given.
    """

    type: Literal["choice"]
    choice: str
    confidence: float
    probabilities: dict[str, float]
    labels: list[str] | None = None


class ScoreAnswer(BaseModel):
    """The expected level, how near the levels lie to the best one, and all probabilities."""

    type: Literal["score"]
    score: float
    confidence: float
    legend: dict[str, Json]
    probabilities: dict[str, float]


class Usage(BaseModel):
    """Tokens that were read; none are written."""

    input_tokens: int
    output_tokens: int


class SystemOneResponse(BaseModel):
    """Answers by the names of their questions."""

    model: str
    answers: dict[
        str, Annotated[NoulAnswer | ChoiceAnswer | ScoreAnswer, Field(discriminator="type")]
    ]
    usage: Usage


@router.post(
    "/v1/systemone",
    response_model=SystemOneResponse,
    responses=errors("/v1/systemone"),
    summary="Typed questions about a state (System One)",
)
async def systemone(body: SystemOneRequest, request: Request) -> Response:
    """Answer typed questions about one state; they cannot influence each other."""
    service = service_of(request)
    if body.assets:
        raise RequestError(
            422, "Images are not read here; the models of this server read text.", where=("assets",)
        )
    questions = {
        name: checked(question, service.limits, "questions", name)
        for name, question in body.questions.items()
    }
    refuse_more(questions, service.limits.max_questions, "questions", "questions")
    card = service.card(body.model)
    work = StateRequest(
        model=card.name,
        state=body.state,
        questions={name: question.as_question() for name, question in questions.items()},
        shorten=service.shortens(request),
    )
    answers = await service.score(request, work)
    found = answers.probabilities[0]
    given = {}
    for name, question in questions.items():
        asked = work.questions[name]
        labels = typed.given_labels(card, asked, found[name])
        given[name] = question.answer(typed.in_order(asked, found[name])) | labels
    content = {
        "model": card.name,
        "answers": given,
        "usage": {"input_tokens": answers.num_tokens, "output_tokens": 0},
    }
    return reply(content, answers)


def checked(
    question: NoulQuestion | ChoiceQuestion | ScoreQuestion | BoxQuestion,
    limits: Limits,
    *where: str | int,
) -> NoulQuestion | ChoiceQuestion | ScoreQuestion:
    """Return a question that text models can answer.

    Raises:
        RequestError: 422 for a box, and for too many options.
    """
    if isinstance(question, BoxQuestion):
        raise RequestError(
            422,
            "A box is a place in an image; the models of this server read text. Ask a choice, a "
            "noul or a score.",
            where=(*where, "type"),
        )
    if not isinstance(question, NoulQuestion):
        refuse_more(question.criteria, limits.max_options, "options", *where, "criteria")
    return question


def example(cards: Sequence[ModelCard]) -> dict[str, Any] | None:
    """Return a request that the served models answer; None where none does."""
    for card in cards:
        if card.questions:
            own = {name: as_json(question) for name, question in card.questions.items()}
            return {"model": card.name, "state": example_text(card), "questions": own}
    for card in cards:
        if card.asks_anything:
            return {"model": card.name, "state": EXAMPLE_TEXT, "questions": EXAMPLE_QUESTIONS}
    return None


def example_text(card: ModelCard) -> Any:  # noqa: ANN401
    """Return a text for a run, or one for each of its columns."""
    one = len(card.columns) == 1
    return EXAMPLE_TEXT if one else dict.fromkeys(card.columns, EXAMPLE_TEXT)


def as_json(question: Question) -> dict[str, Any]:
    """Return a question in this wire's shape."""
    asked: dict[str, Any] = {"type": question.kind}
    if question.instructions:
        asked["instructions"] = question.instructions
    if question.kind == "score":
        asked["criteria"] = [option.description for option in question.options]
    else:
        described = {option.name: option.description or None for option in question.options}
        if question.kind == "choice" or any(described.values()):
            asked["criteria"] = described
    return asked
