"""`POST /classify` and `/v1/classify`: labels of texts, as vLLM has them.

Checked against vLLM's `entrypoints/pooling/classify/protocol.py` and `pooling/base/protocol.py`.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from taskfit.serve.limits import refuse_more
from taskfit.serve.service import reply, service_of
from taskfit.serve.wires.neutral import refuse_other_than
from taskfit.serve.wires.route import JsonRoute, errors
from taskfit.serve.wires.systemone import example_text
from taskfit.serve.work import ModelCard, RequestError, TextsRequest

router = APIRouter(route_class=JsonRoute)

# Fields that change nothing here, and those that would: with the values that ask for nothing.
HARMLESS = ("user", "request_id", "cache_salt", "truncation_side")
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_special_tokens": (True,),
    "padding": (None, "do_not_pad"),
    "priority": (0,),
    "use_activation": (None, True),
    "activation": (None, True),
    "softmax": (None, True),
    "mm_processor_kwargs": (None, {}),
    "additional_data": (None,),
}
TextItem = str | dict[str, str]


class ClassifyRequest(BaseModel):
    """Texts to label; of a run with several text columns each is an object, column to text."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = Field(None, description="RUN, or RUN/QUESTION of a run with several.")
    input: TextItem | list[TextItem]
    truncate_prompt_tokens: int | None = Field(
        None, description="-1 lets texts that are too long lose their end."
    )


class ClassifyData(BaseModel):
    """The label of a text, and the probabilities of all in the run's order.

    Of a run whose texts may have several labels, `label` is the most probable one, as vLLM has it,
    and `labels`, which is ours, those that the text is given by the run's thresholds.
    """

    index: int
    label: str
    labels: list[str] | None = None
    probs: list[float]
    num_classes: int


class ClassifyUsage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: None


class ClassifyResponse(BaseModel):
    """Labels in the order of the texts."""

    id: str
    object: str
    created: int
    model: str
    data: list[ClassifyData]
    usage: ClassifyUsage


@router.post(
    "/v1/classify",
    response_model=ClassifyResponse,
    responses=errors("/classify"),
    summary="Labels of texts (vLLM)",
)
@router.post(
    "/classify",
    response_model=ClassifyResponse,
    responses=errors("/classify"),
    summary="Labels of texts (vLLM)",
)
async def classify(body: ClassifyRequest, request: Request) -> Response:
    """Label texts with a run's own question."""
    service = service_of(request)
    extra = body.model_extra or {}
    if "messages" in extra:
        raise RequestError(422, "Messages are not read here; give `input`.", where=("messages",))
    refuse_other_than(NEUTRAL, extra, harmless=HARMLESS)
    if body.truncate_prompt_tokens not in (None, -1):
        raise RequestError(
            422,
            f"{body.truncate_prompt_tokens} tokens cannot be asked for; -1 shortens to what the "
            "model reads.",
            where=("truncate_prompt_tokens",),
        )
    shorten = body.truncate_prompt_tokens == -1 or service.shortens(request)
    if shorten and extra.get("truncation_side") == "left":
        raise RequestError(
            422,
            "A text that is too long loses its end; left cannot be asked for.",
            where=("truncation_side",),
        )
    texts = body.input if isinstance(body.input, list) else [body.input]
    if not texts:
        raise RequestError(422, "No text; give at least one.", where=("input",))
    refuse_more(texts, service.limits.max_texts, "texts", "input")
    card, question = service.question(body.model)
    answers = await service.score(request, TextsRequest(card.name, texts, shorten))
    data = []
    for index, found in enumerate(answers.probabilities):
        by_label = found[question]
        data.append(
            {
                "index": index,
                "label": max(by_label, key=by_label.__getitem__),
                **({"labels": card.given(by_label)} if card.multi_label else {}),
                "probs": list(by_label.values()),
                "num_classes": len(by_label),
            }
        )
    usage = {
        "prompt_tokens": answers.num_tokens,
        "total_tokens": answers.num_tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
    }
    content = {
        "id": f"classify-{secrets.token_hex(16)}",
        "object": "list",
        "created": int(time.time()),
        "model": body.model or card.name,
        "data": data,
        "usage": usage,
    }
    return reply(content, answers)


def example(cards: Sequence[ModelCard]) -> dict[str, Any] | None:
    """Return a request that the served models answer; None where none does."""
    for card in cards:
        for question in card.questions:
            name = card.name if len(card.questions) == 1 else f"{card.name}/{question}"
            return {"model": name, "input": [example_text(card)]}
    return None
