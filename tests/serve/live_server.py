"""A server on loopback, in a thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import uvicorn
from fake_engine import FakeEngine

from taskfit.serve.app import create_app
from taskfit.serve.limits import Limits
from taskfit.serve.server import DrainingServer, bind, configuration


class Server(DrainingServer):
    """Runs in a thread, and stops when told."""

    def __init__(self, config: uvicorn.Config, app: Any, limits: Limits) -> None:
        self.is_up = threading.Event()
        super().__init__(config, app, grace=limits.grace, started=self.is_up.set)


@contextmanager
def serving(
    engine: FakeEngine | Callable[[], FakeEngine],
    *,
    api_key: str | None = None,
    waits: bool = True,
    **limits: Any,
) -> Iterator[httpx2.Client]:
    """Serve an engine, once it is loaded unless told not to wait; `base_url` is where."""
    held_to = Limits(**{"grace": 2.0, **limits})
    make = engine if not isinstance(engine, FakeEngine) else lambda: engine
    app = create_app(make, held_to, api_key=api_key)
    held = bind("127.0.0.1", 0)
    held.listen()
    server = Server(configuration(app, held_to), app, held_to)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [held]})
    thread.start()
    try:
        assert not waits or server.is_up.wait(10)
        base = f"http://127.0.0.1:{held.getsockname()[1]}"
        with httpx2.Client(base_url=base, timeout=10) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
