"""A classifier's prompt as pieces of text and places for columns, for those without taskfit."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from taskfit.data import Example
from taskfit.errors import PromptError
from taskfit.files import write_json_atomic
from taskfit.tasks import BareEncoder, PromptEncoder
from taskfit.tasks.control_tokens import as_written
from taskfit.tasks.text_encoder import TextEncoder

# Letters only, so that no chat template changes them.
MARK = "TASKFITCOLUMN"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a text is put into.

    Attributes:
        pieces: ("text", as it stands) or ("column", name of a text column), in order.
        max_length: Longest prompt (tokens).
    """

    pieces: tuple[tuple[str, str], ...]
    max_length: int

    def fill(self, texts: Mapping[str, str]) -> str:
        """Return the prompt of these texts."""
        return "".join(value if kind == "text" else texts[value] for kind, value in self.pieces)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        pieces = [{kind: value} for kind, value in self.pieces]
        write_json_atomic(path, {"pieces": pieces, "max_length": self.max_length})


def find_prompt(
    encoder: PromptEncoder | BareEncoder,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
) -> tuple[Prompt, list[int]]:
    """Return an encoder's prompt, checked on examples, and the places of those that fit whole.

    A start token that the tokenizer writes by itself is left out, so that it stands there once.

    Raises:
        PromptError: If tokenizing the filled prompt gives other ids than the run has seen.
    """
    pieces = prompt_pieces(encoder)
    reader = TextEncoder(tokenizer)
    start = reader.start_ids
    if start and pieces[0][0] == "text":
        written = str(tokenizer.decode(start))
        pieces[0] = ("text", pieces[0][1].removeprefix(written))
    prompt = Prompt(tuple(pieces), encoder.max_length)
    items = encoder.encode(examples)
    # Other tools read a control token in a text as such, the run did not.
    whole = [
        place
        for place, (item, example) in enumerate(zip(items, examples, strict=True))
        if not (item.num_tokens_cut or any(map(reader.control.found_in, example.texts.values())))
    ]
    for item, example in ((items[place], examples[place]) for place in whole):
        ids = tokenizer(prompt.fill(example.texts))["input_ids"]
        if not np.array_equal(ids, item.prompt_ids):
            raise PromptError(
                f"This run's prompt cannot be given as plain text: for {example.id} the tokenizer "
                f"makes {len(ids)} tokens of it, and the run has seen {len(item.prompt_ids)} "
                "(other or differently cut ones). Use --merge."
            )
    if not whole:
        raise PromptError(
            f"None of {len(examples)} texts of this run fits into {encoder.max_length} tokens "
            "whole and without control tokens, so nothing can be checked. Use --merge."
        )
    return prompt, whole


def prompt_pieces(encoder: PromptEncoder | BareEncoder) -> list[tuple[str, str]]:
    """Return an encoder's prompt as ("text", as it stands) and ("column", name), in order."""
    columns = encoder.task.text
    if isinstance(encoder, BareEncoder):
        return [piece for c in columns for piece in (("text", "\n"), ("column", c))][1:]
    marks = {column: f"{MARK}{index}X" for index, column in enumerate(columns)}
    return _split(as_written(encoder.render(marks)), marks)


def _split(text: str, marks: Mapping[str, str]) -> list[tuple[str, str]]:
    names = {mark: column for column, mark in marks.items()}
    parts = re.split(f"({MARK}\\d+X)", text)
    pieces = [("column", names[part]) if part in names else ("text", part) for part in parts]
    return [piece for piece in pieces if piece[1]]
