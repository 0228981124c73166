"""The FastAPI app: wires, health, metrics, documentation and the page."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, PlainTextResponse, Response

from taskfit.serve.documentation import describe
from taskfit.serve.guard import Guard
from taskfit.serve.limits import Limits
from taskfit.serve.metrics import Metrics
from taskfit.serve.replies import JsonResponse, error_response, wire_of
from taskfit.serve.scheduler import Scheduler
from taskfit.serve.service import Service
from taskfit.serve.wires import ROUTERS
from taskfit.serve.work import Engine, RequestError

PAGE = Path(__file__).parent / "page"
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


class Status(BaseModel):
    """How the server is, in a word."""

    status: str


def create_app(
    make_engine: Callable[[], Engine], limits: Limits, *, api_key: str | None = None
) -> FastAPI:
    """Return an app that serves an engine.

    The engine is loaded in its own thread once the app starts; until then `/readyz` and all
    requests answer with 503.

    Args:
        make_engine: Loads the engine.
        limits: Of requests, queue and time.
        api_key: What clients must send; None: nothing.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        scheduler = Scheduler(make_engine, limits=limits, metrics=metrics)
        app.state.service = Service(scheduler, limits=limits)
        try:
            yield
        finally:
            scheduler.stop()

    app = FastAPI(
        title="taskfit",
        version=metadata.version("taskfit"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.metrics = metrics
    for router in ROUTERS:
        app.include_router(router)
    _add_health(app)
    _add_page(app)
    describe(app)
    app.add_exception_handler(RequestError, _refused)
    app.add_exception_handler(HTTPException, _refused)
    app.add_middleware(Guard, limits=limits, metrics=metrics, api_key=api_key)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    """Answer with an error in the shape of the wire that was asked."""
    wire = wire_of(request.scope["path"])
    if isinstance(error, HTTPException):
        told = RequestError(error.status_code, f"{error.detail}.")
        # Such as Allow, with a 405.
        return error_response(wire, told, headers=error.headers or {})
    assert isinstance(error, RequestError)
    return error_response(wire, error)


def _add_health(app: FastAPI) -> None:
    not_so: dict[int | str, dict[str, Any]] = {
        503: {"description": "It is not so.", "model": Status}
    }

    @app.get(
        "/health",
        summary="Whether the process should live on",
        response_model=Status,
        responses=not_so,
    )
    async def health(request: Request) -> Response:
        """Answer 200 while the server works or loads, 503 once its engine has ended."""
        has_failed = request.app.state.service.scheduler.has_failed
        return _status("failed" if has_failed else "alive", is_good=not has_failed)

    @app.get(
        "/readyz", summary="Whether requests are taken", response_model=Status, responses=not_so
    )
    async def readyz(request: Request) -> Response:
        """Answer 200 when requests are taken, 503 while models load and while the server stops."""
        is_ready = request.app.state.service.scheduler.is_ready
        return _status("ready" if is_ready else "not ready", is_good=is_ready)

    @app.get(
        "/metrics",
        summary="Counts and times for Prometheus",
        response_class=PlainTextResponse,
        responses={401: {"description": "The API key is missing or wrong."}},
    )
    async def metrics(request: Request) -> Response:
        """Return the metrics in Prometheus' text format."""
        page = request.app.state.metrics.page()
        return Response(page, headers={"content-type": CONTENT_TYPE_LATEST})


def _status(word: str, *, is_good: bool) -> Response:
    return JsonResponse({"status": word}, status_code=200 if is_good else 503)


def _add_page(app: FastAPI) -> None:
    """Serve the page's files, with a policy that lets in nothing from elsewhere."""
    index = PAGE / "index.html"
    if not index.is_file():
        return

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(index, headers=PAGE_HEADERS)

    class PageFiles(StaticFiles):
        def file_response(self, *args: object, **options: object) -> Response:
            response: Response = super().file_response(*args, **options)  # type: ignore[arg-type]
            response.headers.update(PAGE_HEADERS)
            return response

    app.mount("/page", PageFiles(directory=PAGE))
