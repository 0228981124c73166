"""A lock that another command holds."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskfit.lock import only_one_at_a_time


@contextmanager
def held_elsewhere(place: Path, *, beside: bool = False) -> Iterator[None]:
    """Hold a lock in another thread, which stands for another command."""
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with only_one_at_a_time(place, beside=beside):
            taken.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(60)
    try:
        yield
    finally:
        done.set()
        thread.join()
