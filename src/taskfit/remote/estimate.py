"""What requests will cost, before any is sent."""

from collections.abc import Sequence
from dataclasses import dataclass

from taskfit.remote.chat import Answer, ChatRequest

# Where no answer has told: English has about four letters a token, and other scripts, whose letters
# are longer in UTF-8, about as many bytes.
BYTES_PER_TOKEN = 4
TOKENS_PER_TURN = 4


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is still to be sent.

    Attributes:
        num_requests: Requests without an answer so far.
        num_known: Requests whose answers are in the cache.
        prompt_tokens: Of the requests, by their length.
        completion_tokens: Of the answers, at most.
        cost: At most, in the currency of the prices; None: a price is not known.
    """

    num_requests: int
    num_known: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


def estimate(
    requests: Sequence[ChatRequest],
    known: Sequence[Answer | None],
    *,
    prices: tuple[float | None, float | None],
) -> Estimate:
    """Reckon what requests will cost, from answers to some of them or from their length alone.

    Args:
        requests: What is to be asked.
        known: The answer to each that is in the cache.
        prices: Of a million tokens of prompts, and of answers; None: not known.
    """
    pairs = list(zip(requests, known, strict=True))
    told = [(r, a.prompt_tokens) for r, a in pairs if a is not None and a.prompt_tokens is not None]
    waiting = [request for request, answer in pairs if answer is None]
    num_bytes = sum(request.num_bytes for request in waiting)
    if told:
        per_byte = sum(n for _, n in told) / max(sum(r.num_bytes for r, _ in told), 1)
        prompt = num_bytes * per_byte
    else:
        turns = sum(len(request.messages) for request in waiting)
        prompt = num_bytes / BYTES_PER_TOKEN + TOKENS_PER_TURN * turns
    completion = sum(request.max_tokens for request in waiting)
    price_input, price_output = prices
    cost = None
    if price_input is not None and price_output is not None:
        cost = (prompt * price_input + completion * price_output) / 1e6
    return Estimate(len(waiting), len(requests) - len(waiting), round(prompt), completion, cost)
