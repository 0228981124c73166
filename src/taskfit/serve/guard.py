"""What every request passes before a wire reads it: who asks, how large, how long, still there."""

import asyncio
import hmac
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from taskfit.serve.body import decompress, too_large
from taskfit.serve.limits import Limits
from taskfit.serve.metrics import Metrics
from taskfit.serve.replies import Wire, error_response, wire_of
from taskfit.serve.waiting import REQUEST_ID
from taskfit.serve.work import RequestError
from taskfit.serve.worker import log_failure

log = logging.getLogger("taskfit.serve")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Ids that are safe in headers and logs.
SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Without a key: orchestrators ask the first two, and a page cannot be opened with a header.
OPEN_PATHS = ("/health", "/readyz", "/", "/docs", "/openapi.json", "/favicon.ico")
OPEN_FOLDER = "/page/"
# How long what is too large is still read, so that a client that first writes sees the answer.
LINGER_SECONDS = 1.0


class GoneError(Exception):
    """The client has hung up."""


class Guard:
    """Middleware of ASGI around the whole app.

    It gives every request an id, holds it to the key and to the limits of its body, ends the work
    of a client that has gone, counts and logs; no exception and no user's text gets past it.
    """

    def __init__(
        self, app: App, *, limits: Limits, metrics: Metrics, api_key: str | None = None
    ) -> None:
        """Stand before an app."""
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._api_key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, send)
        try:
            self._check_key(scope, exchange)
            if scope["method"] in ("GET", "HEAD", "OPTIONS"):
                await self._app(scope, receive, exchange.send)
            else:
                await self._serve_body(exchange, receive)
        except GoneError:
            exchange.outcome = "gone"
        except RequestError as error:
            await exchange.refuse(error)
        except Exception as error:
            log_failure(f"Request {exchange.request_id} failed", error)
            await exchange.refuse(RequestError(500, "The server failed on this request."))
        finally:
            self._tell(exchange)

    def _tell(self, exchange: "Exchange") -> None:
        seconds = time.monotonic() - exchange.begun
        name = exchange.wire.name
        self._metrics.requests.labels(name, exchange.outcome).inc()
        self._metrics.duration.labels(name).observe(seconds)
        log.info("%s %s %.1f ms %s", name, exchange.outcome, seconds * 1000, exchange.request_id)

    def _check_key(self, scope: Scope, exchange: "Exchange") -> None:
        path = scope["path"]
        if self._api_key is None or path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            return
        given = exchange.header(b"authorization")
        kind, _, token = given.partition(b" ")
        if kind.lower() != b"bearer":
            token = exchange.header(b"x-api-key")
        if not hmac.compare_digest(token.strip(), self._api_key):
            exchange.extra[b"www-authenticate"] = b"Bearer"
            said = "is wrong" if token else "is missing"
            raise RequestError(
                401, f"The API key {said}; send it as `Authorization: Bearer KEY` or `X-Api-Key`."
            )

    async def _serve_body(self, exchange: "Exchange", receive: Receive) -> None:
        """Read the body, and let the app work for as long as the client is there."""
        body = await self._read(exchange, receive)
        is_read = False
        hung_up = asyncio.Event()

        async def replay() -> Message:
            nonlocal is_read
            if not is_read:
                is_read = True
                return {"type": "http.request", "body": body, "more_body": False}
            await hung_up.wait()
            return {"type": "http.disconnect"}

        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            hung_up.set()

        work = asyncio.ensure_future(self._app(exchange.scope, replay, exchange.send))
        gone = asyncio.ensure_future(until_gone())
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and exchange.is_finished:
                # The connection may be told of its end before the app is through.
                await work
            if not work.done():
                raise GoneError
            work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _read(self, exchange: "Exchange", receive: Receive) -> bytes:
        """Return the body, decompressed.

        Raises:
            RequestError: 413 if it is too large, 408 if it does not come, others as `decompress`.
            GoneError: If the client hung up before its end.
        """
        limit = self._limits.max_body
        length = exchange.header(b"content-length")
        try:
            async with asyncio.timeout(self._limits.read_timeout):
                if length.isdigit() and int(length) > limit:
                    await _linger(receive)
                    raise exchange.closing(too_large(limit))
                parts, size, more = [], 0, True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise GoneError
                    part = message.get("body", b"")
                    more = message.get("more_body", False)
                    size += len(part)
                    if size > limit:
                        if more:
                            await _linger(receive)
                        raise exchange.closing(too_large(limit))
                    parts.append(part)
        except TimeoutError:
            raise exchange.closing(
                RequestError(
                    408, f"The body did not arrive within {self._limits.read_timeout:g} seconds."
                )
            ) from None
        encoding = exchange.header(b"content-encoding").decode("latin-1")
        return decompress(b"".join(parts), encoding, max_bytes=limit)


class Exchange:
    """One request and its answer.

    Attributes:
        wire: Whose request it is.
        request_id: Taken from the client, or made.
        outcome: Status of the answer.
        is_finished: Whether the answer is out.
        extra: Headers to add.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        """Look at the head of a request."""
        self.scope = scope
        self.begun = time.monotonic()
        self.wire: Wire = wire_of(scope["path"])
        self._headers = dict(scope["headers"])
        asked = self.header(b"x-request-id").decode("latin-1")
        self.request_id = asked if SANE_ID.fullmatch(asked) else secrets.token_hex(8)
        self.outcome = "error"
        self.is_finished = False
        self.extra: dict[bytes, bytes] = {}
        self._is_begun = False
        self._send = send
        scope.setdefault("state", {})
        scope["state"]["begun"] = self.begun
        REQUEST_ID.set(self.request_id)

    def header(self, name: bytes) -> bytes:
        """Return a header's value; nothing where it is missing."""
        value = self._headers.get(name, b"")
        assert isinstance(value, bytes)
        return value

    def closing(self, error: RequestError) -> RequestError:
        """Return an error after which the connection ends, since its body was not read."""
        self.extra[b"connection"] = b"close"
        return error

    async def send(self, message: Message) -> None:
        """Send a part of the answer, with the headers that all have."""
        if message["type"] == "http.response.start":
            self._is_begun = True
            self.outcome = str(message["status"])
            request_id = self.request_id.encode()
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", request_id),
                # The name that System One's client reads.
                (b"x-typesafe-request-id", request_id),
                *self.extra.items(),
            ]
        elif message["type"] == "http.response.body":
            self.is_finished = not message.get("more_body", False)
        await self._send(message)

    async def refuse(self, error: RequestError) -> None:
        """Answer with an error, unless an answer has begun."""
        if self._is_begun:
            self.outcome = "error"
            return
        response = error_response(self.wire, error)
        await response(self.scope, _nothing, self.send)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


async def _linger(receive: Receive) -> None:
    """Read on for a moment."""
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
