"""`/openapi.json` and `/docs`: what is served, with requests that the served models answer.

The page at `/docs` is plain HTML of our own: FastAPI's loads its code from elsewhere, and a server
may stand where there is no elsewhere.
"""

import html
import json
import shlex
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, Response

from taskfit.serve.replies import JsonResponse
from taskfit.serve.wires import EXAMPLES
from taskfit.serve.work import ModelCard, RequestError

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;"
    "color-scheme:light dark}pre{white-space:pre-wrap;overflow-wrap:anywhere;padding:.75rem;"
    "border:1px solid #8886;border-radius:.4rem}"
    "h2{font:600 1.1rem ui-monospace,monospace;margin-top:2.5rem}"
)
DOCS_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
    )
}


def describe(app: FastAPI) -> None:
    """Add the document and the page to an app."""

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> Response:
        return JsonResponse(document(app, served(request)))

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        base = str(request.base_url).rstrip("/")
        page = docs_page(document(app, served(request)), base=base)
        return HTMLResponse(page, headers=DOCS_HEADERS)


def served(request: Request) -> Sequence[ModelCard]:
    """Return the cards; none while models load."""
    try:
        cards: Sequence[ModelCard] = request.app.state.service.scheduler.cards()
    except RequestError:
        return ()
    return cards


def document(app: FastAPI, cards: Sequence[ModelCard]) -> dict[str, Any]:
    """Return the OpenAPI document, with examples for what is served."""
    found = json.loads(json.dumps(app.openapi()))
    for path, operations in found["paths"].items():
        for operation in operations.values():
            # FastAPI adds its own 422 where a wire has another status for it.
            unprocessable = operation["responses"].get("422", {})
            if "HTTPValidationError" in json.dumps(unprocessable):
                del operation["responses"]["422"]
            example = EXAMPLES[path](cards) if path in EXAMPLES else None
            if example is not None:
                operation["requestBody"]["content"]["application/json"]["example"] = example
    assert isinstance(found, dict)
    return found


def curl(base: str, path: str, body: Any) -> str:  # noqa: ANN401
    """Return a command that sends a request."""
    text = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f"curl {base}{path} -H 'Content-Type: application/json' -d {text}"


def docs_page(found: dict[str, Any], *, base: str) -> str:
    """Return the page: every operation, what it is for, and a command that asks it."""
    parts = []
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            command = f"curl {base}{path}"
            if method == "post":
                content = operation["requestBody"]["content"]["application/json"]
                command = curl(base, path, content.get("example", {}))
            parts.append(
                f"<h2>{method.upper()} {html.escape(path)}</h2>"
                f"<p>{html.escape(operation.get('summary', ''))}. "
                f"{html.escape(operation.get('description', ''))}</p>"
                f"<pre>{html.escape(command)}</pre>"
            )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>taskfit</title><style>{STYLE}</style></head><body><main><h1>taskfit</h1>"
        '<p>Schemas: <a href="/openapi.json">/openapi.json</a></p>'
        f"{''.join(parts)}</main></body></html>"
    )
