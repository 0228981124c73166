"""Read a label out of generated text, or say that there is none."""

import re
from collections.abc import Sequence


def parse_answer(text: str, words_by_label: Sequence[Sequence[str]]) -> int | None:
    """Return the label that an answer names, or None; nothing is guessed.

    The first line decides. It names a label if it is one of its words (upper and lower case, quotes
    and punctuation around it do not matter), or if words of exactly one label stand in it.

    Args:
        text: What a model generated.
        words_by_label: For every label its words.
    """
    lines = [line for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return None
    answer = _plain(lines[0])
    exact = {
        index
        for index, words in enumerate(words_by_label)
        if any(_plain(word) == answer for word in words)
    }
    if len(exact) == 1:
        return exact.pop()
    # A word inside a longer one that is there too does not count: `positive` in `not positive`.
    spans = [
        (match.start(), match.end(), index)
        for index, words in enumerate(words_by_label)
        for word in words
        for match in re.finditer(rf"(?<!\w){re.escape(_plain(word))}(?!\w)", answer)
    ]
    free = {
        index
        for start, end, index in spans
        if not any(
            other != index and first <= start and end <= last and (first, last) != (start, end)
            for first, last, other in spans
        )
    }
    return free.pop() if len(free) == 1 else None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" \t\"'`*.,;:!?()[]{}<>")
