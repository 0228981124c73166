"""A plain HTTP/1.1 client on asyncio: one connection, kept alive, and almost no work of its own.

Shared by the load generator and the tests of faults. Standard library only, since what a client
costs on a small machine is taken from the server that it measures.
"""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered.

    Attributes:
        status: Of HTTP.
        headers: Lower-case name -> value.
        body: As it came.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """Return the body as JSON."""
        found: dict[str, Any] = json.loads(self.body)
        return found


def render(
    path: str, body: bytes, *, headers: Mapping[str, str] | None = None, method: str = "POST"
) -> bytes:
    """Return a request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}"]
    found = {"content-type": "application/json"} | dict(headers or {})
    lines += [f"{name}: {value}" for name, value in found.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connection:
    """A connection to a server; opened when first used, and again after it was lost."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        """Name the server."""
        self._place = (host, port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._place)
        self._streams[1].write(data)
        await self._streams[1].drain()

    async def receive(self) -> Reply:
        """Read one answer.

        Raises:
            ConnectionError: If the server closes before the answer is whole.
        """
        assert self._streams is not None
        reader = self._streams[0]
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            pairs = (line.partition(":") for line in lines)
            headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
            if "content-length" in headers:
                body = await reader.readexactly(int(headers["content-length"]))
            elif headers.get("transfer-encoding") == "chunked":
                body = await _chunks(reader)
            else:
                body = await reader.read()
        except asyncio.IncompleteReadError as error:
            self.close()
            raise ConnectionResetError("the server closed before its answer was whole") from error
        if headers.get("connection") == "close":
            self.close()
        return Reply(int(first.split()[1]), headers, body)

    async def ask(self, request: bytes) -> Reply:
        """Send a rendered request and read its answer."""
        await self.send(request)
        return await self.receive()

    def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            with contextlib.suppress(OSError):
                self._streams[1].close()
            self._streams = None


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readline()
    return b"".join(parts)


def ask_once(port: int, request: bytes, *, seconds: float = 60.0) -> Reply:
    """Send one request on a connection of its own.

    Raises:
        OSError: If there is no server, or it hangs up.
        TimeoutError: If it says nothing for so long.
    """

    async def ask() -> Reply:
        connection = Connection(port)
        try:
            return await asyncio.wait_for(connection.ask(request), seconds)
        finally:
            connection.close()

    return asyncio.run(ask())
