"""What the work shows while it runs: an interface, and the one that shows nothing."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol


class Screen(Protocol):
    """Where notes, training records and progress go."""

    def note(self, text: str) -> None:
        """Show a line."""
        ...

    def record(self, record: Mapping[str, Any]) -> None:
        """Show a record of the training log."""
        ...

    def progress(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Show progress over `total` things; the value entered counts them."""
        ...


class SilentScreen:
    """Shows nothing; for the library and for tests."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def record(self, record: Mapping[str, Any]) -> None:
        """Show nothing."""

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Count and show nothing."""
        yield lambda _: None
