"""Texts are texts: a control token that is written in one is read as its characters.

A tokenizer finds its added tokens (`<|im_end|>`, `</s>`, `[SEP]`) wherever they stand, also in what
a user wrote, and then a text can end a turn or forge one. So texts are shielded before they are put
into prompts and chat templates: an invisible mark goes into every control token of theirs. Marks
pass through templates with the text. Where text becomes ids they are taken out again, and a token
that covers a marked character is spelled by the pieces that the model's own vocabulary has for it;
the template's own tokens stay. A text without control tokens gets no mark, and its ids are those
that the tokenizer gives.
"""

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend

from taskfit.data import Example

# Noncharacters of Unicode, meant for inner use. A mark covers the character behind it; a text that
# holds the first of them keeps it by a mark of its own.
SIGN, LITERAL, COVER = "\ufdd0", "\ufdd0\ufdd1", "\ufdd0\ufdd2"
MARKS = re.compile("\ufdd0[\ufdd1\ufdd2]")
# What stands for the template's own tokens while texts are spelled; no text can know it.
SECRET = f"\ufdd3{secrets.token_hex(8)}:"
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Added tokens that are ordinary text to models that have them (Gemma).
HTML = re.compile(
    r"</?(?:table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|sub|sup|code"
    r"|p|br|ul|ol|li|div|span|a)>"
)


@dataclass(frozen=True, slots=True)
class Spelled:
    """A text as token ids.

    Attributes:
        ids: Token ids.
        offsets: The characters that each stands for, as (first, end).
    """

    ids: list[int]
    offsets: list[tuple[int, int]]


class ControlTokens:
    """The control tokens of a tokenizer: those flagged special, and added ones with marks in them.

    Added tokens of letters, digits and white space (words, runs of spaces) are vocabulary.

    Attributes:
        names: What each stands for, by id.
    """

    def __init__(self, backend: Backend) -> None:
        """Read them off a tokenizer of the `tokenizers` library."""
        added = backend.get_added_tokens_decoder()
        self.names = {i: t.content for i, t in added.items() if t.special or _is_control(t.content)}
        self._backend = backend

    def found_in(self, text: str) -> list[str]:
        """Return the control tokens that a text would be read as holding, each once."""
        return list(dict.fromkeys(name for name, _, _ in self._places(text)))

    def held_by(self, examples: Sequence[Example]) -> list[tuple[str, list[str]]]:
        """Return the id of each example with the control tokens in its texts."""
        return [
            (e.id, list(dict.fromkeys(n for text in e.texts.values() for n in self.found_in(text))))
            for e in examples
        ]

    def shield(self, text: str, *, edges: bool = False) -> str:
        """Return a text with a mark in each of its control tokens; most texts come back as given.

        Args:
            text: A user's text.
            edges: Whether its ends are marked, too, because what stands beside it could make a
                control token with them.
        """
        covered = {min(start + 1, end - 1) for _, start, end in self._places(text)}
        if edges and text:
            covered |= {0, len(text) - 1}
        if not covered and SIGN not in text:
            return text
        pieces, last = [], 0
        for place in sorted(covered):
            pieces.append(text[last:place].replace(SIGN, LITERAL))
            last = place
        return COVER.join([*pieces, text[last:].replace(SIGN, LITERAL)])

    def touches(self, before: str, after: str) -> bool:
        """Whether a text between these two could make a control token together with them."""
        return any(
            any(
                before.endswith(name[:n]) or after.startswith(name[n:]) for n in range(1, len(name))
            )
            for name in self.names.values()
        )

    def spell(
        self, text: str, ids: Sequence[int], covered: Sequence[int], *, cuts: Sequence[int] = ()
    ) -> Spelled | None:
        """Spell the control tokens that cover marked characters; None where there are none.

        Args:
            text: Without marks.
            ids: How the tokenizer reads it.
            covered: Places of the marked characters.
            cuts: Places where a token must end; with any, the text is always read anew.
        """
        if not cuts and not any(i in self.names for i in ids):
            return None
        encoding = self._backend.encode(text, add_special_tokens=False)
        own, is_bad = [], bool(cuts)
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            name = self.names.get(token)
            if name is None:
                continue
            if any(start <= place < end for place in covered):
                is_bad = True
            elif (first := text.find(name, start, end)) >= 0:
                own.append((first, first + len(name), _stand_in(token)))
        if not is_bad:
            return None
        marks = own + [(place, place, _stand_in(-1)) for place in cuts]
        return self._read(text, sorted(marks))

    def _read(self, text: str, replaced: Sequence[tuple[int, int, str]]) -> Spelled:
        """Read a text by the spelling tokenizer, some places of it replaced by stand-ins."""
        pieces: list[str] = []
        origin: list[int] = []  # place in the text of each character of what is read
        last = 0
        for start, end, name in replaced:
            pieces += [text[last:start], name]
            origin += [*range(last, start), *[start] * len(name)]
            last = end
        pieces.append(text[last:])
        places = np.array([*origin, *range(last, len(text) + 1)])
        backend, cut_id = spelling_backend(self._backend)
        encoding = backend.encode("".join(pieces), add_special_tokens=False)
        found = [
            # A stand-in's characters have one place, so the end is that of the next character.
            (token, (int(places[start]), int(places[end])))
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if token != cut_id
        ]
        return Spelled([token for token, _ in found], [offsets for _, offsets in found])

    def _places(self, text: str) -> list[tuple[str, int, int]]:
        """Return the control tokens in a text with the characters that they cover."""
        if not self.names:
            return []
        found = [(m.group(), m.start(), m.end()) for m in self._pattern.finditer(text)]
        normalizer = self._backend.normalizer
        if found or (
            normalizer is not None and self._folded.search(normalizer.normalize_str(text))
        ):
            # Beside what stands there letter by letter, what normalisation makes of other letters.
            encoding = self._backend.encode(text, add_special_tokens=False)
            found += [
                (self.names[token], start, end)
                for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
                if token in self._telling and end > start
            ]
        return found

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return _any_of(tuple(self.names.values()))

    @cached_property
    def _folded(self) -> re.Pattern[str]:
        normalize = self._backend.normalizer.normalize_str
        folded = (normalize(name).strip("▁ ") for name in self.names.values())
        return _any_of((*self.names.values(), *(name for name in folded if name)))

    @cached_property
    def _telling(self) -> set[int]:
        """The tokens that come of nothing but their own name: not bytes, not the unknown token."""
        unknown = _unknown_name(self._backend)
        return {i for i, name in self.names.items() if name != unknown and not BYTE.match(name)}


def control_note(
    found: Sequence[tuple[str, Sequence[str]]], *, allowed: bool, what: str = "texts"
) -> str | None:
    """Say how many texts hold control tokens, and what is made of them; None where none does.

    Args:
        found: Of each text its name and the control tokens in it.
        allowed: Whether they are read as such.
        what: What the texts are called.
    """
    holding = [(name, names) for name, names in found if names]
    if not holding:
        return None
    name, names = holding[0]
    how = (
        "read as the tokens themselves, so texts can end a turn and forge one "
        "(task.allow_control_tokens=true)"
        if allowed
        else "read as characters (task.allow_control_tokens=true reads them as tokens)"
    )
    return (
        f"{len(holding):,} of {len(found):,} {what} hold control tokens of the model "
        f"(first: {name}, {' '.join(names[:3])}): {how}"
    )


def split_marks(text: str) -> tuple[str, list[int]]:
    """Return a text without marks, and the places of its marked characters."""
    if SIGN not in text:
        return text, []
    pieces, covered, length, last = [], list[int](), 0, 0
    for match in MARKS.finditer(text):
        kept = text[last : match.start()]
        kept += SIGN if match.group() == LITERAL else ""
        pieces.append(kept)
        length += len(kept)
        if match.group() == COVER:
            covered.append(length)
        last = match.end()
    return "".join(pieces) + text[last:], covered


def as_written(text: str) -> str:
    """Return a text without marks."""
    return split_marks(text)[0]


def spelling_backend(backend: Backend) -> tuple[Backend, int]:
    """Return a tokenizer that finds no control token, and the id of the token that cuts in it.

    Stand-ins have the control tokens' ids, so that a template's own can still be written.
    """
    return _spelling_backend(backend.to_str())


@lru_cache(maxsize=4)
def _spelling_backend(spec: str) -> tuple[Backend, int]:
    plain = json.loads(spec)
    model = plain["model"]
    is_list = isinstance(model["vocab"], list)  # Unigram: pieces with scores
    vocabulary = {entry[0] for entry in model["vocab"]} if is_list else model["vocab"]
    renamed: dict[str, str] = {}
    kept = []
    for token in plain["added_tokens"]:
        name = token["content"]
        if token["special"] or _is_control(name):
            if BYTE.fullmatch(name) and name in vocabulary:
                continue  # what the model spells unknown characters with
            renamed[name] = _stand_in(token["id"])
            token |= {"content": renamed[name], "normalized": False, "single_word": False}
        kept.append(token)
    plain["added_tokens"] = kept
    if is_list:
        model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {renamed.get(piece, piece): i for piece, i in model["vocab"].items()}
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = renamed.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not _makes(pair, renamed)]
    found = Backend.from_str(json.dumps(plain))
    for token in kept:
        assert found.token_to_id(token["content"]) == token["id"], "a stand-in has another id"
    found.add_special_tokens([_stand_in(-1)])
    cut_id = found.token_to_id(_stand_in(-1))
    assert cut_id is not None, "a token was added"
    return found, cut_id


def _stand_in(token: int) -> str:
    return f"{SECRET}{token}\ufdd4"


def _makes(pair: Any, names: dict[str, str]) -> bool:  # noqa: ANN401 - a list, or a text in older files
    first, second = pair.split(" ", 1) if isinstance(pair, str) else pair
    return first in names or second in names or first + second in names


def _is_control(name: str) -> bool:
    """Whether an added token that is not flagged special is none of the vocabulary."""
    return not HTML.fullmatch(name) and any(
        not (c.isalnum() or c.isspace() or c == "▁") for c in name
    )


@lru_cache(maxsize=32)
def _any_of(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(set(names), key=len, reverse=True))))


def _unknown_name(backend: Backend) -> str | None:
    model = backend.model
    if hasattr(model, "unk_id"):  # Unigram
        return None if model.unk_id is None else backend.id_to_token(model.unk_id)
    name = getattr(model, "unk_token", None)
    return None if name is None else str(name)
