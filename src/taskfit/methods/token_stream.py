"""Text written token by token over the token tree: what waits between two tokens is nobody's time.

Legend: V vocabulary.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taskfit.models.causal_model import CausalModel
from taskfit.models.load import LoadedModel
from taskfit.models.whole import require_finite
from taskfit.tree import IntArray

# What a decoder writes for bytes that are no whole character yet.
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: Divides the scores; 0: the likeliest token each time.
        top_p: Of the likeliest tokens those are sampled that have this probability together.
        seed: Of sampling; None: another one each time.
        num_top: How many of the likeliest tokens are told with each; None: not even its own
            log-probability.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    num_top: int | None = None


@dataclass(frozen=True, slots=True)
class NextToken:
    """A token that was written.

    Attributes:
        id: The token.
        log_prob: Of the token under the model, before temperature (nats); None: not asked for.
        top: The likeliest tokens there, with their log-probabilities.
    """

    id: int
    log_prob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def stream_tokens(
    tree: CausalModel,
    prompt: IntArray,
    *,
    max_tokens: int,
    end_ids: Collection[int],
    sampling: Sampling,
) -> Iterator[NextToken]:
    """Go on with a prompt, one token each time; keys and values of what is written are kept.

    The model may do other work between two tokens.

    Args:
        tree: The model.
        prompt: Token ids, (P,), P >= 1.
        max_tokens: Most tokens to write.
        end_ids: Tokens that end the text; the one that does is given out, too.
        sampling: How each is chosen.

    Raises:
        NotFiniteError: If the model's scores are not finite.
    """
    tree.model.eval()
    generator = torch.Generator(tree.device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    hidden, cache = tree.extend(prompt)
    for count in range(1, max_tokens + 1):
        found = _next(tree, hidden, sampling, generator)
        yield found
        if found.id in end_ids or count == max_tokens:
            return
        hidden, cache = tree.extend(np.array([found.id]), prefix=cache)


@torch.no_grad()
def _next(
    tree: CausalModel, hidden: Tensor, sampling: Sampling, generator: torch.Generator
) -> NextToken:
    scores = tree.logits(hidden)[0]  # (V,)
    require_finite(scores[None], ["the prompt"])
    if sampling.temperature == 0:
        token = int(scores.argmax())
    else:
        token = sample(scores / sampling.temperature, sampling.top_p, generator)
    if sampling.num_top is None:
        return NextToken(token)
    log_probs = torch.log_softmax(scores, dim=-1)
    best = torch.topk(log_probs, sampling.num_top)
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return NextToken(token, float(log_probs[token]), top)


def sample(scores: Tensor, top_p: float, generator: torch.Generator) -> int:
    """Draw a token from the likeliest ones that have a probability of at least `top_p` together.

    Holtzman et al. 2020 (arXiv:1904.09751), section 3.1.
    """
    if top_p >= 1:
        return int(torch.multinomial(torch.softmax(scores, dim=-1), 1, generator=generator))
    shares, order = torch.softmax(scores, dim=-1).sort(descending=True)
    before = shares.cumsum(dim=-1) - shares
    # The likeliest is always kept.
    kept = torch.where(before < max(top_p, 1e-9), shares, torch.zeros_like(shares))
    return int(order[torch.multinomial(kept, 1, generator=generator)])


class TextPieces:
    """Turns tokens into text as they come: only whole characters are let out."""

    def __init__(self, model: LoadedModel) -> None:
        """Bind to a model's tokenizer; its special tokens are left out."""
        self._tokenizer = model.tokenizer
        self._ids: list[int] = []
        # Some tokenizers write a token otherwise at the start of a text, so the last tokens that
        # were let out stand before what is decoded.
        self._start = self._out = 0

    def take(self, token: int) -> str:
        """Take a token; return the characters that are whole now."""
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._out])
        text = self._decode(self._ids[self._start :])
        if text.endswith(UNFINISHED) or len(text) <= len(before):
            return ""
        self._start, self._out = self._out, len(self._ids)
        return text[len(before) :]

    def close(self) -> str:
        """Return what was held back: bytes that never became a character."""
        before = self._decode(self._ids[self._start : self._out])
        return self._decode(self._ids[self._start :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
