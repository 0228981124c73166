"""How the wires read bodies and what their documentation says of errors."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.responses import Response

from taskfit.serve.body import parse
from taskfit.serve.replies import wire_of
from taskfit.serve.work import RequestError

MAX_TOLD = 5


class StrictRequest(Request):
    """A request whose JSON is read by `body.parse`."""

    async def json(self) -> Any:  # noqa: ANN401
        """Return the body's value."""
        if not hasattr(self, "_json"):
            self._json = parse(await self.body())
        return self._json


class JsonRoute(APIRoute):
    """A route that takes JSON only, and says in one message what does not fit its schema."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, behind the checks."""
        handler = super().get_route_handler()
        has_body = self.body_field is not None

        async def handle(request: Request) -> Response:
            if has_body:
                request = StrictRequest(request.scope, request.receive)
                kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
                if kind != "application/json":
                    raise RequestError(
                        415, "Send JSON, with the header `Content-Type: application/json`."
                    )
                # Before FastAPI reads it, whose own words for what fails would be others.
                await request.json()
            try:
                return await handler(request)
            except RequestValidationError as error:
                raise invalid(error) from None

        return handle


def invalid(error: RequestValidationError) -> RequestError:
    """Return what does not fit a schema, in one message, with the first place at fault."""
    found = error.errors()
    places = [tuple(one["loc"])[1:] for one in found]
    told = [
        f"{'.'.join(map(str, place)) or 'body'}: {one['msg']}"
        for place, one in zip(places, found, strict=True)
    ]
    rest = len(told) - MAX_TOLD
    more = f" (and {rest:,} more)" if rest > 0 else ""
    return RequestError(422, "; ".join(told[:MAX_TOLD]) + more, where=places[0])


def errors(path: str) -> dict[int | str, dict[str, Any]]:
    """Return what the OpenAPI document says of a wire's errors: their statuses and their shape."""
    wire = wire_of(path)
    said = {
        400: "The body is not valid JSON.",
        401: "The API key is missing or wrong.",
        404: "No such model.",
        408: "The body did not arrive in time.",
        413: "The body is too large.",
        415: "The body is not JSON, or of an unknown compression.",
        422: "The request does not fit the schema, the limits or the model.",
        429: "The queue is full; `Retry-After` says when to try again.",
        500: "The server failed; its log has the request's id.",
        503: "The server is loading, stopping, or broken.",
        504: "No answer in time.",
    }
    if wire.invalid != 422:
        said[wire.invalid] = said.pop(422)
    return {
        status: {
            "description": description,
            "content": {"application/json": {"example": wire.error(status, description, ())}},
        }
        for status, description in said.items()
    }
