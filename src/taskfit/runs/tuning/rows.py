"""Prompts and answers of rows, whatever their kind."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from taskfit.data.instructions import Conversation, InstructionRow, Preference, Raw
from taskfit.data.messages import Message

# Turns up to the answer, or a text that the model goes on with.
Prompt = tuple[Message, ...] | str


def prompt_of(row: InstructionRow) -> Prompt:
    """Return the turns before a row's last answer; of a raw text its first half."""
    return _halves(row)[0] if isinstance(row, Raw) else row.prompt


def reference_of(row: InstructionRow) -> str:
    """Return a row's own answer, empty where it has none; of a raw text its second half."""
    if isinstance(row, Conversation):
        return row.answer
    return row.chosen if isinstance(row, Preference) else _halves(row)[1]


def prompt_text(row: InstructionRow) -> str:
    """Return a row's prompt for people."""
    return for_people(prompt_of(row))


def for_people(prompt: Prompt) -> str:
    """Return a prompt as people read it."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message.content for message in prompt)


def hash_rows(rows: Sequence[InstructionRow]) -> str:
    """Return a hash of rows in their order."""

    def without_usual(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # What earlier versions did not know of enters only where it says something.
        return {name: value for name, value in pairs if (name, value) != ("learned", True)}

    digest = hashlib.sha256()
    for row in rows:
        plain = asdict(row, dict_factory=without_usual)
        digest.update(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()[:16]


def _halves(row: Raw) -> tuple[str, str]:
    words = row.text.split(" ")
    middle = max(1, len(words) // 2)
    return " ".join(words[:middle]), " ".join(words[middle:])
