"""Conversations become token ids by a chat template, with what is learned marked.

A conversation is rendered as one text and tokenized once. What the assistant says is found by
rendering the turns before it, so any template serves that writes earlier turns the same whatever
follows; tokens are marked by character offsets. What turns say is shielded, so that none of it ends
a turn or forges one (`control_tokens.py`).

Legend: T tokens of one conversation.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
from jinja2 import Environment, TemplateError, TemplateSyntaxError
from numpy.typing import NDArray

from taskfit.data.instructions import Conversation, Preference, Raw
from taskfit.data.messages import Message
from taskfit.errors import PromptError, SettingsError
from taskfit.tasks.control_tokens import as_written
from taskfit.tasks.text_encoder import IntArray, TextEncoder, Tokenizer

Turns = Literal["all", "last"]
TEMPLATES = resources.files("taskfit.tasks").joinpath("chat_templates")
# A tag of transformers' own around what the assistant says.
GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Token ids with what is learned of them.

    Attributes:
        id: Where the row stands.
        ids: Token ids, (T,).
        is_learned: Whether each token is predicted in the loss; the first never is, (T,).
        num_tokens_cut: Tokens by which the end was shortened.
    """

    id: str
    ids: IntArray
    is_learned: NDArray[np.bool_]
    num_tokens_cut: int = 0

    @property
    def num_tokens(self) -> int:
        """Return its length."""
        return len(self.ids)

    @property
    def num_learned(self) -> int:
        """Return the tokens that are predicted in the loss."""
        return int(self.is_learned.sum())


@dataclass(frozen=True, slots=True)
class EncodedPreference:
    """Two answers to one prompt.

    Attributes:
        id: Where the row stands.
        chosen: Prompt and better answer.
        rejected: Prompt and worse answer.
    """

    id: str
    chosen: EncodedText
    rejected: EncodedText

    @property
    def num_tokens(self) -> int:
        """Return the tokens of both, as a padded batch would run them."""
        return 2 * max(self.chosen.num_tokens, self.rejected.num_tokens)

    @property
    def num_tokens_cut(self) -> int:
        """Return the tokens by which both were shortened."""
        return self.chosen.num_tokens_cut + self.rejected.num_tokens_cut


def template_names() -> list[str]:
    """Return the names of the templates that come with the package."""
    return sorted(Path(entry.name).stem for entry in TEMPLATES.iterdir())


def find_template(name: str) -> str:
    """Return a chat template by name, or from a file of Jinja.

    Raises:
        SettingsError: If there is neither, or the file is no Jinja.
    """
    if name in template_names():
        return TEMPLATES.joinpath(f"{name}.jinja").read_text("utf-8")
    path = Path(name).expanduser()
    if not path.is_file():
        raise SettingsError(
            f"There is no chat template {name}: neither a file nor one of "
            f"{', '.join(template_names())}. Leave it out to take the model's own."
        )
    try:
        text = path.read_text(encoding="utf-8")
        Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False).parse(
            GENERATION.sub("", text)
        )
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The chat template {path} cannot be read: {error}.") from error
    except TemplateSyntaxError as error:
        raise SettingsError(
            f"The chat template {path}:{error.lineno} is no Jinja: {error.message}"
        ) from error
    return text


class ChatEncoder:
    """Encodes conversations, preferences and raw texts for one tokenizer."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        turns: Turns = "all",
        allow_control_tokens: bool = False,
    ) -> None:
        """Bind to a tokenizer, whose chat template is used.

        Args:
            tokenizer: With the chat template that shall be learned.
            max_length: Longest text (tokens); what is longer loses its end.
            turns: Whether all turns of the assistant are learned, or the last only.
            allow_control_tokens: Whether control tokens that stand in rows are read as such.
        """
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.turns = turns
        self._text = TextEncoder(tokenizer, allow_control_tokens=allow_control_tokens)

    def conversations(self, rows: Sequence[Conversation]) -> list[EncodedText]:
        """Encode conversations; what the assistant says is learned, but for turns told apart.

        Raises:
            PromptError: If there is no template, it refuses a row, or rewrites earlier turns.
        """
        return [self._conversation(row.id, row.messages) for row in rows]

    def preferences(self, rows: Sequence[Preference]) -> list[EncodedPreference]:
        """Encode preferences; both answers are learned, the prompt is not.

        Raises:
            PromptError: As for conversations.
        """

        def encoded(row: Preference, answer: str) -> EncodedText:
            messages = (*row.prompt, Message("assistant", answer))
            return self._conversation(row.id, messages, last_only=True)

        return [
            EncodedPreference(row.id, encoded(row, row.chosen), encoded(row, row.rejected))
            for row in rows
        ]

    def raw(self, rows: Sequence[Raw], *, end_id: int | None) -> list[EncodedText]:
        """Encode texts of which every token is learned, and an end token behind them.

        Args:
            rows: The texts.
            end_id: The end token; None: there is none.
        """
        encoded = []
        for row in rows:
            ids = self.text_ids(row.text)
            if end_id is not None and ids[-1:] != [end_id]:
                ids.append(end_id)
            encoded.append(self._shortened(row.id, ids, np.ones(len(ids), dtype=bool)))
        return encoded

    def prompt(self, messages: Sequence[Message]) -> str:
        """Return the text after which the assistant speaks.

        Raises:
            PromptError: If there is no template, or it refuses these turns.
        """
        return as_written(self._render("the prompt", messages, ask=True))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of `prompt`; none of its control tokens is one that a turn says."""
        return self._started(self._text.ids(self._render("the prompt", messages, ask=True)))

    def end_of_turn(self) -> str:
        """Return what the template writes behind an answer.

        Raises:
            PromptError: If there is no template, or it refuses a question and an answer.
        """
        turns = (Message("user", "?"), Message("assistant", "!"))
        whole = self._render("the end of a turn", turns)
        return whole.rpartition("!")[2]

    def plain_ids(self, text: str) -> list[int]:
        """Return the ids of a piece of what the chat template writes."""
        return self._text.ids(text)

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a user's text, with the tokenizer's start token where it has one."""
        return self._started(self._text.ids(self._text.shield(text)))

    def control_tokens_in(self, row: Conversation | Preference | Raw) -> list[str]:
        """Return the control tokens that are written in a row, each once."""
        if isinstance(row, Raw):
            texts = [row.text]
        elif isinstance(row, Conversation):
            texts = [message.content for message in row.messages]
        else:
            texts = [*(message.content for message in row.prompt), row.chosen, row.rejected]
        found = (name for text in texts for name in self._text.control.found_in(text))
        return list(dict.fromkeys(found))

    def _started(self, ids: list[int]) -> list[int]:
        """Put the start token in front, unless it is there: most chat templates write it."""
        head = self._text.start_ids
        return ids if ids[: len(head)] == head else [*head, *ids]

    def _conversation(
        self, name: str, messages: Sequence[Message], *, last_only: bool = False
    ) -> EncodedText:
        spoken = [i for i, message in enumerate(messages) if message.role == "assistant"]
        if not spoken:
            raise PromptError(f"{name} has no turn of the assistant, so nothing to learn.")
        learned = spoken[-1:] if last_only or self.turns == "last" else spoken
        learned = [turn for turn in learned if messages[turn].learned]
        # What comes after the last answer that is learned is not seen by it.
        last = (learned or spoken)[-1]
        text = self._render(name, messages[: last + 1])
        spans = []
        for turn in learned:
            before = self._render(name, messages[:turn], ask=True)
            whole = self._render(name, messages[: turn + 1]) if turn != last else text
            if not whole.startswith(before):
                raise PromptError(
                    f"{name}: what the chat template writes before turn {turn + 1} is not what it "
                    "writes to ask for it, so what the assistant says cannot be found in the "
                    "whole. Set another tuning.chat_template."
                )
            if not text.startswith(whole):
                raise PromptError(
                    f"{name}: the chat template writes turn {turn + 1} otherwise when more turns "
                    "follow it, so what the assistant says cannot be found in the whole. Set "
                    "tuning.turns=last, or another tuning.chat_template."
                )
            spans.append((len(as_written(before)), len(as_written(whole))))
        ids, ranges = self._ids_and_ranges(text)
        # Asked, the model reads the prompt alone. Where a token reaches over its end (a line break
        # of the template with one that the answer starts with), both are read apart here, too.
        cuts = [first for first, _ in spans if _is_across(ranges, first)]
        if cuts:
            ids, ranges = self._ids_and_ranges(text, cuts)
        is_learned = np.zeros(len(ids), dtype=bool)
        for first, end in spans:
            is_learned |= (ranges[:, 0] >= first) & (ranges[:, 0] < end)
        started = self._started(ids)
        head = np.zeros(len(started) - len(ids), dtype=bool)
        return self._shortened(name, started, np.concatenate((head, is_learned)))

    def _ids_and_ranges(
        self, text: str, cuts: Sequence[int] = ()
    ) -> tuple[list[int], NDArray[np.int64]]:
        """Return the ids of a rendered text and the characters of each, (T, 2)."""
        ids, offsets = self._text.ids_and_offsets(text, cuts=cuts)
        return ids, np.array(offsets, dtype=np.int64).reshape(-1, 2)

    def _shortened(
        self, name: str, ids: Sequence[int], is_learned: NDArray[np.bool_]
    ) -> EncodedText:
        kept = np.asarray(ids[: self.max_length], dtype=np.int64)
        marks = is_learned[: self.max_length].copy()
        marks[:1] = False  # nothing stands before the first token to predict it from
        return EncodedText(name, kept, marks, num_tokens_cut=len(ids) - len(kept))

    def _render(self, name: str, messages: Sequence[Message], *, ask: bool = False) -> str:
        if not self.tokenizer.chat_template:
            raise PromptError(
                "This model has no chat template. Name one with tuning.chat_template "
                f"({', '.join(template_names())}, or a file of Jinja); it is saved with the run."
            )
        turns = [{**m.turn, "content": self._text.shield(m.content)} for m in messages]
        render = self.tokenizer.apply_chat_template
        try:
            return str(render(turns, tokenize=False, add_generation_prompt=ask))
        # Python's own errors come from what a template does with the turns.
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise PromptError(
                f"{name}: the chat template refuses these turns "
                f"({', '.join(m.role for m in messages)}): {error}. Set tuning.chat_template to "
                "another one, or change the rows."
            ) from error


def _is_across(ranges: IntArray, cut: int) -> bool:
    """Whether a token spans the start of an answer."""
    return bool(((ranges[:, 0] < cut) & (ranges[:, 1] > cut)).any())
