"""Answers and errors as HTTP; each wire's errors in the shape of its own project."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from taskfit.serve.waiting import REQUEST_ID, BusyError
from taskfit.serve.work import RequestError

Where = Sequence[str | int]
REASONS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
TEI_TYPES = {429: "Overloaded", 500: "Backend", 503: "Unhealthy", 504: "Overloaded"}


class JsonResponse(Response):
    """JSON without spaces; what JSON has no word for, such as NaN, is an error here."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:  # noqa: ANN401
        """Return the bytes."""
        return json.dumps(
            content, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode()


@dataclass(frozen=True, slots=True)
class Wire:
    """What requests of one project look like, where we answer for all of them alike.

    Attributes:
        name: In metrics and logs.
        error: Makes the body of an error from its status, its message and the path of what is at
            fault.
        invalid: Status of a request that is not understood.
    """

    name: str
    error: Callable[[int, str, Where], Mapping[str, Any]]
    invalid: int = 422

    def status(self, status: int) -> int:
        """Return the status that this wire has for one of ours."""
        return self.invalid if status == 422 else status


def detail_error(status: int, message: str, where: Where) -> Mapping[str, Any]:
    """Return an error as FastAPI and System One have it."""
    if status not in (400, 422):
        return {"detail": message}
    return {"detail": [{"loc": ["body", *where], "msg": message, "type": "value_error"}]}


def openai_error(status: int, message: str, where: Where) -> Mapping[str, Any]:
    """Return an error as OpenAI has it."""
    kind = REASONS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    code = "model_not_found" if status == 404 else HTTPStatus(status).name.lower()
    param = ".".join(map(str, where)) or None
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def vllm_error(status: int, message: str, where: Where) -> Mapping[str, Any]:
    """Return an error as vLLM has it: OpenAI's, with the status as its code."""
    kind = "".join(part.title() for part in HTTPStatus(status).phrase.split()) + "Error"
    param = ".".join(map(str, where)) or None
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def tei_error(status: int, message: str, where: Where) -> Mapping[str, Any]:
    """Return an error as text-embeddings-inference has it."""
    told = f"{'.'.join(map(str, where))}: {message}" if where else message
    return {"error": told, "error_type": TEI_TYPES.get(status, "Validation")}


SYSTEM_ONE = Wire("systemone", detail_error)
DECISIONS = Wire("decisions", openai_error, invalid=400)
CHAT = Wire("chat", openai_error, invalid=400)
COMPLETIONS = Wire("completions", openai_error, invalid=400)
CLASSIFY = Wire("classify", vllm_error)
PREDICT = Wire("predict", tei_error)
MODELS = Wire("models", openai_error)
EXPLAIN = Wire("explain", detail_error)
OTHER = Wire("other", detail_error)
WIRES = {
    "/v1/systemone": SYSTEM_ONE,
    "/v1/decisions": DECISIONS,
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/classify": CLASSIFY,
    "/v1/classify": CLASSIFY,
    "/predict": PREDICT,
    "/v1/models": MODELS,
    "/v1/taskfit/explain": EXPLAIN,
    "/v1/taskfit/models": MODELS,
}


def wire_of(path: str) -> Wire:
    """Return the wire of a path; never one made of what the client wrote."""
    if path.startswith("/v1/models/"):
        return MODELS
    return WIRES.get(path, OTHER)


def error_body(wire: Wire, error: RequestError) -> Mapping[str, Any]:
    """Return an error in the shape of a wire; where the log has more, with the request's id."""
    message = str(error)
    if error.status >= 500:
        message = f"{message} (request {REQUEST_ID.get()})"
    return wire.error(wire.status(error.status), message, error.where)


def error_response(
    wire: Wire, error: RequestError, *, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an error as an answer."""
    headers = dict(headers or {})
    if isinstance(error, BusyError):
        headers["retry-after"] = str(error.retry_after)
    return JsonResponse(
        error_body(wire, error), status_code=wire.status(error.status), headers=headers
    )
