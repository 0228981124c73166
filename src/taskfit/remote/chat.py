"""Chat requests and answers, and how the OpenAI-compatible protocol writes them. No network.

Protocol: https://platform.openai.com/docs/api-reference/chat (fields `logprobs`, `top_logprobs`).
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

# The protocol allows 20; several servers allow only 5.
TOP_LOG_PROBS = (20, 5)
LONGEST_QUOTE = 200


class NonsenseError(Exception):
    """A reply that is not an answer of the protocol; its text says what it is instead."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What is asked: the turns so far (role, content), and how it is to be answered.

    Attributes:
        messages: The turns.
        max_tokens: The most tokens the answer may have.
        temperature: Of sampling; 0: the most probable token at each place.
        seed: Of sampling; other seeds are other requests, also where the endpoint takes none.
    """

    messages: Sequence[Mapping[str, str]]
    max_tokens: int
    temperature: float = 0
    seed: int | None = None

    @property
    def num_bytes(self) -> int:
        """Return the length of what the turns say (UTF-8)."""
        return sum(len(m["content"].encode("utf-8", "surrogatepass")) for m in self.messages)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered.

    Attributes:
        text: The answer as it came, empty where the model said nothing.
        top_log_probs: Token text -> log-probability (nats) at the answer's first token that is not
            white space; None where the endpoint offers none.
        prompt_tokens: Tokens of the request; None where the endpoint does not report them.
        completion_tokens: Tokens of the answer; None where the endpoint does not report them.
        from_cache: True where nothing was sent for it.
    """

    text: str
    top_log_probs: Mapping[str, float] | None
    prompt_tokens: int | None
    completion_tokens: int | None
    from_cache: bool = False

    def to_json(self) -> str:
        """Return the answer in ASCII; `from_cache` is left out."""
        fields = dataclasses.asdict(self)
        del fields["from_cache"]
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str, *, from_cache: bool) -> "Answer":
        """Read what `to_json` wrote."""
        return cls(**json.loads(text), from_cache=from_cache)


@dataclass(frozen=True, slots=True)
class Dialect:
    """Which of the protocol's fields an endpoint takes.

    Attributes:
        top_log_probs: How many log-probabilities are asked for at each token; None: none.
        limit_field: Name of the field for `max_tokens`.
        takes_seed: Whether there is a field for the seed.
    """

    top_log_probs: int | None = TOP_LOG_PROBS[0]
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    takes_seed: bool = True

    def body(self, request: ChatRequest, *, model: str) -> dict[str, Any]:
        """Write a request for one answer."""
        body: dict[str, Any] = {
            "model": model,
            "messages": list(request.messages),
            self.limit_field: request.max_tokens,
            "temperature": request.temperature,
        }
        if request.seed is not None and self.takes_seed:
            body["seed"] = request.seed
        if self.top_log_probs is not None:
            body |= {"logprobs": True, "top_logprobs": self.top_log_probs}
        return body

    def after_refusal(self, message: str) -> "Dialect | None":
        """Return a dialect without what a refusal names; None if it names nothing of ours."""
        message = message.casefold()
        if self.limit_field == "max_tokens" and "max_completion_tokens" in message:
            return dataclasses.replace(self, limit_field="max_completion_tokens")
        if self.top_log_probs is not None and "logprob" in message:
            fewer = next((n for n in TOP_LOG_PROBS if n < self.top_log_probs), None)
            return dataclasses.replace(self, top_log_probs=fewer)
        if self.takes_seed and "seed" in message:
            return dataclasses.replace(self, takes_seed=False)
        return None


def read_answer(reply: bytes) -> Answer:
    """Read the reply to a request.

    Raises:
        NonsenseError: If it is not JSON, reports an error, or holds no choice with a message.
    """
    try:
        data = json.loads(reply)
    except ValueError as error:
        raise NonsenseError(f"not JSON: {quote(reply)}") from error
    try:
        choice = data["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise NonsenseError(f"no choice with a message: {quote(reply)}") from error
    if not isinstance(text, str | None):
        raise NonsenseError(f"a message that is not text: {quote(reply)}")
    usage = data.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Answer(
        text=text or "",
        top_log_probs=_top_log_probs(choice.get("logprobs")),
        prompt_tokens=_count(counts.get("prompt_tokens")),
        completion_tokens=_count(counts.get("completion_tokens")),
    )


def quote(reply: bytes) -> str:
    """Return an error's own message, or else how the reply begins, on one line."""
    text = reply.decode("utf-8", errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        found = text
    # {"error": {"message": ...}}, {"error": ...}, {"message": ...} and {"detail": ...} are in use.
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(name):
            found = found[name]
    line = " ".join((found if isinstance(found, str) else json.dumps(found)).split())
    cut = line if len(line) <= LONGEST_QUOTE else line[:LONGEST_QUOTE] + " ..."
    return cut or "an empty reply"


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _top_log_probs(log_probs: object) -> dict[str, float] | None:
    """Return the candidates at the first token that is not white space, equal texts added up."""
    try:
        tokens = log_probs["content"]  # type: ignore[index]
        first = next((token for token in tokens if token["token"].strip()), None)
        listed = [(top["token"], top["logprob"]) for top in first["top_logprobs"]] if first else []
    except (KeyError, TypeError, AttributeError):
        return None
    found: dict[str, float] = {}
    for text, log_prob in listed:
        if isinstance(text, str) and isinstance(log_prob, int | float) and math.isfinite(log_prob):
            found[text] = float(np.logaddexp(found.get(text, -math.inf), log_prob))
    return found or None
