"""The process around the app: its socket, its signals, its log."""

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette

from taskfit.errors import SettingsError
from taskfit.serve.limits import Limits

# What writes of answers that are ready may still take once nothing is computed any more.
CLOSING_SECONDS = 5
BACKLOG = 2048
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Draining(Protocol):
    """What the server asks of an app's `state.service.scheduler`.

    Attributes:
        is_ready: Whether requests are taken.
        num_requests: Requests that wait or run.
    """

    @property
    def is_ready(self) -> bool: ...  # noqa: D102

    @property
    def num_requests(self) -> int: ...  # noqa: D102

    def drain(self) -> None:
        """Take no more requests; those that were accepted go on."""

    def close(self) -> None:
        """Give up those that are still there."""


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that holds an address, before models are loaded for nothing.

    It does not listen yet: who connects before there is a server is refused, not kept waiting.

    Raises:
        SettingsError: If the address cannot be had.
    """
    if not 0 <= port <= 65_535:
        raise SettingsError(f"--port is {port}; ports are 0 to 65535.")
    with told_if_taken(f"{host}:{port}"), ExitStack() as stack:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        held = stack.enter_context(socket.socket(family, kind, protocol))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(address)
        stack.pop_all()
    return held


@contextmanager
def told_if_taken(address: str) -> Iterator[None]:
    """Turn the system's refusal of an address into one message."""
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"{address} cannot be listened at: {error}. Free it, or give another --host or --port."
        ) from None


def run_server(
    app: Starlette, held: socket.socket, *, limits: Limits, started: Callable[[], None]
) -> None:
    """Serve an app until SIGINT or SIGTERM, and then until what was accepted is answered.

    Args:
        app: Of `create_app`.
        held: Where to listen.
        limits: `grace` is what requests have left then; a second signal ends them at once.
        started: Called once the server answers.

    Raises:
        SettingsError: If another process listens there by now.
    """
    # Another process may have bound it as well, and begun to listen first.
    with told_if_taken("{}:{}".format(*held.getsockname()[:2])):
        held.listen(BACKLOG)
    server = DrainingServer(configuration(app, limits), app, grace=limits.grace, started=started)
    server.run(sockets=[held])


def configuration(app: Starlette, limits: Limits) -> uvicorn.Config:
    """Return how uvicorn serves an app here."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )
    config.load()
    config.http_protocol_class = impatient(config.http_protocol_class, limits.read_timeout)
    return config


def impatient(protocol: Any, seconds: float) -> Any:  # noqa: ANN401
    """Return one of uvicorn's protocols that ends connections whose headers do not arrive.

    uvicorn's wait for ever, and each holds a socket. `cycle` is a request from the end of its
    headers on.
    """

    class Impatient(protocol):  # type: ignore[misc]
        timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.timer = self.loop.call_later(seconds, transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            waits_for_head = self.cycle is None or self.cycle.response_complete
            if not waits_for_head and self.timer is not None:
                self.timer.cancel()
                self.timer = None
            elif waits_for_head and self.timer is None:
                self.timer = self.loop.call_later(seconds, self.transport.close)

        def connection_lost(self, exc: Exception | None) -> None:
            if self.timer is not None:
                self.timer.cancel()
            super().connection_lost(exc)

    return Impatient


class DrainingServer(uvicorn.Server):
    """A server that answers on while it finishes: with 503 to what is new.

    uvicorn's own closes its socket at the first signal, and then ends by the signal itself; to
    those who sent it, an orderly end is exit code 0.
    """

    def __init__(
        self, config: uvicorn.Config, app: Starlette, *, grace: float, started: Callable[[], None]
    ) -> None:
        """Prepare to serve."""
        super().__init__(config)
        self._app = app
        self._grace = grace
        self._tell_started: Callable[[], None] | None = started
        self._last_moment: float | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals while serving."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may listen to signals
            return
        before = {one: signal.signal(one, self.handle_exit) for one in SIGNALS}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain at the first signal, end at the second."""
        if self._last_moment is None:
            self._last_moment = time.monotonic() + self._grace
            self._scheduler.drain()
        else:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end."""
        if self._tell_started is not None and self._scheduler.is_ready:
            self._tell_started()
            self._tell_started = None
        if self._last_moment is not None:
            if time.monotonic() > self._last_moment:
                self._scheduler.close()
                self.should_exit = True
            elif not self._scheduler.num_requests:
                self.should_exit = True
        return await super().on_tick(counter)

    @property
    def _scheduler(self) -> "Draining":
        scheduler: Draining = self._app.state.service.scheduler
        return scheduler


def log_to_stderr(level: str) -> None:
    """Write the server's log, a line a request; what users wrote is in none."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours = getattr(logging, level.upper())
    # uvicorn's words about its own start and end are no news beside ours.
    for name, least in (("taskfit.serve", ours), ("uvicorn.error", max(ours, logging.WARNING))):
        logger = logging.getLogger(name)
        logger.setLevel(least)
        logger.addHandler(handler)
        logger.propagate = False
