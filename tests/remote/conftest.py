"""An endpoint that points to the chat server and never waits long."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from chat_server import ChatServer
from taskfit.remote import ChatRequest, RemoteEndpoint


@pytest.fixture
def endpoint(server: ChatServer, tmp_path: Path) -> RemoteEndpoint:
    return RemoteEndpoint(
        base_url=server.base_url,
        model="tiny",
        max_retries=2,
        timeout_seconds=5.0,
        backoff_seconds=0.001,
        cache=tmp_path / "folder" / "answers.sqlite",
    )


@pytest.fixture
def without_cache(endpoint: RemoteEndpoint) -> RemoteEndpoint:
    return replace(endpoint, cache=None)


@pytest.fixture
def ask_about() -> Callable[..., list[ChatRequest]]:
    def requests(*texts: object) -> list[ChatRequest]:
        return [
            ChatRequest([{"role": "user", "content": str(text)}], max_tokens=3) for text in texts
        ]

    return requests
