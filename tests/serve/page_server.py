"""The app over an engine without a model, and what it was asked."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fake_engine import FakeEngine

from taskfit.serve.app import create_app
from taskfit.serve.limits import Limits
from taskfit.serve.work import ModelCard, Option, Question

FEELING = Question(
    "choice", "Is the review positive or negative?", (Option("positive"), Option("negative"))
)
FOLLOWS = Question("choice", "Does it follow?", (Option("yes"), Option("no"), Option("open")))
TOPIC = Question("choice", "What about?", tuple(Option(f"topic {n}") for n in range(12)))
WORDS = ModelCard("words", "Fitted to 500 reviews.", "tiny", "label_words", 0,
                  questions={"label": FEELING}, asks_anything=True, max_length=64)  # fmt: skip
HEAD = ModelCard("head", "", "tiny", "head", 0, questions={"label": FEELING}, max_length=64)
PAIRS = ModelCard("pairs", "", "tiny", "head", 0, columns=("premise", "hypothesis"),
                  questions={"label": FOLLOWS, "topic": TOPIC}, max_length=64)  # fmt: skip
WRITER = ModelCard("writer", "", "tiny", "sft", 0, generates=True, max_length=64)
BASE = ModelCard("tiny", "", "tiny", "none", 0, columns=(), asks_anything=True, generates=True,
                 max_length=64)  # fmt: skip
CARDS = (WORDS, HEAD, PAIRS, WRITER, BASE)


class Server:
    """A server that answers.

    Attributes:
        url: Its address, with / at the end.
        asked: Path and body of every request that had one.
    """

    def __init__(self, api_key: str | None) -> None:
        """Make the app; it runs in `serving`."""
        self.asked: list[tuple[str, Any]] = []
        self._app = create_app(lambda: FakeEngine(CARDS), Limits(), api_key=api_key)
        config = uvicorn.Config(self, port=0, log_config=None, timeout_graceful_shutdown=1)
        self.uvicorn = uvicorn.Server(config)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Note what is asked, and hand it on."""
        body = b""

        async def noting() -> Any:
            nonlocal body
            message = await receive()
            body += message.get("body", b"")
            if message["type"] == "http.request" and not message.get("more_body") and body:
                self.asked.append((scope["path"], json.loads(body)))
                body = b""
            return message

        await self._app(scope, noting if scope["type"] == "http" else receive, send)

    @property
    def url(self) -> str:
        port = self.uvicorn.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}/"


@contextmanager
def serving(api_key: str | None = None) -> Iterator[Server]:
    """Serve while the block runs."""
    server = Server(api_key)
    thread = threading.Thread(target=server.uvicorn.run)
    thread.start()
    try:
        while not server.uvicorn.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
            time.sleep(0.01)
        yield server
    finally:
        server.uvicorn.should_exit = True
        thread.join()
