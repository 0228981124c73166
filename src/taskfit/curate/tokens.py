"""Count tokens as the target model would, and draw how they are spread."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import jinja2
import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from taskfit.curate.items import PARTS, Item, part_of
from taskfit.data.instructions import Conversation, InstructionRow, Raw
from taskfit.data.messages import Message
from taskfit.errors import ModelError, first_line
from taskfit.models.packaged import locate_model
from taskfit.tasks.text_encoder import TextEncoder

# Lower edges of the histogram's bins (tokens).
EDGES = (0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
BATCH = 256


class TokenCounter:
    """Counts tokens with one tokenizer.

    Attributes:
        num_refused: Rows that the tokenizer's chat template refused; their texts were counted
            without it.
        first_refusal: The first of them, with the template's message.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Bind to a fast tokenizer."""
        self._tokenizer = tokenizer
        self._text = TextEncoder(tokenizer)
        self.num_refused = 0
        self.first_refusal: str | None = None

    def count(self, rows: Iterable[tuple[str, InstructionRow]]) -> Iterator[Item]:
        """Yield rows with their counts.

        Args:
            rows: Source and row.
        """
        source_rows = iter(rows)
        while batch := list(islice(source_rows, BATCH)):
            texts = [self._whole(row) for _, row in batch]
            parts = [part_of(row, part) for part in PARTS[1:] for _, row in batch]
            texts += map(self._text.shield, parts)
            # The tokenizer's own start and end tokens stand in the template, or not at all.
            lengths = np.array(self._text.lengths(texts)).reshape(len(PARTS), -1)
            for (source, row), counts in zip(batch, lengths.T.tolist(), strict=True):
                yield Item(row, source, *counts)

    def _whole(self, row: InstructionRow) -> str:
        """Return the whole row as the model would read it, shielded; of a pair, the chosen side."""
        shield = self._text.shield
        if isinstance(row, Raw):
            return shield(row.text)
        if isinstance(row, Conversation):
            messages = row.messages
        else:
            messages = (*row.prompt, Message("assistant", row.chosen))
        messages = tuple(Message(m.role, shield(m.content)) for m in messages)
        if self._tokenizer.chat_template is not None:
            try:
                return render(self._tokenizer, messages, None)
            except jinja2.TemplateError as error:
                self.num_refused += 1
                self.first_refusal = self.first_refusal or f"{row.id}: {error}"
        return "\n".join(message.content for message in messages)


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: str | None
) -> str:
    """Return a chat as text.

    Args:
        tokenizer: Its special tokens, and its own template where none is given.
        messages: The turns.
        template: Jinja text, or None.

    Raises:
        jinja2.TemplateError: If the template refuses the chat.
    """
    turns = [message.turn for message in messages]
    return str(tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False))


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model: packaged, folder or hub id.

    Raises:
        ModelError: If it cannot be had or is not a fast one.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(locate_model(name))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"The tokenizer of {name} cannot be loaded: {first_line(error)}"
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(f"{name} has no fast tokenizer. Give a model with a tokenizer.json.")
    return tokenizer


class Histogram:
    """Counts of rows by tokens, for rows, prompts and answers."""

    def __init__(self) -> None:
        """Start empty."""
        self._counts = np.zeros((len(PARTS), len(EDGES)), np.int64)
        self._sums = np.zeros(len(PARTS), np.int64)

    def add(self, item: Item) -> None:
        """Count a row."""
        values = np.array(item.counts)
        self._counts[range(len(PARTS)), np.searchsorted(EDGES, values, side="right") - 1] += 1
        self._sums += values

    def to_json(self) -> dict[str, Any]:
        """Return counts in the bins of `EDGES`, and total tokens."""
        return {
            "counts": dict(zip(PARTS, self._counts.tolist(), strict=True)),
            "tokens": dict(zip(PARTS, self._sums.tolist(), strict=True)),
        }
