"""Texts alone become token ids, without prompt or label words."""

from collections.abc import Sequence

import numpy as np

from taskfit.data import Example
from taskfit.tasks.encode import Candidate, EncodedExample, encoded_example
from taskfit.tasks.shortening import note_shortened
from taskfit.tasks.task import Task
from taskfit.tasks.text_encoder import TextEncoder, Tokenizer


class BareEncoder:
    """Encodes texts alone, without prompt or label words, for methods with a head of their own.

    Attributes:
        task: Whose text columns are read; several are joined by line breaks.
        max_length: Longest text (tokens).
    """

    candidates: tuple[Candidate, ...] = ()

    def __init__(self, tokenizer: Tokenizer, task: Task, *, max_length: int) -> None:
        """Bind to a tokenizer."""
        self.task = task
        self.max_length = max_length
        self._text = TextEncoder(tokenizer, allow_control_tokens=task.allow_control_tokens)

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """Encode texts; those that are too long lose their end, and that is counted."""
        start = self._text.start_ids
        result = []
        for example in examples:
            text = self._text.shield("\n".join(example.texts[name] for name in self.task.text))
            # A text of nothing but what the tokenizer drops still needs a token to be read at.
            ids = start + (self._text.ids(text) or self._text.ids("."))
            kept = np.array(ids[: self.max_length], dtype=np.int64)
            cut = len(ids) - len(kept)
            result.append(encoded_example(example, self.task, kept, (), num_tokens_cut=cut))
        note_shortened(result)
        return result

    def content_free(self, texts: Sequence[str]) -> list[EncodedExample]:
        """Encode each of these texts in every column."""
        return self.encode([Example(text, dict.fromkeys(self.task.text, text)) for text in texts])
