"""A socket on loopback, taken before anything is said about its address."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from taskfit.errors import SettingsError


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """Listen on an address.

    Raises:
        SettingsError: If the port is taken, or may not be used.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, port))
            # Who opens the address before the server is ready waits, and is not refused.
            found.listen()
        except OSError as error:
            raise SettingsError(
                f"--port {port} cannot be had: {error.strerror}. Is `taskfit ui` running already? "
                "Give another, or --port 0 for a free one."
            ) from error
        yield found
