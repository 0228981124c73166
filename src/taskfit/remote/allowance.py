"""What may still be sent: a number of requests, and an amount of money."""

import threading

from taskfit.remote.chat import Answer, ChatRequest

# Of a request that no answer has told the tokens of yet: few texts have more tokens than that, and
# what a server writes around the turns is counted with them.
TOKENS_PER_BYTE = 0.5
TOKENS_AROUND = 16


class SpentError(Exception):
    """The next request would go past what is allowed; nothing was sent for it."""


class Allowance:
    """Counts what is sent against its limits, before it is sent; shared by threads.

    Money is set aside for every request under way: all of the longest answer it may get, and a
    prompt of as many tokens a byte as the densest so far. So a budget is kept, but for a text that
    is denser than all before it.
    """

    def __init__(
        self, *, max_requests: int | None, budget: float | None, prices: tuple[float, float]
    ) -> None:
        """Start from nothing sent.

        Args:
            max_requests: Most requests, repeated ones included; None: no limit.
            budget: Most money, in the currency of the prices; None: no limit.
            prices: Of a million tokens of prompts, and of answers.
        """
        self._max_requests, self._budget, self._prices = max_requests, budget, prices
        self._num_sent, self._num_held, self._spent, self._held = 0, 0, 0.0, 0.0
        self._tokens_per_byte: float | None = None
        self._lock = threading.Condition()

    def send(self) -> None:
        """Count a request that goes out.

        Raises:
            SpentError: If no more may go.
        """
        with self._lock:
            if self._max_requests is not None and self._num_sent >= self._max_requests:
                raise SpentError(f"The {self._max_requests:,} requests that are allowed are sent")
            self._num_sent += 1

    def hold(self, request: ChatRequest) -> float:
        """Set aside what a request may cost; return it, for `settle`.

        Where requests under way might use up the budget it is waited for what they do cost.

        Raises:
            SpentError: If the budget does not hold it.
        """
        with self._lock:
            most = self._most(request)
            while self._budget is not None and self._spent + self._held + most > self._budget:
                if self._num_held:
                    self._lock.wait()
                    most = self._most(request)
                    continue
                raise SpentError(
                    f"The budget of {self._budget:g} is used up: {self._spent:.4g} spent, and the "
                    f"next request may cost {most:.2g}"
                )
            self._held, self._num_held = self._held + most, self._num_held + 1
            return most

    def settle(self, held: float, request: ChatRequest, answer: Answer | None) -> None:
        """Count what a request did cost, in place of what was held; None: it got no answer."""
        with self._lock:
            self._num_held -= 1
            self._held = self._held - held if self._num_held else 0.0
            self._lock.notify_all()
            if answer is None:
                return
            prompt, completion = answer.prompt_tokens, answer.completion_tokens
            if prompt is None or completion is None:
                self._spent += held
                return
            self._spent += (prompt * self._prices[0] + completion * self._prices[1]) / 1e6
            density = prompt / max(request.num_bytes, 1)
            self._tokens_per_byte = max(density, self._tokens_per_byte or 0.0)

    def _most(self, request: ChatRequest) -> float:
        tokens = request.num_bytes * TOKENS_PER_BYTE + TOKENS_AROUND * len(request.messages)
        if self._tokens_per_byte is not None:
            tokens = request.num_bytes * self._tokens_per_byte
        return (tokens * self._prices[0] + request.max_tokens * self._prices[1]) / 1e6
