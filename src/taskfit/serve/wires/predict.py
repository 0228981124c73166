"""`POST /predict`: labels of texts, as text-embeddings-inference has them.

Checked against its `docs/openapi.json` (version 1.7.1): `PredictRequest`, `PredictResponse`,
`ErrorResponse`. It has one model and no name for it; `model` is ours, for several.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from taskfit.serve.limits import refuse_more
from taskfit.serve.service import reply, service_of
from taskfit.serve.wires.route import JsonRoute, errors
from taskfit.serve.wires.strict import Strict
from taskfit.serve.wires.systemone import EXAMPLE_TEXT
from taskfit.serve.work import ModelCard, RequestError, Text, TextsRequest

router = APIRouter(route_class=JsonRoute)
Single = Annotated[list[str], Field(min_length=1, max_length=2)]


class PredictRequest(Strict):
    """A text, a pair of texts, or a batch: a list of lists of one or two texts."""

    inputs: str | Annotated[list[str], Field(min_length=2, max_length=2)] | list[Single]
    raw_scores: bool = Field(False, description="Scores that are no probabilities; refused.")
    truncate: bool | None = Field(False, description="Lets texts lose their end.")
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"
    model: str | None = Field(None, description="RUN, or RUN/QUESTION; of one run left out.")


class Prediction(BaseModel):
    """A label and its probability.

    Of a run whose texts may have several labels, `given`, which is ours, says whether the text has
    it by the run's thresholds.
    """

    score: float
    label: str
    given: bool | None = None


@router.post(
    "/predict",
    response_model=list[Prediction] | list[list[Prediction]],
    responses=errors("/predict"),
    summary="Labels of texts (text-embeddings-inference)",
)
async def predict(body: PredictRequest, request: Request) -> Response:
    """Label texts with a run's own question; the most probable label stands first."""
    service = service_of(request)
    if body.raw_scores:
        raise RequestError(
            422, "Raw scores are not served, only probabilities.", where=("raw_scores",)
        )
    shorten = bool(body.truncate) or service.shortens(request)
    if shorten and body.truncation_direction.lower() == "left":
        raise RequestError(
            422,
            "A text that is too long loses its end; Left cannot be asked for.",
            where=("truncation_direction",),
        )
    batch = [one for one in body.inputs if isinstance(one, list)]
    is_batch = bool(batch) or body.inputs == []
    if not is_batch:
        only = [body.inputs] if isinstance(body.inputs, str) else [str(one) for one in body.inputs]
        batch = [only]
    if not batch:
        raise RequestError(422, "No text; give at least one.", where=("inputs",))
    refuse_more(batch, service.limits.max_texts, "texts", "inputs")
    card, question = service.question(body.model)
    texts = [as_text(one, card) for one in batch]
    answers = await service.score(request, TextsRequest(card.name, texts, shorten))
    found = [sorted_labels(one[question], card) for one in answers.probabilities]
    return reply(found if is_batch else found[0], answers)


def as_text(given: Sequence[str], card: ModelCard) -> Text:
    """Return one or two texts as a run reads them.

    Raises:
        RequestError: 422 if it has another number of columns.
    """
    if len(given) != len(card.columns):
        raise RequestError(
            422,
            f"{len(given)} text{'s' * (len(given) > 1)} where {card.name} reads "
            f"{', '.join(card.columns)}. A list of two is a pair; a batch is a list of lists.",
            where=("inputs",),
        )
    return given[0] if len(given) == 1 else dict(zip(card.columns, given, strict=True))


def sorted_labels(probabilities: Mapping[str, float], card: ModelCard) -> list[dict[str, Any]]:
    """Return labels with their probabilities, the most probable first."""
    found: list[dict[str, Any]] = [{"score": p, "label": name} for name, p in probabilities.items()]
    if card.multi_label:
        given = card.given(probabilities)
        found = [{**one, "given": one["label"] in given} for one in found]
    return sorted(found, key=lambda one: -one["score"])


def example(cards: Sequence[ModelCard]) -> dict[str, Any] | None:
    """Return a request that the served models answer; None where none does."""
    for card in cards:
        for question in card.questions:
            if len(card.columns) <= 2:
                name = card.name if len(card.questions) == 1 else f"{card.name}/{question}"
                return {"model": name, "inputs": [[EXAMPLE_TEXT] * len(card.columns)]}
    return None
