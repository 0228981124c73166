"""A tokenizer that puts a raw text into a run's prompt by itself.

What stands before and after the text becomes token ids that the post-processor adds. Subword
tokenizers do not compose, so as many characters beside the text as it takes are written by the
normalizer instead, and tokenized with the text. Both are parts of `tokenizer.json`, so whoever
loads the export gets the prompt.

Legend: N texts.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from taskfit.data import Example
from taskfit.errors import PromptError
from taskfit.export.prompt import prompt_pieces
from taskfit.tasks import BareEncoder, PromptEncoder
from taskfit.tasks.text_encoder import TextEncoder

# Left and right.
Strip = tuple[bool, bool]
BEFORE, BETWEEN, AFTER = "[before]", "[between]", "[after]"
# What texts begin and end with where tokenizers cut in different ways.
EDGES = (
    "a",
    "B",
    "7",
    "é",
    "日",
    "🙂",
    "!",
    "...",
    ")",
    '"',
    "'s",
    "-",
    "=",
    " ",
    "\n",
    "  ",
    "\t",
)
# What `str.strip` takes off; the library's own strips less.
WHITE = r"[\s\x1c-\x1f]"
# Tokens beside the text that are tried as part of it (besides all of them).
NUM_CUTS = 3
NUM_CONTROL = 64


@dataclass(frozen=True, slots=True)
class PromptTokenizer:
    """A tokenizer with a prompt in it.

    Attributes:
        tokenizer: Gives a raw text, or two as text and pair, the ids that the run gives it.
        columns: Whose texts these are, in order.
        shortens_text: Whether `truncation=True` takes tokens from the end of the one text, as the
            run does; else it takes them from its beginning, or from either of a pair.
        misread: Control tokens that it reads otherwise than the run where a text holds them.
    """

    tokenizer: PreTrainedTokenizerFast
    columns: tuple[str, ...]
    shortens_text: bool
    misread: tuple[str, ...]

    def ids(self, example: Example, *, shorten: bool = False) -> list[int]:
        """Return the ids of an example."""
        texts = [example.texts[column] for column in self.columns]
        return list(self.tokenizer(*texts, truncation=shorten)["input_ids"])


def make_prompt_tokenizer(
    encoder: PromptEncoder | BareEncoder,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
) -> PromptTokenizer:
    """Return a tokenizer that gives raw texts the ids that an encoder gives them.

    Args:
        encoder: Of the run.
        tokenizer: Of its model.
        examples: Texts that it must read as the run does, beside texts with all kinds of ends.

    Raises:
        PromptError: If there is none, or the task has more text columns than two.
    """
    pieces = prompt_pieces(encoder)
    columns = tuple(value for kind, value in pieces if kind == "column")
    if len(columns) > 2 or len(set(columns)) < len(columns):
        raise PromptError(
            f"A tokenizer takes a text, or a pair of texts; this prompt has {len(columns)} places "
            "for texts."
        )
    probes = _probes(columns)
    expected = _ids(encoder, [*probes, *examples])
    longest = encoder.max_length - _answer_length(encoder)
    layout = _Layout.of(encoder, tokenizer, pieces, probes[0])
    # Turns of a chat have no white space at their ends, where a text may stand.
    strips: tuple[Strip, ...] = ((False, False), (True, False), (False, True), (True, True))
    ways = product(layout.ways(), strips if encoder.task.chat else strips[:1])
    for (lead, trail), strip in ways:
        backend = layout.backend(tokenizer, lead, trail, strip=strip)
        made = _wrap(backend, tokenizer, longest, side="left" if trail else "right")
        found = PromptTokenizer(made, columns, not trail and len(columns) == 1, ())
        if all(
            ids is None or found.ids(example) == ids
            for example, ids in zip([*probes, *examples], expected, strict=True)
        ):
            return replace(found, misread=_misread(encoder, found))
    raise PromptError(
        "No tokenizer file was found that gives raw texts the ids that they have in this prompt."
    )


def _probes(columns: Sequence[str]) -> list[Example]:
    inner = [f"{first}b c{last}" for first in EDGES for last in EDGES if "a" in (first, last)]
    texts = ["b", *inner, *(edge for edge in EDGES if edge.strip()), "x!\n", "?! ", "x\r\n", "(1)."]
    shifted = texts[1:] + texts[:1]
    return [
        Example(repr(one), dict(zip(columns, pair, strict=False)))
        for one, *pair in zip(texts, texts, shifted, strict=True)
    ]


def _ids(
    encoder: PromptEncoder | BareEncoder, examples: Sequence[Example]
) -> list[list[int] | None]:
    """Return the run's ids of each example; None of one that is shortened."""
    items = encoder.encode(examples)
    return [None if item.num_tokens_cut else item.prompt_ids.tolist() for item in items]


def _answer_length(encoder: PromptEncoder | BareEncoder) -> int:
    (item,) = encoder.content_free(["a"])
    return max(map(len, item.completions), default=0)


@dataclass(frozen=True, slots=True)
class _Layout:
    """A run's prompt of one example, with the places of its texts and of its tokens.

    Attributes:
        text: As it was written.
        spans: Where the texts stand in it, as (first, end).
        tokens: Id and characters of each token.
        start: Tokens in front of all.
        control: Ids of control tokens.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    tokens: tuple[tuple[int, int, int], ...]
    start: tuple[int, ...]
    control: frozenset[int]

    @classmethod
    def of(
        cls,
        encoder: PromptEncoder | BareEncoder,
        tokenizer: PreTrainedTokenizerBase,
        pieces: Sequence[tuple[str, str]],
        example: Example,
    ) -> "_Layout":
        reader = TextEncoder(tokenizer, allow_control_tokens=encoder.task.allow_control_tokens)
        text, spans = "", []
        for kind, value in pieces:
            written = example.texts[value] if kind == "column" else value
            if kind == "column":
                spans.append((len(text), len(text) + len(written)))
            text += written
        start = reader.start_ids
        if isinstance(encoder, BareEncoder):
            ids, offsets = reader.ids_and_offsets(text)
            has_start = False
        else:
            ids, offsets = reader.ids_and_offsets(encoder.render(example.texts))
            has_start = ids[: len(start)] == start
        return cls(
            text,
            tuple(spans),
            tuple((token, *span) for token, span in zip(ids, offsets, strict=True)),
            () if has_start else tuple(start),
            frozenset(reader.control.names),
        )

    def ways(self) -> Iterator[tuple[str, str]]:
        """Yield what may be tokenized with a text before and behind it, the shortest first."""
        first, last = self.spans[0][0], self.spans[-1][1]
        before = [end for _, _, end in self.tokens if end <= first][::-1]
        behind = [end for _, begin, end in self.tokens if begin >= last]
        # A control token cuts: what stands beyond it never has to be read with the text.
        barrier = max((e for t, _, e in self.tokens if t in self.control and e <= first), default=0)
        stop = min(
            (b for t, b, _ in self.tokens if t in self.control and b >= last),
            default=len(self.text),
        )
        starts = [max(cut, barrier) for cut in before[:NUM_CUTS]]
        ends = [last, *(min(cut, stop) for cut in behind[:NUM_CUTS]), stop]
        leads = [self.text[cut:first] for cut in [*starts, barrier]]
        # Tokenizers in the style of SentencePiece write the space themselves.
        leads = [written for lead in leads for written in (lead, lead.removeprefix(" "))]
        for trail in dict.fromkeys(self.text[last:cut] for cut in ends):
            for lead in dict.fromkeys(leads):
                if len(self.spans) == 1 or self._suits_both(lead, trail):
                    yield lead, trail

    def _suits_both(self, lead: str, trail: str) -> bool:
        # A pair of texts has one normalizer, so the same stands before and behind both.
        between = self.text[self.spans[0][1] : self.spans[1][0]]
        fits = len(lead) + len(trail) <= len(between)
        return fits and between.startswith(trail) and between.endswith(lead)

    def backend(
        self, tokenizer: PreTrainedTokenizerBase, lead: str, trail: str, *, strip: Strip
    ) -> Backend:
        """Return a tokenizer whose normalizer writes these two, and whose post-processor the rest.

        Control tokens are flagged special, so that who loads it can have texts read as texts.

        Args:
            tokenizer: Of the run's model.
            lead: What the normalizer writes before a text.
            trail: What it writes behind one.
            strip: At which ends it takes white space off a text first.
        """
        plain: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        for token in plain["added_tokens"]:
            token["special"] |= token["id"] in self.control
        own: list[dict[str, Any]] = []
        for place, edge in zip(strip, (rf"\A{WHITE}+", rf"{WHITE}+\z"), strict=True):
            if place:
                own.append({"type": "Replace", "pattern": {"Regex": edge}, "content": ""})
        if lead:
            own.append({"type": "Prepend", "prepend": lead})
        if trail:
            own.append({"type": "Replace", "pattern": {"Regex": r"\z"}, "content": trail})
        if own:
            given = [plain["normalizer"]] if plain["normalizer"] else []
            plain["normalizer"] = {"type": "Sequence", "normalizers": [*own, *given]}
        parts = {BEFORE: [*self.start, *self._ids(0, self.spans[0][0] - len(lead))]}
        order = [BEFORE, "A"]
        if len(self.spans) == 2:
            inner = self.spans[0][1] + len(trail), self.spans[1][0] - len(lead)
            parts[BETWEEN] = self._ids(*inner)
            order += [BETWEEN, "B"]
        parts[AFTER] = self._ids(self.spans[-1][1] + len(trail), len(self.text))
        plain["post_processor"] = _post_processor([*order, AFTER], parts, tokenizer)
        plain["truncation"] = plain["padding"] = None
        return Backend.from_str(json.dumps(plain))

    def _ids(self, first: int, end: int) -> list[int]:
        return [t for t, begin, stop in self.tokens if first <= begin and stop <= end]


def _post_processor(
    order: Sequence[str], parts: Mapping[str, Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    used = [name for name in order if name in ("A", "B") or parts[name]]
    steps: list[dict[str, Any]] = [
        {"Sequence": {"id": name, "type_id": 0}}
        if name in ("A", "B")
        else {"SpecialToken": {"id": name, "type_id": 0}}
        for name in used
    ]
    pair: list[dict[str, Any]] = [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 0}},
    ]
    named: dict[str, Any] = {
        name: {"id": name, "ids": list(ids), "tokens": tokenizer.convert_ids_to_tokens(list(ids))}
        for name, ids in parts.items()
        if ids
    }
    is_pair = "B" in order
    single = steps if not is_pair else pair[:1]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": steps if is_pair else pair,
        "special_tokens": named,
    }


def _wrap(
    backend: Backend,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    *,
    side: Literal["left", "right"],
) -> PreTrainedTokenizerFast:
    named: dict[str, Any] = {
        name: getattr(tokenizer, name)
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        if getattr(tokenizer, name) is not None
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=longest,
        # Absolute positions count from the left end.
        padding_side="right",
        truncation_side=side,
        split_special_tokens=True,
        **named,
    )


def _misread(encoder: PromptEncoder | BareEncoder, found: PromptTokenizer) -> tuple[str, ...]:
    names = list(TextEncoder(found.tokenizer).control.names.values())[:NUM_CONTROL]
    examples = [Example(name, dict.fromkeys(found.columns, f"a {name}b")) for name in names]
    return tuple(
        example.id
        for example, ids in zip(examples, _ids(encoder, examples), strict=True)
        if ids is not None and found.ids(example) != ids
    )
