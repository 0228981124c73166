"""Who may talk to the server of the page: the person who was given its address, and no other page.

A server on loopback is within reach of every page that a browser shows. So requests must name this
machine as their host (a foreign name that was made to point here does not), bring the key that the
terminal showed (kept in a cookie that other sites' pages cannot send), and, where they change
something, come from a page of this very server.
"""

import hmac
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.types import ASGIApp

HOSTS = ("127.0.0.1", "localhost", "[::1]")
COOKIE = "taskfit-ui"
COOKIE_SECONDS = 30 * 24 * 3600
KEY_FILE = ".key"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# Pages that were made by `taskfit report` bring their own styles and pictures.
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


def key_of(home: Path) -> str:
    """Return the key of a folder of projects; it stays the same, so that an open page goes on."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / KEY_FILE
    if path.is_file() and (found := path.read_text(encoding="utf-8").strip()):
        return found
    key = secrets.token_urlsafe(24)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(key)
    return key


class Guard(BaseHTTPMiddleware):
    """Refuses requests that the person at this machine did not make."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        """Ask for a key."""
        super().__init__(app)
        self.key = key

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """Answer a request, or refuse it."""
        response = self._refused(request) or self._entered(request) or await call_next(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    def _refused(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if urlsplit(f"//{host}").netloc.rpartition(":")[0] not in HOSTS and host not in HOSTS:
            return PlainTextResponse("This server answers to 127.0.0.1 only.\n", 421)
        if request.method not in ("GET", "HEAD"):
            origin = request.headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != host:
                return PlainTextResponse("This request came from another site's page.\n", 403)
        return None

    def _entered(self, request: Request) -> Response | None:
        """Take the key from an address into a cookie; refuse who brings none."""
        given = request.query_params.get("key")
        cookie = f"{COOKIE}-{request.url.port or 80}"
        if given is not None and request.method == "GET" and self._is_key(given):
            response = RedirectResponse(request.url.path, 303)
            response.set_cookie(
                cookie, given, max_age=COOKIE_SECONDS, httponly=True, samesite="strict"
            )
            return response
        if self._is_key(request.cookies.get(cookie, "")):
            return None
        return PlainTextResponse(
            "Open the address that `taskfit ui` shows in its terminal; it ends in ?key=...\n", 401
        )

    def _is_key(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.key.encode())
