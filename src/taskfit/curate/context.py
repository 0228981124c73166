"""What steps share while they run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from taskfit.curate.embed import Embedder, Vectors, stack
from taskfit.curate.items import ItemFile, compared, digest
from taskfit.curate.settings import Part


class Screen(Protocol):
    """Where lines and progress go."""

    def note(self, text: str) -> None:
        """Show a line."""
        ...

    def progress(self, label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Show progress over `total` things; the value entered counts them."""
        ...


class SilentScreen:
    """Shows nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Count and show nothing."""
        yield lambda _: None


@dataclass(slots=True)
class Context:
    """What steps share.

    Attributes:
        tokenizer: Of the target model.
        seed: Of everything that is drawn.
        screen: Shows progress.
        facts: What a step found out beside its verdicts, for the data card; emptied between steps.
    """

    tokenizer: PreTrainedTokenizerBase
    seed: int
    screen: Screen
    facts: dict[str, Any] = field(default_factory=dict)
    _embedders: dict[str, Embedder] = field(default_factory=dict)

    def embedder(self, name: str) -> Embedder:
        """Return an encoder, loaded once."""
        if name not in self._embedders:
            self._embedders[name] = Embedder(name)
        return self._embedders[name]

    def embed_items(
        self, items: ItemFile, part: Part, encoder: str
    ) -> tuple[list[bytes], dict[bytes, Vectors]]:
        """Return the key of each row, and the vector of each key."""
        keys, texts = [], {}
        for item in items:
            text = compared(item.row, part)
            keys.append(digest(text))
            texts[keys[-1]] = text
        return keys, self.embed(texts, encoder)

    def embed(self, texts: dict[bytes, str], encoder: str) -> dict[bytes, Vectors]:
        """Return the vector of each text by its key."""
        embedder = self.embedder(encoder)
        with self.screen.progress(f"embedding with {encoder}", len(texts)) as advance:
            return embedder.embed(texts, advance=advance)

    def rows(self, vectors: dict[bytes, Vectors], keys: Sequence[bytes], encoder: str) -> Vectors:
        """Return the vectors of keys as rows, (N, D)."""
        return stack(vectors, keys, self.embedder(encoder).width)
