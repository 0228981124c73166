"""The app in an actor of Ray Serve: whole requests in, answers out in parts."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from taskfit.runs.cluster import start_worker
from taskfit.serve.app import create_app
from taskfit.serve.guard import Message
from taskfit.serve.limits import Limits
from taskfit.serve.work import Engine

POLL_SECONDS = 0.05
Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request on its way to a replica.

    Attributes:
        method: Of HTTP.
        path: Without the query.
        query: As it came.
        headers: Of the client, with the request's id.
        body: Whole, and decompressed.
    """

    method: str
    path: str
    query: bytes
    headers: Sequence[Header]
    body: bytes


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a replica's answer.

    Attributes:
        body: Bytes.
        more: Whether there are more parts.
        status: Of the first part; else 0.
        headers: Of the first part.
    """

    body: bytes
    more: bool
    status: int = 0
    headers: Sequence[Header] = ()


class Replica:
    """The app in a Ray actor."""

    # Ray Serve awaits it.
    async def __init__(  # type: ignore[misc]
        self,
        make_engine: Callable[[], Engine],
        limits: Limits,
        *,
        folder: str,
        environment: dict[str, str],
        num_threads: int,
    ) -> None:
        """Load the engine."""
        start_worker(folder, environment, num_threads)
        self._app = create_app(make_engine, limits)
        self._life = self._app.router.lifespan_context(self._app)
        await self._life.__aenter__()
        self._scheduler = self._app.state.service.scheduler
        while not self._scheduler.is_ready:
            self.check_health()
            await asyncio.sleep(POLL_SECONDS)

    def check_health(self) -> None:
        """Let Ray replace a replica whose engine has ended."""
        if self._scheduler.has_failed:
            raise RuntimeError("The models of this replica do not work; its log says why.")

    async def answer(self, asked: Asked) -> AsyncIterator[Part]:
        """Let the app answer a request.

        Yields:
            At least one part.
        """
        parts: asyncio.Queue[Part] = asyncio.Queue()
        body: list[Message] = [{"type": "http.request", "body": asked.body, "more_body": False}]
        start: Message = {}

        async def receive() -> Message:
            if body:
                return body.pop()
            await asyncio.Event().wait()  # who hangs up has this call cancelled
            raise AssertionError

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            first = {"status": start.pop("status"), "headers": start["headers"]} if start else {}
            start.clear()
            more = message.get("more_body", False)
            parts.put_nowait(Part(message.get("body", b""), more, **first))

        work = asyncio.ensure_future(self._app(_scope(asked), receive, send))
        try:
            part = await parts.get()
            while part.more:
                yield part
                part = await parts.get()
            yield part
            await work
        finally:
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work


def _scope(asked: Asked) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": "http",
        "path": asked.path,
        "raw_path": asked.path.encode(),
        "root_path": "",
        "query_string": asked.query,
        "headers": [*asked.headers, (b"content-length", str(len(asked.body)).encode())],
        "client": None,
        "server": None,
        "state": {},
    }
