"""Examples become prompts, and prompts with their label words become token ids."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.errors import PromptError
from taskfit.tasks.control_tokens import as_written
from taskfit.tasks.prompt import after_answer, chat_prompt, prompt_head
from taskfit.tasks.shortening import note_shortened
from taskfit.tasks.task import Task
from taskfit.tasks.template import LABEL
from taskfit.tasks.text_encoder import IntArray, TextEncoder, Tokenizer

FloatArray = NDArray[np.float64]
NUM_CHECKED = 4  # examples on which the shortcut for many label words is checked before its use


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
        label_index: The gold label, or None (also of a text with several labels).
        num_tokens_cut: Tokens by which the example's text was shortened.
        target: Weights of the labels, (L,), or None without a label; see `Example.target`.
    """

    id: str
    prompt_ids: IntArray
    completions: tuple[IntArray, ...]
    label_index: int | None
    num_tokens_cut: int
    target: FloatArray | None = None

    @property
    def num_tokens(self) -> int:
        """Return the tokens of the prompt with its longest completion."""
        return len(self.prompt_ids) + max(map(len, self.completions), default=0)


class PromptEncoder:
    """Encodes examples of one task with fixed demonstrations.

    Attributes:
        task: The task.
        candidates: All label words, labels in task order.
        demonstrations: What stands in every prompt.
        max_length: Longest prompt with its completion (tokens).
        text: The encoder of single texts.
        word_starts: Pairs of words of which the first's tokens start the second's.
        marks_ends: Whether they end so because one word starts another.
        end_id: Token that ends every completion; None: completions are the words alone.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        task: Task,
        demonstrations: Sequence[Example],
        *,
        max_length: int,
        end_id: int | None = None,
        marks_ends: bool = False,
        text: TextEncoder | None = None,
    ) -> None:
        """Check the label words against the tokenizer.

        Args:
            tokenizer: A fast tokenizer.
            task: The task; of its texts and words no control token is made unless it allows it.
            demonstrations: What stands in every prompt.
            max_length: Longest prompt with its completion (tokens).
            end_id: Token that ends every completion; None: completions are the words alone.
            marks_ends: Whether, where one word starts another, all of them end with the token that
                follows an answer in the prompt. Else the joint probability of the shorter one
                holds that of the longer one.
            text: Of the same tokenizer and a task that treats control tokens alike, to share; None:
                a new one, for which the tokenizer is copied.

        Raises:
            PromptError: If a word tokenizes to nothing new, equals another, or shares a token with
                the prompt.
        """
        self.task = task
        self.demonstrations = list(demonstrations)
        self.max_length = max_length
        allowed = task.allow_control_tokens
        self.text = text or TextEncoder(tokenizer, allow_control_tokens=allowed)
        self._tokenizer = tokenizer
        self._made_like = partial(
            PromptEncoder,
            tokenizer,
            max_length=max_length,
            end_id=end_id,
            marks_ends=marks_ends,
            text=self.text,
        )
        # What users wrote is read as text, where options are listed, too.
        self._shielded_task = replace(
            task,
            labels=tuple(
                replace(
                    label,
                    words=tuple(map(self.text.shield, label.words)),
                    description=self.text.shield(label.description),
                )
                for label in task.labels
            ),
        )
        self._template = self._shielded_task.written
        self._edges = self._open_fields()
        self._head = self._prompt_head(demonstrations)
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
        self.word_starts = word_starts(self.candidates, complete[0][1])
        self.marks_ends = marks_ends and end_id is None and bool(self.word_starts)
        if self.marks_ends:
            end_id = self._mark()
        self.end_id = end_id
        self._end = np.array([] if end_id is None else [end_id], dtype=np.int64)

    @property
    def opening(self) -> str:
        """Return what stands before the first text, in characters."""
        return self.render(dict.fromkeys(self.task.text, "\0")).partition("\0")[0]

    def for_task(self, task: Task, *, demonstrations: Sequence[Example]) -> "PromptEncoder":
        """Return an encoder of another task for the same tokenizer and limit."""
        return self._made_like(task, demonstrations)

    def render(
        self, texts: Mapping[str, str], demonstrations: Sequence[Example] | None = None
    ) -> str:
        """Return the prompt of these texts, shielded, with other demonstrations if given."""
        if self.task.chat:
            shown = self.demonstrations if demonstrations is None else demonstrations
            return chat_prompt(self.task, texts, shown, self._tokenizer, shield=self.text.shield)
        head = self._head if demonstrations is None else self._prompt_head(demonstrations)
        return head + self._template.query(self._shielded(texts))

    def _prompt_head(self, demonstrations: Sequence[Example]) -> str:
        """Return what stands before the query, demonstrations and their words shielded."""
        shown = [replace(d, texts=self._shielded(d.texts)) for d in demonstrations]
        return prompt_head(self._shielded_task, shown)

    def _shielded(self, texts: Mapping[str, str]) -> dict[str, str]:
        return {
            name: self.text.shield(text, edges=name in self._edges) for name, text in texts.items()
        }

    def _open_fields(self) -> set[str]:
        """Return columns whose texts could make a control token with what stands beside them.

        Such as `s` in the line `<{text}>`.
        """
        parts = [("", False), *self._template.parts(), ("", False)]
        found = set()
        for before, (name, is_field), after in zip(parts, parts[1:], parts[2:], strict=False):
            beside_field = before[1] or after[1]
            if is_field and (beside_field or self.text.control.touches(before[0], after[0])):
                found.add(name)
        return found

    def encode(
        self,
        examples: Sequence[Example],
        *,
        demonstrations: Sequence[Sequence[Example]] | None = None,
    ) -> list[EncodedExample]:
        """Encode examples; texts that are too long are shortened, and that is counted.

        Args:
            examples: What to encode.
            demonstrations: For every example its own demonstrations; None: the usual ones.

        Raises:
            PromptError: If a prompt does not fit even without its text.
        """
        shown: Sequence[Sequence[Example] | None] = demonstrations or [None] * len(examples)
        prompts = [self.render(e.texts, own) for e, own in zip(examples, shown, strict=True)]
        try:
            encoded = self._encode_prompts(prompts)
        except PromptError:
            self._name_culprit(examples, prompts)
            raise
        result = []
        for example, own, (ids, completions) in zip(examples, shown, encoded, strict=True):
            cut = 0
            if len(ids) + max(map(len, completions)) + len(self._end) > self.max_length:
                ids, completions, cut = self._shorten(example, own, ids)
            if len(self._end):
                completions = tuple(np.concatenate((words, self._end)) for words in completions)
            result.append(encoded_example(example, self.task, ids, completions, num_tokens_cut=cut))
        note_shortened(result)
        return result

    def content_free(self, texts: Sequence[str]) -> list[EncodedExample]:
        """Encode the prompt with every text column replaced by each of these texts."""
        return self.encode(self.empty(texts))

    def empty(self, texts: Sequence[str]) -> list[Example]:
        """Return examples of which every text column is replaced by each of these texts."""
        return [
            Example(f"content-free input {text!r}", dict.fromkeys(self.task.text, text))
            for text in texts
        ]

    def _encode_prompts(
        self, prompts: Sequence[str]
    ) -> list[tuple[IntArray, tuple[IntArray, ...]]]:
        if self._tails is None:
            return [self._in_full(prompt) for prompt in prompts]
        first = self.text.shield(self.candidates[0].word)
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
        shielded = [self.text.shield(word) for word in words]
        pairs = self.text.encode_pairs([prompt] * len(words), shielded)
        heads = [pair.ids[: pair.completion_start] for pair in pairs]
        for head, word in zip(heads[1:], words[1:], strict=True):
            if not np.array_equal(head, heads[0]):
                raise PromptError(
                    f"The prompt {as_written(prompt)[-20:]!r} is tokenized one way before "
                    f"{words[0]!r} and another before {word!r}. End the template with "
                    "punctuation, such as a colon."
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
        for piece in self._template.parts():
            if piece == (LABEL, True):
                break
            before_label = piece
        static, is_field = before_label
        return (
            not is_field
            and not static[-1].isspace()
            and all(re.match(r" \S", candidate.word) for candidate in self.candidates)
        )

    def _mark(self) -> int | None:
        """Return the token that follows every word in a prompt; else the tokenizer's end token."""
        following = after_answer(self.task, self._tokenizer)
        if following.strip(" "):
            found = {self.text.id_after(f":{one.word}", following) for one in self.candidates}
            if len(found) == 1 and None not in found:
                return found.pop()
        return self._tokenizer.eos_token_id

    def _shorten(
        self, example: Example, demonstrations: Sequence[Example] | None, prompt_ids: IntArray
    ) -> tuple[IntArray, tuple[IntArray, ...], int]:
        """Cut the end of the longest text until the prompt fits; also count the tokens cut."""
        texts = dict(example.texts)
        columns = [name for name, is_field in self._template.parts() if is_field]
        columns.remove(LABEL)
        original = len(prompt_ids)
        while True:
            prompt = self.render(texts, demonstrations)
            prompt_ids, completions = self._encode_prompts([prompt])[0]
            longest_answer = max(map(len, completions)) + len(self._end)
            excess = len(prompt_ids) + longest_answer - self.max_length
            if excess <= 0:
                return prompt_ids, completions, original - len(prompt_ids)
            by_column = {name: self.text.offsets(self.text.shield(texts[name])) for name in columns}
            longest, offsets = max(by_column.items(), key=lambda item: len(item[1]))
            if not offsets:
                raise PromptError(
                    f"{example.id}: even without its text the prompt has {len(prompt_ids)} tokens "
                    f"and the longest answer {longest_answer}; model.max_length is "
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


def word_starts(
    candidates: Sequence[Candidate], completions: Sequence[IntArray]
) -> tuple[tuple[str, str], ...]:
    """Return the pairs of words of which the first's tokens start the second's.

    Args:
        candidates: The words.
        completions: The ids of each.
    """
    words = [
        (tuple(ids.tolist()), one.word) for one, ids in zip(candidates, completions, strict=True)
    ]
    of_ids = dict(words)
    starts = [
        (of_ids[ids[:length]], word)
        for ids, word in words
        for length in range(1, len(ids))
        if ids[:length] in of_ids
    ]
    place = {word: index for index, (_, word) in enumerate(words)}
    return tuple(sorted(starts, key=lambda pair: (place[pair[0]], place[pair[1]])))


def encoded_example(
    example: Example,
    task: Task,
    prompt_ids: IntArray,
    completions: tuple[IntArray, ...],
    *,
    num_tokens_cut: int,
) -> EncodedExample:
    """Return an example as token ids, with its gold label where it has one."""
    names = task.label_names
    index = names.index(example.label) if example.label in names else None
    given = prompt_ids, completions, index, num_tokens_cut
    return EncodedExample(example.id, *given, example.target_vector(names))


def _same(first: Sequence[IntArray], second: Sequence[IntArray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
