"""What stands before the root of a tree, run once for all trees behind it."""

from typing import Protocol

from taskfit.tree import IntArray


class Prefix(Protocol):
    """Tokens before a tree, with whatever an engine keeps of having run them."""

    @property
    def length(self) -> int:
        """Return the number of tokens, P."""
        ...

    @property
    def ids(self) -> IntArray:
        """Return the tokens, (P,)."""
        ...

    def cropped(self, length: int) -> "Prefix":
        """Return the first `length` tokens as a prefix."""
        ...
