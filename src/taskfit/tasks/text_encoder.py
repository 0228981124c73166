"""Text becomes token ids here and nowhere else.

Subword tokenizers do not compose: ids(a) + ids(b) need not be ids(a + b). So prompt and completion
are tokenized as ONE text and cut by character offsets, and a token across the cut is an error.
What users wrote comes shielded, so that no control token is made of it (`control_tokens.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from tokenizers import Tokenizer as Backend
from tokenizers.processors import ByteLevel

from taskfit.errors import PromptError
from taskfit.tasks.control_tokens import (
    LITERAL,
    SIGN,
    ControlTokens,
    Spelled,
    as_written,
    split_marks,
)

IntArray = NDArray[np.int64]


class Tokenizer(Protocol):
    """What is needed of a fast Hugging Face tokenizer."""

    @property
    def backend_tokenizer(self) -> Backend:
        """The tokenizer of the `tokenizers` library."""
        ...

    @property
    def eos_token_id(self) -> int | None:
        """The end token, if there is one."""
        ...

    @property
    def chat_template(self) -> Any:  # noqa: ANN401 - a text, a dictionary of texts, or None
        """The chat template, if there is one."""
        ...

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> Any:  # noqa: ANN401 - text, as tokenize is False
        """Render a chat."""
        ...

    def decode(self, token_ids: list[int]) -> Any:  # noqa: ANN401 - text
        """Turn ids into text."""
        ...


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A prompt with its completion.

    Attributes:
        ids: Token ids, (T,).
        completion_start: Index of the completion's first token.
    """

    ids: IntArray
    completion_start: int


class TextEncoder:
    """Encodes pairs of prompt and completion for one tokenizer.

    Attributes:
        start_ids: What the tokenizer writes in front of every text.
        control: Its control tokens.
    """

    def __init__(self, tokenizer: Tokenizer, *, allow_control_tokens: bool = False) -> None:
        """Copy the tokenizer's backend, so that no state of the original is changed.

        Args:
            tokenizer: A fast tokenizer.
            allow_control_tokens: Whether control tokens that users write are read as such.
        """
        original = tokenizer.backend_tokenizer
        self._backend = Backend.from_str(original.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        plain = self._backend.encode("a", add_special_tokens=False).ids
        marked = self._backend.encode("a", add_special_tokens=True).ids
        self.start_ids = marked[: _find(plain, marked)]
        # Byte-level post-processors trim the space off a token's offsets; then a token that
        # swallowed the prompt's last space would look as if it began right behind it.
        self._backend.post_processor = ByteLevel(trim_offsets=False)
        self.control = ControlTokens(self._backend)
        self._allows = allow_control_tokens

    def shield(self, text: str, *, edges: bool = False) -> str:
        """Return what a user wrote so that it is read as text; see `ControlTokens.shield`."""
        if self._allows:
            return text.replace(SIGN, LITERAL)
        return self.control.shield(text, edges=edges)

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text alone, without special tokens."""
        return self.ids_and_offsets(text)[0]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text alone."""
        return [len(found.ids) for found in self._encodings(texts)]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return the character range of each token of a text alone."""
        return self.ids_and_offsets(text)[1]

    def ids_and_offsets(
        self, text: str, *, cuts: Sequence[int] = ()
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text alone, and the character range of each.

        Args:
            text: The text; ranges do not count the marks in it.
            cuts: Places at which it is taken apart, as if a special token stood there.
        """
        (found,) = self._encodings([text], cuts=cuts)
        return list(found.ids), list(found.offsets)

    def _encodings(
        self, texts: Sequence[str], *, cuts: Sequence[int] = ()
    ) -> list[Encoding | Spelled]:
        """Tokenize shielded texts; ids and offsets are those of the texts as they were written."""
        split = [split_marks(text) for text in texts]
        plain = [text for text, _ in split]
        found: list[Encoding | Spelled] = list(
            self._backend.encode_batch(plain, add_special_tokens=False)
            if len(plain) > 1
            else [self._backend.encode(text, add_special_tokens=False) for text in plain]
        )
        for place, (text, covered) in enumerate(split):
            if covered or cuts:
                spelled = self.control.spell(text, found[place].ids, covered, cuts=cuts)
                found[place] = found[place] if spelled is None else spelled
        return found

    def encode_pair(self, prompt: str, completion: str) -> TokenSequence:
        """Tokenize prompt and completion as one text and mark where the completion starts.

        Raises:
            PromptError: If a token spans the cut, or the completion has no token of its own.
        """
        return self.encode_pairs([prompt], [completion])[0]

    def encode_pairs(
        self, prompts: Sequence[str], completions: Sequence[str]
    ) -> list[TokenSequence]:
        """Encode many pairs at once; see `encode_pair`."""
        encodings = self._encodings([p + c for p, c in zip(prompts, completions, strict=True)])
        sequences = []
        for shielded, completion, encoding in zip(prompts, completions, encodings, strict=True):
            prompt = as_written(shielded)
            text = prompt + as_written(completion)
            start = self._cut(encoding.offsets, len(prompt), text)
            ids = list(encoding.ids)
            # A chat template writes the start token itself.
            head = [] if ids[: len(self.start_ids)] == self.start_ids else self.start_ids
            sequences.append(TokenSequence(np.array(head + ids, dtype=np.int64), start + len(head)))
        return sequences

    def id_after(self, text: str, following: str) -> int | None:
        """Return the token that begins right behind a text; None where none does."""
        try:
            pair = self.encode_pair(text, following)
        except PromptError:
            return None
        return int(pair.ids[pair.completion_start])

    def _cut(self, offsets: Sequence[tuple[int, int]], cut: int, text: str) -> int:
        # Nearly all tokens stand before the cut, so look from the end.
        start = len(offsets)
        while start > 0 and offsets[start - 1][1] > cut:
            start -= 1
        completion = text[cut:]
        if start == len(offsets):
            raise PromptError(
                f"The completion {completion!r} has no token of its own after "
                f"{text[max(0, cut - 20) : cut]!r}. Use another label word."
            )
        first, last = offsets[start]
        if first < cut:
            raise PromptError(
                f"The token {text[first:last]!r} spans the end of the prompt "
                f"{text[max(0, cut - 20) : cut]!r} and the start of the completion "
                f"{completion!r}. Move the shared characters into the completion: a template "
                "should end without a space, and its label words should start with one."
            )
        if start == 0 and not self.start_ids:
            raise PromptError(
                f"There is no token before the completion {completion!r}, so nothing to predict "
                "it from. Give the template some text before {label}."
            )
        return start


def _find(needle: Sequence[int], haystack: Sequence[int]) -> int:
    """Return where a list of ids starts inside another, 0 where it does not occur."""
    for start in range(len(haystack) - len(needle) + 1):
        if list(haystack[start : start + len(needle)]) == list(needle):
            return start
    return 0
