"""What the wires share: the models by name, limits, deadlines, and answers as HTTP."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from fastapi import Request
from starlette.responses import Response

from taskfit.errors import suggestion
from taskfit.serve.limits import Limits
from taskfit.serve.replies import JsonResponse
from taskfit.serve.scheduler import Scheduler, Scored
from taskfit.serve.work import Answers, ModelCard, RequestError

TIMEOUT_HEADER = "x-request-timeout"
TRUNCATE_HEADER = "x-truncate"
TRUNCATED_HEADER = "x-truncated"


class Service:
    """The models behind an app's wires.

    Attributes:
        scheduler: Of their engine.
        limits: Of requests.
    """

    def __init__(self, scheduler: Scheduler, *, limits: Limits) -> None:
        """Answer with a scheduler."""
        self.scheduler = scheduler
        self.limits = limits

    def card(self, model: str | None, *, among: Sequence[ModelCard] | None = None) -> ModelCard:
        """Return the model that a request names, or the only one.

        Args:
            model: What it names.
            among: Those that can answer it; else all.

        Raises:
            RequestError: 404 for an unknown name; 422 for none where there are several.
        """
        cards = self.scheduler.cards()
        fitting = cards if among is None else among
        if model is None:
            if len(fitting) == 1:
                return fitting[0]
            raise RequestError(422, f"Name a model; here are {_names(cards)}.", where=("model",))
        for card in cards:
            if card.name == model:
                return card
        names = [card.name for card in cards]
        raise RequestError(
            404,
            f"There is no model {model[:100]!r}.{suggestion(model, names)} Here are "
            f"{_names(cards)}.",
            where=("model",),
        )

    def question(self, model: str | None) -> tuple[ModelCard, str]:
        """Return the run and its question that a wire with one label a text is about.

        Args:
            model: RUN, or RUN/QUESTION of a run with several.

        Raises:
            RequestError: As `card`; 422 where the model has no labels, or several questions.
        """
        cards = self.scheduler.cards()
        run, _, name = (model or "").rpartition("/")
        by_name = {card.name: card for card in cards}
        if model not in by_name and run in by_name and name in by_name[run].questions:
            return by_name[run], name
        card = self.card(model, among=[card for card in cards if card.questions])
        if len(card.questions) == 1:
            return card, next(iter(card.questions))
        if not card.questions:
            raise RequestError(
                422,
                f"{card.name} has no labels of its own; ask it at /v1/systemone.",
                where=("model",),
            )
        several = ", ".join(f"{card.name}/{question}" for question in card.questions)
        raise RequestError(
            422,
            f"{card.name} has several questions and this address answers one; as model name one "
            f"of {several}, or ask all at /v1/systemone.",
            where=("model",),
        )

    def deadline(self, request: Request) -> float:
        """Return when a request is given up, of `time.monotonic`; a header may make it sooner."""
        seconds = self.limits.timeout
        with suppress(ValueError):
            asked = float(request.headers.get(TIMEOUT_HEADER, ""))
            if 0 < asked < seconds:
                seconds = asked
        begun: float = request.scope["state"].get("begun", time.monotonic())
        return begun + seconds

    def shortens(self, request: Request) -> bool:
        """Return whether the client asks, by header, to shorten what is too long."""
        return request.headers.get(TRUNCATE_HEADER, "").strip().lower() in ("1", "true", "yes")

    async def score(self, request: Request, work: Scored) -> Answers:
        """Answer one request; raises as the scheduler's `score`."""
        return (await self.scheduler.score([work], deadline=self.deadline(request)))[0]


def reply(content: Any, answers: Answers | None = None) -> Response:  # noqa: ANN401
    """Return an answer as JSON; a header names texts that lost their end."""
    headers: Mapping[str, str] = {}
    if answers is not None and answers.shortened:
        headers = {TRUNCATED_HEADER: ",".join(map(str, answers.shortened))}
    return JsonResponse(content, headers=dict(headers))


def service_of(request: Request) -> Service:
    """Return the service of the app that a request reached."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def _names(cards: Sequence[ModelCard]) -> str:
    return ", ".join(card.name for card in cards)
