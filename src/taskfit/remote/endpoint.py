"""One request to an OpenAI-compatible endpoint: sending, repeating, and saying what went wrong."""

import dataclasses
import functools
import json
import os
import re
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2

from taskfit.errors import SettingsError
from taskfit.remote.allowance import Allowance, SpentError
from taskfit.remote.chat import Answer, ChatRequest, Dialect, NonsenseError, quote, read_answer
from taskfit.remote.pace import Pace, backoff_seconds, retry_after_seconds
from taskfit.remote.usage import UsageCounter

# Later than that the user is told instead: daily quotas ask for hours.
LONGEST_RETRY_AFTER_SECONDS = 300.0


class EndpointError(Exception):
    """The endpoint gave no answer; `RemoteModel` turns it into a `RemoteError`."""


class StoppedError(EndpointError):
    """The next request would go past the budget or the number of requests allowed."""


class AbandonedError(Exception):
    """A request was given up because another one failed for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteEndpoint:
    """Where a model is asked, how patiently, and where its answers are kept.

    Raises:
        SettingsError: If a value is out of range, naming all such values.
    """

    base_url: str
    """Address before `/chat/completions`, such as `http://localhost:8000/v1`."""
    model: str
    """Name of the model as the endpoint knows it."""
    api_key_variable: str | None = None
    """Environment variable that holds the key. None: no key is sent."""
    requests_per_minute: float | None = None
    """Most requests a minute, evenly spaced, repeated ones included. None: no limit."""
    max_retries: int = 5
    """How often a request is repeated after it failed."""
    timeout_seconds: float = 60.0
    """Longest wait for one answer."""
    concurrency: int = 4
    """Requests that are under way at the same time."""
    cache: Path | None = None
    """SQLite file that keeps every answer. None: answers are not kept."""
    price_per_million_input: float | None = None
    """Price of a million prompt tokens, in any currency. None: the cost is unknown."""
    price_per_million_output: float | None = None
    """Price of a million answer tokens, in the same currency. None: the cost is unknown."""
    budget: float | None = None
    """Most money to spend, in the currency of the prices. None: no limit."""
    max_requests: int | None = None
    """Most requests to send, repeated ones included. None: no limit."""
    backoff_seconds: float = 1.0
    """Wait after the first failure; it doubles with every further one, up to a minute."""

    def __post_init__(self) -> None:
        """Collect every problem and raise once."""
        prices = (self.price_per_million_input, self.price_per_million_output)
        rate = self.requests_per_minute
        checks = {
            f"base_url is {self.base_url!r}; it must be an http:// or https:// address": (
                re.match(r"https?://[^/\s]", self.base_url) and _is_address(self.base_url)
            ),
            "model is empty": self.model,
            f"requests_per_minute is {rate}; above 0": rate is None or rate > 0,
            f"max_retries is {self.max_retries}; at least 0": self.max_retries >= 0,
            f"timeout_seconds is {self.timeout_seconds}; above 0": self.timeout_seconds > 0,
            f"concurrency is {self.concurrency}; at least 1": self.concurrency >= 1,
            f"backoff_seconds is {self.backoff_seconds}; at least 0": self.backoff_seconds >= 0,
            f"prices are {prices}; at least 0": all(p is None or p >= 0 for p in prices),
            f"budget is {self.budget}; above 0": self.budget is None or self.budget > 0,
            f"budget is {self.budget}, and what is spent is only known with both prices "
            "(input_price, output_price)": self.budget is None or None not in prices,
            f"max_requests is {self.max_requests}; at least 1": (
                self.max_requests is None or self.max_requests >= 1
            ),
        }
        problems = [problem for problem, is_right in checks.items() if not is_right]
        if problems:
            raise SettingsError("Remote endpoint: " + "; ".join(problems) + ".")

    @property
    def url(self) -> str:
        """The address that requests go to, without a user's name and password."""
        url = httpx2.URL(self.base_url)
        path = url.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        return str(url.copy_with(path=path, username=None, password=None))

    @property
    def login(self) -> tuple[str, str] | None:
        """The user's name and password in `base_url`, if there are any."""
        url = httpx2.URL(self.base_url)
        return (url.username, url.password) if url.username else None

    def api_key(self) -> str | None:
        """Read the key from the environment.

        Raises:
            EndpointError: If the variable is unset, or holds what no key can be.
        """
        if self.api_key_variable is None:
            return None
        key = os.environ.get(self.api_key_variable, "").strip()
        if not re.fullmatch(r"[!-~]+", key):
            state = "has spaces or characters outside ASCII in it" if key else "is not set"
            raise EndpointError(
                f"The environment variable {self.api_key_variable}, which should hold the key for "
                f"{self.url}, {state}. Set it to the key"
            )
        return key


def _is_address(text: str) -> bool:
    try:
        return bool(httpx2.URL(text).host)
    except httpx2.InvalidURL:
        return False


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    """Return the certificates to trust; reading them takes longer than a request on one machine."""
    return httpx2.create_ssl_context()


@dataclass(slots=True)
class EndpointState:
    """What is known of an endpoint, kept from one call to the next.

    Attributes:
        pace: When the next request may go.
        counter: What was sent.
        allowance: What may still be sent.
        dialect: What the endpoint takes, as far as is known.
        has_answered: Whether it has answered at all.
        gives_log_probs: Whether it has ever returned log-probabilities.
    """

    pace: Pace
    counter: UsageCounter
    allowance: Allowance
    dialect: Dialect = dataclasses.field(default_factory=Dialect)
    has_answered: bool = False
    gives_log_probs: bool = False

    def learn(self, dialect: Dialect, answer: Answer) -> None:
        """Take over the dialect of a request that was answered."""
        # Where a router stands before several servers, one that leaves the log-probabilities out
        # says nothing about the others.
        if self.gives_log_probs:
            return
        self.gives_log_probs = answer.top_log_probs is not None
        # An empty answer has no first token.
        if not self.gives_log_probs and answer.text.strip():
            dialect = dataclasses.replace(dialect, top_log_probs=None)
        self.dialect = dialect
        self.has_answered = True


@dataclass(frozen=True, slots=True)
class _Failure:
    """A request that may succeed when it is repeated."""

    what: str
    remedy: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    content: bytes
    retry_after: float | None


class Connection:
    """An open connection pool; `ask` may be called by several threads."""

    def __init__(
        self, endpoint: RemoteEndpoint, *, state: EndpointState, stop: threading.Event
    ) -> None:
        """Open the pool.

        Args:
            endpoint: Whom to ask.
            state: What is known of it; brought up to date.
            stop: Once set, no request is sent or repeated any more.

        Raises:
            EndpointError: If there is no key although one is named.
        """
        self._endpoint = endpoint
        self._state = state
        self._stop = stop
        self._key = endpoint.api_key()
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        self._client = httpx2.Client(
            headers=headers,
            auth=endpoint.login,
            verify=_ssl_context(),
            timeout=endpoint.timeout_seconds,
            limits=httpx2.Limits(max_connections=endpoint.concurrency),
        )

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, request: ChatRequest) -> Answer:
        """Return the endpoint's answer, repeating the request as the endpoint's settings allow.

        Raises:
            EndpointError: If there is none; its text says what came back and what to do.
            StoppedError: If it would cost more than is allowed.
            AbandonedError: If `stop` was set while this request was waiting.
        """
        allowance, answer = self._state.allowance, None
        try:
            held = allowance.hold(request)
            try:
                answer = self._answer(request)
            finally:
                allowance.settle(held, request, answer)
        except SpentError as error:
            raise StoppedError(str(error)) from error
        return answer

    def _answer(self, request: ChatRequest) -> Answer:
        dialect = self._state.dialect
        while True:
            reply = self._send(dialect.body(request, model=self._endpoint.model))
            simpler = None
            if reply.status in (400, 422):
                simpler = dialect.after_refusal(quote(reply.content))
            if simpler is None:
                break
            dialect = simpler
        if reply.status != 200:
            raise EndpointError(self._refusal(reply))
        try:
            answer = read_answer(reply.content)
        except NonsenseError as error:
            raise EndpointError(
                f"{self._endpoint.url} did not answer as an OpenAI-compatible endpoint does: "
                f"{self._safe(str(error))}. Check base_url, and what runs there"
            ) from error
        self._state.learn(dialect, answer)
        self._state.counter.count_answer(answer)
        return answer

    def _send(self, body: dict[str, object]) -> _Reply:
        """Return the first reply that repeating could not change."""
        content = json.dumps(body).encode("ascii")
        num_attempts = self._endpoint.max_retries + 1
        for attempt in range(num_attempts):
            self._wait(self._state.pace.reserve(time.monotonic()))
            self._state.allowance.send()
            self._state.counter.count_request(is_retry=attempt > 0)
            outcome = self._post(content)
            if isinstance(outcome, _Reply):
                return outcome
            failure = outcome
            asked = failure.retry_after or 0.0
            if asked > LONGEST_RETRY_AFTER_SECONDS:
                raise EndpointError(f"{failure.what} and asks to wait {asked:.0f} seconds")
            # All requests are held back, this one too: the endpoint means the client.
            self._state.pace.hold(time.monotonic() + asked)
            if attempt + 1 < num_attempts:
                self._wait(backoff_seconds(self._endpoint.backoff_seconds, attempt))
        tried = "tried once" if num_attempts == 1 else f"tried {num_attempts} times"
        raise EndpointError(f"{failure.what} ({tried}). {failure.remedy}")

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds) if seconds > 0 else self._stop.is_set():
            raise AbandonedError

    def _post(self, content: bytes) -> _Reply | _Failure:
        url, patience = self._endpoint.url, self._endpoint.timeout_seconds
        deadline = time.monotonic() + patience
        try:
            # Read in parts: the client's own timeout starts anew with every part that arrives.
            with self._client.stream("POST", url, content=content) as response:
                parts = []
                for part in response.iter_bytes():
                    parts.append(part)
                    if time.monotonic() > deadline:
                        raise httpx2.ReadTimeout("the whole answer took too long")
        except httpx2.TimeoutException:
            what = f"{url} gave no answer within {patience:g} seconds"
            return _Failure(what, "Raise timeout_seconds, lower concurrency, or try later")
        except httpx2.RequestError as error:
            reason = str(error) or type(error).__name__
            what = f"{url} cannot be reached ({self._safe(reason)})"
            return _Failure(what, "Check base_url, and that the server there is running")
        header = response.headers.get("Retry-After")
        reply = _Reply(response.status_code, b"".join(parts), retry_after_seconds(header))
        if reply.status in (408, 409, 429) or reply.status >= 500:
            what = f"{url} answered {self._described(reply)}"
            remedy = "Try later"
            if reply.status == 429:
                remedy = "Set requests_per_minute to what it allows, or lower concurrency"
            return _Failure(what, remedy, reply.retry_after)
        return reply

    def _refusal(self, reply: _Reply) -> str:
        """Say what a reply means that repeating cannot change."""
        endpoint, described = self._endpoint, self._described(reply)
        if reply.status in (401, 403):
            variable = endpoint.api_key_variable
            if variable is None:
                return (
                    f"{endpoint.url} refused a request without a key ({described}). Put the key "
                    "into an environment variable and name that variable"
                )
            return (
                f"{endpoint.url} refused the key in {variable} ({described}). Set {variable} to a "
                f"key that may use {endpoint.model}"
            )
        if reply.status == 404:
            return (
                f"{endpoint.url} does not know the model {endpoint.model!r}, or the address is "
                f"wrong ({described}). Check the model's name, and base_url: the address before "
                "/chat/completions, which mostly ends in /v1"
            )
        if 300 <= reply.status < 400:
            return f"{endpoint.url} redirects elsewhere ({described}). Set base_url to that address"
        return f"{endpoint.url} refused the request ({described})"

    def _described(self, reply: _Reply) -> str:
        return f"HTTP {reply.status}: {self._safe(quote(reply.content))}"

    def _safe(self, text: str) -> str:
        """Return a text that came from outside without the key in it."""
        return text.replace(self._key, "(the key)") if self._key else text
