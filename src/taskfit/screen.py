"""What the work shows while it runs: an interface, and the one that shows nothing."""

import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Protocol

LINES_PER_RUN = 10
MOMENT = 2.0  # seconds that need no word


def show_what_can_be_shown() -> None:
    """Let standard output and error show a question mark for what they cannot show.

    Not every terminal or log is UTF-8, and a label or text must not end a run for it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def drop_standard_output() -> None:
    """Let what is still to be written to standard output go nowhere: nobody takes it."""
    with suppress(OSError, ValueError):  # it may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def announce(text: str) -> None:
    """Say on standard error what takes long, where no screen is known: deep below, and rarely."""
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - that is what it is for


def each_tenth(total: int, tell: Callable[[int], None]) -> Callable[[int], None]:
    """Return what counts, and tells how many there are whenever a tenth more of all is done."""
    done, told = 0, 0

    def advance(count: int) -> None:
        nonlocal done, told
        done += count
        if 10 * done // max(total, 1) > told:
            told = 10 * done // max(total, 1)
            tell(done)

    return advance


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


class PlainScreen:
    """Prints lines, now and then one of progress; for Python, notebooks among them."""

    def note(self, text: str) -> None:
        """Print a line."""
        # Standard output is the caller's, so it is not set to replace what it cannot show.
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        text = text.encode(encoding, "replace").decode(encoding)
        print(text, flush=True)  # noqa: T201 - that is what it is for

    def record(self, record: Mapping[str, Any]) -> None:
        """Print validations and a tenth of the steps."""
        if record["kind"] == "note":
            self.note(str(record["text"]))
        elif record["kind"] == "validation":
            self.note(f"step {record['step']}: validation loss {record['loss']:.3f}")
        elif record["kind"] == "step":
            step, total = record["step"], record["total_steps"]
            if step % max(1, total // LINES_PER_RUN) == 0 or step == total:
                left = record["seconds"] / step * (total - step)
                self.note(f"step {step}/{total}: loss {record['loss']:.3f}, {left:,.0f} s left")

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Print what begins, and each tenth of it that took more than a moment."""
        self.note(f"{label}: {total:,}")
        began = time.monotonic()

        def tell(done: int) -> None:
            if time.monotonic() - began > MOMENT:
                self.note(f"{label}: {done:,} of {total:,}")

        yield each_tenth(total, tell)


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
