"""A row on its way through the steps, and the files it travels in."""

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskfit.curate.settings import Part
from taskfit.data.instructions import (
    Conversation,
    InstructionRow,
    Preference,
    Raw,
    from_record,
    to_record,
)

PARTS: tuple[Part, ...] = ("row", "prompt", "answer")


@dataclass(frozen=True, slots=True)
class Item:
    """A row with what is known of it.

    Attributes:
        row: The row.
        source: The file it came from.
        tokens: Tokens of the whole row.
        prompt_tokens: Tokens of what comes before the last answer.
        answer_tokens: Tokens of the last answer (the chosen one of a pair, a raw text itself).
    """

    row: InstructionRow
    source: str
    tokens: int
    prompt_tokens: int
    answer_tokens: int

    @property
    def counts(self) -> tuple[int, int, int]:
        """Return the tokens of its `PARTS`."""
        return self.tokens, self.prompt_tokens, self.answer_tokens


@dataclass(frozen=True, slots=True)
class Removal:
    """Why a row was removed.

    Attributes:
        reason: In words; the same for all rows that fail alike.
        of: Id of the row that is kept in its place, or that it overlaps with.
        similarity: To that row.
        detail: What is particular to this row.
    """

    reason: str
    of: str | None = None
    similarity: float | None = None
    detail: str | None = None


Verdict = tuple[Item, Removal | None]


class ItemFile:
    """Rows on disk, read anew on each pass."""

    def __init__(self, path: Path, count: int) -> None:
        """Bind to a file of `count` rows."""
        self.path = path
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        with self.path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                yield item_from_json(json.loads(line))


def item_to_json(item: Item) -> dict[str, Any]:
    """Return a row as JSON values, with what is known of it."""
    return {
        "source": item.source,
        "tokens": list(item.counts),
        "row": to_record(item.row),
    }


def item_from_json(record: Mapping[str, Any]) -> Item:
    """Return the row of `item_to_json`."""
    return Item(from_record(record["row"]), record["source"], *record["tokens"])


def removal_to_json(item: Item, removal: Removal, step: str) -> dict[str, Any]:
    """Return a removed row with the reason, for removed.jsonl."""
    return {
        "step": step,
        "reason": removal.reason,
        "of": removal.of,
        "similarity": None if removal.similarity is None else round(removal.similarity, 4),
        "detail": removal.detail,
        "source": item.source,
        "tokens": item.tokens,
        **to_record(item.row),
    }


def dump_line(record: Mapping[str, Any]) -> str:
    """Return a record as one line."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def part_of(row: InstructionRow, part: Part) -> str:
    """Return the text of a row, of its prompt, or of its answer (the chosen one of a pair)."""
    if isinstance(row, Raw):
        return "" if part == "prompt" else row.text
    prompt = "\n".join(message.content for message in row.prompt)
    if part == "prompt":
        return prompt
    answer = row.answer if isinstance(row, Conversation) else row.chosen
    if part == "answer":
        return answer
    if isinstance(row, Preference):
        return f"{prompt}\n{row.chosen}\n{row.rejected}"
    return "\n".join(message.content for message in row.messages)


def compared(row: InstructionRow, part: Part) -> str:
    """Return `part_of`, but the text of a raw row also where a prompt is asked for."""
    return row.text if isinstance(row, Raw) else part_of(row, part)


def normalised(text: str) -> str:
    """Return a text without differences of case, width (NFKC) and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def digest(text: str) -> bytes:
    """Return a hash by which texts are told apart and put in an order of no meaning."""
    return hashlib.sha256(text.encode("utf-8")).digest()
