"""Texts for padded batches: as token ids of an encoder, cut into batches of like length.

Legend: N texts, T tokens of a text, L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from tokenizers import Tokenizer as Backend

from taskfit.errors import DataError
from taskfit.tasks.control_tokens import ControlTokens, spelling_backend
from taskfit.tasks.shortening import note_shortened
from taskfit.tasks.text_encoder import Tokenizer


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A row of text columns as token ids.

    Attributes:
        id: The row's id, such as `train.csv:17`.
        ids: Token ids with the model's special tokens, (T,).
        type_ids: 0 for tokens of the first text, 1 for those of the second, (T,).
        target: Share of each label, adding up to 1, (L,); None where it is not known.
        num_tokens_cut: Tokens by which the texts were shortened.
    """

    id: str
    ids: NDArray[np.int64]
    type_ids: NDArray[np.int64]
    target: NDArray[np.float64] | None
    num_tokens_cut: int

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens that run."""
        return len(self.ids)


def encode_texts(
    tokenizer: Tokenizer,
    rows: Sequence[Sequence[str]],
    *,
    ids: Sequence[str],
    max_length: int,
    targets: Sequence[NDArray[np.float64] | None] | None = None,
    allow_control_tokens: bool = False,
) -> list[EncodedRow]:
    """Tokenize rows of text columns; what is too long loses its end, the longer text first.

    Two columns go in as a pair of texts, as the model's own tokenizer writes pairs; more than two
    are joined by line breaks into one text.

    Args:
        tokenizer: A fast tokenizer; its state is not changed.
        rows: The texts of each row, (N, columns).
        ids: The rows' ids, (N,).
        max_length: Most tokens of a row, special tokens included (tokens).
        targets: Share of each label for each row, (L,), or None where it is not known; (N,).
        allow_control_tokens: Whether control tokens that stand in texts are read as such.

    Raises:
        DataError: If a row has no token at all.
    """
    copy = _copy_of(tokenizer)
    control = copy.control
    inputs = [tuple(row) if len(row) == 2 else "\n".join(row) for row in rows]
    spelled = [
        place
        for place, row in enumerate(rows)
        if not allow_control_tokens and any(map(control.found_in, row))
    ]
    with copy.lock:
        encodings, lengths = _encoded(copy.backend, inputs, max_length)
        if spelled:
            # Nothing but texts goes in, so there is no token of a template to keep.
            speller, _ = spelling_backend(copy.backend)
            again = _encoded(speller, [inputs[i] for i in spelled], max_length)
            for i, encoding, length in zip(spelled, *again, strict=True):
                encodings[i], lengths[i] = encoding, length
    for name, text, encoding in zip(ids, inputs, encodings, strict=True):
        if not encoding.ids:
            raise DataError(f"{name}: the text {text!r} has no tokens. Remove the row.")
    encoded = [
        EncodedRow(
            id=name,
            ids=np.array(encoding.ids, dtype=np.int64),
            type_ids=np.array(encoding.type_ids, dtype=np.int64),
            target=target,
            num_tokens_cut=length - len(encoding.ids),
        )
        for name, encoding, target, length in zip(
            ids, encodings, targets or [None] * len(rows), lengths, strict=True
        )
    ]
    note_shortened(encoded)
    return encoded


class _Copy:
    """A copy of a tokenizer's backend; one thread at a time may use it, for its limit changes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.backend = Backend.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.no_padding()
        self.control = ControlTokens(self.backend)
        self.lock = Lock()


# To copy one takes longer than to tokenize a text.
_COPIES: "WeakKeyDictionary[Tokenizer, _Copy]" = WeakKeyDictionary()


def _copy_of(tokenizer: Tokenizer) -> _Copy:
    """Return the copy of a tokenizer that was made when it was first used here."""
    if tokenizer not in _COPIES:
        _COPIES[tokenizer] = _Copy(tokenizer)
    return _COPIES[tokenizer]


def _encoded(
    backend: Backend, inputs: Sequence[str | tuple[str, ...]], max_length: int
) -> tuple[list[Encoding], list[int]]:
    """Tokenize inputs, those that are too long shortened; return also their whole lengths."""
    backend.no_truncation()
    encodings = backend.encode_batch(list(inputs))
    lengths = [len(encoding.ids) for encoding in encodings]
    too_long = [i for i, length in enumerate(lengths) if length > max_length]
    if too_long:
        backend.enable_truncation(max_length, strategy="longest_first")
        shortened = backend.encode_batch([inputs[i] for i in too_long])
        for i, encoding in zip(too_long, shortened, strict=True):
            encodings[i] = encoding
    return encodings, lengths


def plan_padded(
    lengths: Sequence[int], token_budget: int, *, names: Sequence[str]
) -> list[list[int]]:
    """Cut texts into padded batches of like length, longest first.

    Args:
        lengths: Tokens of each text, (N,).
        token_budget: Most tokens of a batch, padding included (tokens).
        names: The texts' names for messages, such as `train.csv:17`.

    Returns:
        For every batch the indices of its texts; every text stands in exactly one batch.

    Raises:
        DataError: If one text alone has more tokens than the budget.
    """
    # Stable, so that texts of one length stay in their order.
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if order and lengths[order[0]] > token_budget:
        raise DataError(
            f"{names[order[0]]} has {lengths[order[0]]} tokens; the token budget is "
            f"{token_budget}. Raise the token budget, or set model.max_length so that long texts "
            "are shortened."
        )
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        size = token_budget // lengths[order[start]]
        batches.append(order[start : start + size])
        start += size
    return batches
