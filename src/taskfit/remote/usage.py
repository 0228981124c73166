"""Counts of what was sent and what it cost."""

import dataclasses
import threading
from collections import Counter
from dataclasses import dataclass

from taskfit.remote.chat import Answer


@dataclass(frozen=True, slots=True)
class Usage:
    """What was sent through a `RemoteModel` since it was made; cached answers cost nothing.

    Attributes:
        num_requests: HTTP requests that went out, repeated ones included.
        num_retries: Requests that were repeated after a failure.
        num_answers: Answers that came back.
        num_cached: Answers that were given without a request.
        prompt_tokens: Tokens of the requests that were answered, as reported.
        completion_tokens: Tokens of the answers that came back, as reported.
        num_uncounted: Answers whose tokens the endpoint did not report.
        cost: In the currency of the prices; None if a price or any token count is unknown.
    """

    num_requests: int = 0
    num_retries: int = 0
    num_answers: int = 0
    num_cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_uncounted: int = 0
    cost: float | None = None


class UsageCounter:
    """Counts that several threads add to."""

    def __init__(self, *, price_input: float | None, price_output: float | None) -> None:
        """Start from nothing; prices are per million tokens."""
        self._prices = (price_input, price_output)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count_request(self, *, is_retry: bool) -> None:
        """Count an HTTP request that goes out."""
        self._add(num_requests=1, num_retries=int(is_retry))

    def count_answer(self, answer: Answer) -> None:
        """Count an answer that came back."""
        prompt, completion = answer.prompt_tokens, answer.completion_tokens
        self._add(
            num_answers=1,
            prompt_tokens=prompt or 0,
            completion_tokens=completion or 0,
            num_uncounted=int(prompt is None or completion is None),
        )

    def count_cached(self, count: int) -> None:
        """Count answers given without a request."""
        self._add(num_cached=count)

    def usage(self) -> Usage:
        """Return the counts so far with their cost."""
        with self._lock:
            usage = Usage(**self._counts)
        price_input, price_output = self._prices
        if price_input is None or price_output is None or usage.num_uncounted:
            return usage
        cost = usage.prompt_tokens * price_input + usage.completion_tokens * price_output
        return dataclasses.replace(usage, cost=cost / 1e6)

    def _add(self, **counts: int) -> None:
        with self._lock:
            self._counts.update(counts)
