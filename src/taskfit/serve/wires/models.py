"""`GET /v1/models`: what is served, in one answer for OpenAI's and System One's clients."""

import time
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from taskfit.serve.service import reply, service_of
from taskfit.serve.wires.route import JsonRoute, errors
from taskfit.serve.work import ModelCard

router = APIRouter(route_class=JsonRoute)


class Model(BaseModel):
    """A model: the first four fields are OpenAI's, the others System One's."""

    id: str
    object: str
    created: int
    owned_by: str
    name: str
    description: str
    release_date: str


class ModelMetadata(BaseModel):
    """A model as System One has it."""

    name: str
    description: str
    release_date: str


class ModelList(BaseModel):
    """All models, twice: `data` is OpenAI's, `models` System One's."""

    object: str
    data: list[Model]
    models: list[ModelMetadata]


def as_model(card: ModelCard) -> dict[str, Any]:
    """Return a card as both clients read it."""
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "taskfit",
        "name": card.name,
        "description": card.description,
        "release_date": time.strftime("%Y-%m-%d", time.gmtime(card.created)),
    }


@router.get(
    "/v1/models",
    response_model=ModelList,
    responses=errors("/v1/models"),
    summary="What is served (OpenAI, System One)",
)
async def models(request: Request) -> Response:
    """List the served models."""
    cards = [as_model(card) for card in service_of(request).scheduler.cards()]
    metadata = [{key: card[key] for key in ModelMetadata.model_fields} for card in cards]
    return reply({"object": "list", "data": cards, "models": metadata})


@router.get(
    "/v1/models/{model:path}",
    response_model=Model,
    responses=errors("/v1/models"),
    summary="One model (OpenAI)",
)
async def model(model: str, request: Request) -> Response:
    """Describe one model."""
    return reply(as_model(service_of(request).card(model)))


@router.get(
    "/v1/taskfit/models",
    responses=errors("/v1/taskfit/models"),
    summary="What is served, with questions and columns",
)
async def cards(request: Request) -> Response:
    """Describe the served models in full."""
    return reply({"models": [asdict(card) for card in service_of(request).scheduler.cards()]})
