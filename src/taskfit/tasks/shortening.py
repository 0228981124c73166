"""Which texts had to be shortened: whoever shortens one notes it, whoever asks has listened."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

_listening: ContextVar[set[str] | None] = ContextVar("shortened", default=None)


class Encoded(Protocol):
    """A text as token ids."""

    @property
    def id(self) -> str:
        """Return the id of its row."""

    @property
    def num_tokens_cut(self) -> int:
        """Return the tokens by which it was shortened."""


@contextmanager
def noting_shortened() -> Iterator[set[str]]:
    """Lend a set into which the ids of rows come whose texts are shortened meanwhile.

    Encoding is deep inside of methods, which differ in what they encode, how often and for what; a
    row counts once, and everything else that is encoded has other ids.
    """
    before = _listening.set(set())
    try:
        found = _listening.get()
        assert found is not None
        yield found
    finally:
        _listening.reset(before)


def note_shortened(items: Iterable[Encoded]) -> None:
    """Note those rows that were shortened, if anybody listens."""
    found = _listening.get()
    if found is not None:
        found.update(item.id for item in items if item.num_tokens_cut > 0)


def is_asked() -> bool:
    """Return whether anybody listens, for what would have to be encoded for that alone."""
    return _listening.get() is not None


def shortened_note(name: str, num_shortened: int, num_texts: int) -> str:
    """Return a line that says how many texts of a set lost their end."""
    return (
        f"{name}: {num_shortened:,} of {num_texts:,} texts shortened at their end, as they are "
        "longer than the model reads (model.max_length, or what it was made for)"
    )
