"""Count tokens as the target model would, and draw how they are spread."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import jinja2
import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from taskfit.curate.items import Item, part_of
from taskfit.data.instructions import Conversation, InstructionRow, Preference, Raw
from taskfit.data.messages import Message
from taskfit.errors import ModelError
from taskfit.models.packaged import locate_model

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
            texts += [part_of(row, "prompt") for _, row in batch]
            texts += [part_of(row, "answer") for _, row in batch]
            # The tokenizer's own start and end tokens stand in the template, or not at all.
            encoded = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            lengths = [len(ids) for ids in encoded]
            size = len(batch)
            for place, (source, row) in enumerate(batch):
                counts = (lengths[place + part * size] for part in range(3))
                yield Item(row, source, *counts)

    def _whole(self, row: InstructionRow) -> str:
        """Return the whole row as the model would read it; of a pair, the chosen side."""
        if isinstance(row, Raw):
            return row.text
        messages = _messages(row)
        if self._tokenizer.chat_template is None:
            return "\n".join(message.content for message in messages)
        try:
            return render(self._tokenizer, messages, None)
        except jinja2.TemplateError as error:
            self.num_refused += 1
            self.first_refusal = self.first_refusal or f"{row.id}: {error}"
            return "\n".join(message.content for message in messages)


def _messages(row: Conversation | Preference) -> tuple[Message, ...]:
    if isinstance(row, Conversation):
        return row.messages
    return (*row.prompt, Message("assistant", row.chosen))


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
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return str(tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False))


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model: packaged, folder or hub id.

    Raises:
        ModelError: If it cannot be had or is not a fast one.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(locate_model(name))
    except (OSError, ValueError, KeyError, ImportError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"The tokenizer of {name} cannot be loaded: {first_line}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"{name} has no fast tokenizer. Give a model with a tokenizer.json.")
    return tokenizer


class Histogram:
    """Counts of rows by tokens, for rows, prompts and answers."""

    def __init__(self) -> None:
        """Start empty."""
        self._counts = np.zeros((3, len(EDGES)), np.int64)
        self._sums = np.zeros(3, np.int64)

    def add(self, item: Item) -> None:
        """Count a row."""
        values = np.array((item.tokens, item.prompt_tokens, item.answer_tokens))
        self._counts[range(3), np.searchsorted(EDGES, values, side="right") - 1] += 1
        self._sums += values

    def to_json(self) -> dict[str, Any]:
        """Return counts in the bins of `EDGES`, and total tokens."""
        parts = ("row", "prompt", "answer")
        return {
            "counts": dict(zip(parts, self._counts.tolist(), strict=True)),
            "tokens": dict(zip(parts, self._sums.tolist(), strict=True)),
        }
