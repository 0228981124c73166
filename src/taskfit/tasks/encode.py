"""Text becomes token ids here and nowhere else.

Subword tokenizers do not compose: ids(a) + ids(b) need not be ids(a + b). So prompt and completion
are tokenized as ONE text and cut by character offsets, and a token across the cut is an error.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend
from tokenizers.processors import ByteLevel

from taskfit.data import Example
from taskfit.errors import PromptError
from taskfit.tasks.task import Task
from taskfit.tasks.template import LABEL, chat_prompt, prompt_head

IntArray = NDArray[np.int64]
# Examples on which the shortcut for many label words is checked before it is used.
NUM_CHECKED = 4


class Tokenizer(Protocol):
    """What is needed of a fast Hugging Face tokenizer."""

    @property
    def backend_tokenizer(self) -> Backend:
        """The tokenizer of the `tokenizers` library."""
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


@dataclass(frozen=True, slots=True)
class Candidate:
    """A word that the model may answer with.

    Attributes:
        label_index: The label it stands for.
        word: As it follows the prompt.
    """

    label_index: int
    word: str


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """An example as token ids.

    Attributes:
        id: The example's id.
        prompt_ids: (P,).
        completions: The ids of every candidate, in order; prompt and completion together are
            exactly what tokenizing both as one text gives.
        label_index: The gold label, or None.
        num_tokens_cut: Tokens by which the example's text was shortened.
    """

    id: str
    prompt_ids: IntArray
    completions: tuple[IntArray, ...]
    label_index: int | None
    num_tokens_cut: int


class TextEncoder:
    """Encodes pairs of prompt and completion for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Copy the tokenizer's backend, so that no state of the original is changed."""
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

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text alone, without special tokens."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return the character range of each token of a text alone."""
        return list(self._backend.encode(text, add_special_tokens=False).offsets)

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
        texts = [p + c for p, c in zip(prompts, completions, strict=True)]
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        sequences = []
        for prompt, text, encoding in zip(prompts, texts, encodings, strict=True):
            start = self._cut(encoding.offsets, len(prompt), text)
            ids = list(encoding.ids)
            # A chat template writes the start token itself.
            head = [] if ids[: len(self.start_ids)] == self.start_ids else self.start_ids
            sequences.append(TokenSequence(np.array(head + ids, dtype=np.int64), start + len(head)))
        return sequences

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


class PromptEncoder:
    """Encodes examples of one task with fixed demonstrations.

    Attributes:
        task: The task.
        candidates: All label words, labels in task order.
        demonstrations: What stands in every prompt.
        max_length: Longest prompt with its completion (tokens).
        text: The encoder of single texts.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        task: Task,
        demonstrations: Sequence[Example],
        *,
        max_length: int,
    ) -> None:
        """Check the label words against the tokenizer.

        Raises:
            PromptError: If a word tokenizes to nothing new, equals another, or shares a token with
                the prompt.
        """
        self.task = task
        self.demonstrations = list(demonstrations)
        self.max_length = max_length
        self.text = TextEncoder(tokenizer)
        self._tokenizer = tokenizer
        self._head = prompt_head(task, demonstrations)
        self._label_index = {label.name: i for i, label in enumerate(task.labels)}
        self.candidates = tuple(
            Candidate(index, word.strip() if task.chat else word)
            for index, label in enumerate(task.labels)
            for word in label.words
        )
        # The tails are the completions' ids where they are the same after every prompt.
        self._tails: tuple[IntArray, ...] | None = None
        probe = [{name: text for name in task.text} for text in ("a", "Not so.", "12", "(é)")]
        complete = [self._in_full(self.render(texts)) for texts in probe[:NUM_CHECKED]]
        self._check_candidates(complete[0][1])
        if self._fixed_tail() and all(_same(complete[0][1], tails) for _, tails in complete[1:]):
            self._tails = complete[0][1]

    def render(self, texts: Mapping[str, str]) -> str:
        """Return the prompt of these texts."""
        if self.task.chat:
            return chat_prompt(self.task, texts, self.demonstrations, self._tokenizer)
        return self._head + self.task.template.query(texts)

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """Encode examples; texts that are too long are shortened, and that is counted.

        Raises:
            PromptError: If a prompt does not fit even without its text.
        """
        prompts = [self.render(example.texts) for example in examples]
        try:
            encoded = self._encode_prompts(prompts)
        except PromptError:
            self._name_culprit(examples, prompts)
            raise
        result = []
        for example, (prompt_ids, completions) in zip(examples, encoded, strict=True):
            cut = 0
            if len(prompt_ids) + max(map(len, completions)) > self.max_length:
                prompt_ids, completions, cut = self._shorten(example, prompt_ids)
            label = None if example.label is None else self._label_index[example.label]
            result.append(EncodedExample(example.id, prompt_ids, completions, label, cut))
        return result

    def content_free(self, texts: Sequence[str]) -> list[EncodedExample]:
        """Encode the prompt with every text column replaced by each of these texts."""
        return self.encode(
            [
                Example(f"content-free input {text!r}", dict.fromkeys(self.task.text, text))
                for text in texts
            ]
        )

    def _encode_prompts(
        self, prompts: Sequence[str]
    ) -> list[tuple[IntArray, tuple[IntArray, ...]]]:
        if self._tails is None:
            return [self._in_full(prompt) for prompt in prompts]
        first = self.candidates[0].word
        pairs = self.text.encode_pairs(prompts, [first] * len(prompts))
        result = []
        for prompt, pair in zip(prompts, pairs, strict=True):
            head, tail = np.split(pair.ids, [pair.completion_start])
            if np.array_equal(tail, self._tails[0]):
                result.append((head, self._tails))
            else:
                result.append(self._in_full(prompt))
        return result

    def _name_culprit(self, examples: Sequence[Example], prompts: Sequence[str]) -> None:
        """Raise the first example's error again, with its id."""
        for example, prompt in zip(examples, prompts, strict=True):
            try:
                self._encode_prompts([prompt])
            except PromptError as error:
                raise PromptError(f"{example.id}: {error}") from error

    def _in_full(self, prompt: str) -> tuple[IntArray, tuple[IntArray, ...]]:
        """Tokenize a prompt with every candidate.

        Raises:
            PromptError: If the prompt's tokens depend on the candidate.
        """
        words = [candidate.word for candidate in self.candidates]
        pairs = self.text.encode_pairs([prompt] * len(words), words)
        heads = [pair.ids[: pair.completion_start] for pair in pairs]
        for head, word in zip(heads[1:], words[1:], strict=True):
            if not np.array_equal(head, heads[0]):
                raise PromptError(
                    f"The prompt {prompt[-20:]!r} is tokenized one way before {words[0]!r} and "
                    f"another before {word!r}. End the template with punctuation, such as a colon."
                )
        return heads[0], tuple(pair.ids[pair.completion_start :] for pair in pairs)

    def _fixed_tail(self) -> bool:
        """Whether every completion surely has the same ids after every prompt.

        All tokenizers cut where a single space follows a visible character and is followed by
        one, and in a chat the answer follows the template's own marks. Elsewhere a text may reach
        over short static text into the completion: `=` and `>` after a space may be one token.
        """
        if self.task.chat:
            return True
        before_label = ("", True)
        for piece in self.task.template.parts():
            if piece == (LABEL, True):
                break
            before_label = piece
        static, is_field = before_label
        return (
            not is_field
            and not static[-1].isspace()
            and all(re.match(r" \S", candidate.word) for candidate in self.candidates)
        )

    def _shorten(
        self, example: Example, prompt_ids: IntArray
    ) -> tuple[IntArray, tuple[IntArray, ...], int]:
        """Cut the end of the longest text until the prompt fits; also count the tokens cut."""
        texts = dict(example.texts)
        columns = [name for name, is_field in self.task.template.parts() if is_field]
        columns.remove(LABEL)
        original = len(prompt_ids)
        while True:
            prompt_ids, completions = self._encode_prompts([self.render(texts)])[0]
            excess = len(prompt_ids) + max(map(len, completions)) - self.max_length
            if excess <= 0:
                return prompt_ids, completions, original - len(prompt_ids)
            by_column = {name: self.text.offsets(texts[name]) for name in columns}
            longest, offsets = max(by_column.items(), key=lambda item: len(item[1]))
            if not offsets:
                raise PromptError(
                    f"{example.id}: even without its text the prompt has {len(prompt_ids)} tokens "
                    f"and the longest answer {max(map(len, completions))}; model.max_length is "
                    f"{self.max_length}. Use fewer or shorter demonstrations."
                )
            texts[longest] = texts[longest][: offsets[max(0, len(offsets) - excess)][0]]

    def _check_candidates(self, completions: Sequence[IntArray]) -> None:
        names = self.task.label_names
        seen: dict[bytes, Candidate] = {}
        for candidate, ids in zip(self.candidates, completions, strict=True):
            other = seen.setdefault(ids.tobytes(), candidate)
            if other is not candidate:
                raise PromptError(
                    f"The label words {other.word!r} ({names[other.label_index]}) and "
                    f"{candidate.word!r} ({names[candidate.label_index]}) are the same tokens "
                    f"{ids.tolist()} for this model. Choose words that differ."
                )


def _find(needle: Sequence[int], haystack: Sequence[int]) -> int:
    """Return where a list of ids starts inside another, 0 where it does not occur."""
    for start in range(len(haystack) - len(needle) + 1):
        if list(haystack[start : start + len(needle)]) == list(needle):
            return start
    return 0


def _same(first: Sequence[IntArray], second: Sequence[IntArray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
