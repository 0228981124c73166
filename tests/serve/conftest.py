"""A server that many tests share."""

from collections.abc import Iterator

import httpx2
import pytest
from fake_engine import FakeEngine
from live_server import serving


@pytest.fixture(scope="session")
def live() -> Iterator[httpx2.Client]:
    """A server that many tests share: its engine answers at once."""
    with serving(FakeEngine()) as client:
        yield client
