"""Ask a remote model many things: from the cache where possible, several at a time, resumably."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event

from taskfit.errors import TaskfitError
from taskfit.remote.allowance import Allowance
from taskfit.remote.cache import AnswerCache, CacheError, cache_key
from taskfit.remote.chat import Answer, ChatRequest, Dialect
from taskfit.remote.endpoint import (
    Connection,
    EndpointError,
    EndpointState,
    RemoteEndpoint,
    StoppedError,
)
from taskfit.remote.estimate import Estimate, estimate
from taskfit.remote.pace import Pace
from taskfit.remote.usage import Usage, UsageCounter


class RemoteError(TaskfitError):
    """A remote model gave no answer, or its answers cannot be kept."""


class RemoteLimitError(RemoteError):
    """The budget, or the number of requests allowed, is used up."""


class RemoteModel:
    """A model behind an OpenAI-compatible endpoint; usable from one thread at a time."""

    def __init__(self, endpoint: RemoteEndpoint) -> None:
        """Bind to an endpoint. Nothing is sent, read or opened yet."""
        self.endpoint = endpoint
        prices = (endpoint.price_per_million_input, endpoint.price_per_million_output)
        self._prices = prices
        self._state = EndpointState(
            pace=Pace(endpoint.requests_per_minute),
            counter=UsageCounter(price_input=prices[0], price_output=prices[1]),
            allowance=Allowance(
                max_requests=endpoint.max_requests,
                budget=endpoint.budget,
                prices=(prices[0] or 0.0, prices[1] or 0.0),
            ),
        )

    @property
    def usage(self) -> Usage:
        """What was sent so far, and what it cost."""
        return self._state.counter.usage()

    def complete(
        self,
        requests: Sequence[ChatRequest],
        *,
        advance: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Return the answers to requests, in their order.

        Answers in the cache are taken from there, equal requests are sent once, and every new
        answer is on disk before the next step. The key of an answer is what is asked at first, log-
        probabilities included; so answers that came without them are found again as they are.

        Args:
            requests: What is asked.
            advance: Called in this thread with how many answers have become known.

        Raises:
            RemoteLimitError: If the endpoint's budget or number of requests is used up.
            RemoteError: If an answer is missing after all retries, or the cache cannot be used.
                Requests under way are finished first and their answers saved; the same call
                continues from there.
        """
        keys = [self._key_of(request) for request in requests]
        distinct = dict(zip(keys, requests, strict=True))
        with self._cache() as cache, self._explained(cache, distinct):
            answers = cache.get_many(distinct) if cache else {}
            num_of_key = Counter(keys)
            self._advance(sum(num_of_key[key] for key in answers), advance, is_cached=True)
            missing = {key: asked for key, asked in distinct.items() if key not in answers}
            # Closed before the cache is, also when `advance` raises.
            with contextlib.closing(self._ask(missing, cache)) as arriving:
                for key, answer in arriving:
                    answers[key] = answer
                    self._advance(1, advance, is_cached=False)
                    self._advance(num_of_key[key] - 1, advance, is_cached=True)
        place_of = {key: place for place, key in reversed(list(enumerate(keys)))}
        sent = {place_of[key] for key in missing}
        return [
            dataclasses.replace(answers[key], from_cache=place not in sent)
            for place, key in enumerate(keys)
        ]

    def known(self, requests: Sequence[ChatRequest]) -> list[Answer | None]:
        """Return those answers to requests that are in the cache; nothing is sent or counted.

        Raises:
            RemoteError: If the cache cannot be used.
        """
        keys = [self._key_of(request) for request in requests]
        distinct = dict(zip(keys, requests, strict=True))
        with self._cache() as cache, self._explained(cache, distinct):
            found = cache.get_many(distinct) if cache else {}
        return [found.get(key) for key in keys]

    def estimate(self, requests: Sequence[ChatRequest]) -> Estimate:
        """Reckon what requests will cost, equal ones once, from the answers in the cache.

        Raises:
            RemoteError: If the cache cannot be used.
        """
        distinct = list({self._key_of(request): request for request in requests}.values())
        return estimate(distinct, self.known(distinct), prices=self._prices)

    def paid(self, requests: Sequence[ChatRequest]) -> Usage:
        """Return what the answers in the cache did cost, whichever command asked; each once.

        Raises:
            RemoteError: If the cache cannot be used.
        """
        distinct = {self._key_of(request): request for request in requests}
        counter = UsageCounter(price_input=self._prices[0], price_output=self._prices[1])
        for answer in self.known(list(distinct.values())):
            if answer is not None:
                counter.count_answer(answer)
        return counter.usage()

    def _ask(
        self, missing: Mapping[str, ChatRequest], cache: AnswerCache | None
    ) -> Generator[tuple[str, Answer]]:
        """Yield answers as they come, each saved before it is yielded."""
        if not missing:
            return
        stop = Event()

        def fetch(key: str) -> tuple[str, Answer]:
            answer = connection.ask(missing[key])
            if cache is not None:
                cache.put(key, answer)
            return key, answer

        keys = list(missing)
        # The first goes alone: a wrong key or address costs one request, and what the endpoint
        # does not take is known before the others go.
        num_first = 0 if self._state.has_answered else 1
        with (
            Connection(self.endpoint, state=self._state, stop=stop) as connection,
            ThreadPoolExecutor(self.endpoint.concurrency) as pool,
        ):
            try:
                for batch in (keys[:num_first], keys[num_first:]):
                    for future in as_completed([pool.submit(fetch, key) for key in batch]):
                        yield future.result()
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)

    def _key_of(self, request: ChatRequest) -> str:
        return cache_key(self.endpoint.url, Dialect().body(request, model=self.endpoint.model))

    def _advance(
        self, count: int, advance: Callable[[int], None] | None, *, is_cached: bool
    ) -> None:
        if is_cached:
            self._state.counter.count_cached(count)
        if advance is not None and count > 0:
            advance(count)

    @contextlib.contextmanager
    def _cache(self) -> Iterator[AnswerCache | None]:
        if self.endpoint.cache is None:
            yield None
            return
        try:
            cache = AnswerCache(self.endpoint.cache)
        except CacheError as error:
            raise RemoteError(f"{error}.") from error
        with contextlib.closing(cache):
            yield cache

    @contextlib.contextmanager
    def _explained(
        self, cache: AnswerCache | None, distinct: Mapping[str, ChatRequest]
    ) -> Iterator[None]:
        """Turn a failure into one message that also says how many answers are safe."""
        try:
            yield
        except (EndpointError, CacheError) as error:
            message = f"{error}. {self._saved(cache, distinct)}"
            kind = RemoteLimitError if isinstance(error, StoppedError) else RemoteError
            raise kind(message) from error

    def _saved(self, cache: AnswerCache | None, distinct: Mapping[str, ChatRequest]) -> str:
        if cache is None:
            return (
                f"No cache is set, so nothing of these {len(distinct)} requests is kept: name a "
                "file for it, and the same command continues where it stopped."
            )
        try:
            num_safe = len(cache.get_many(distinct))
        except CacheError:
            return "Answers saved before are still in it."
        verb = "is" if num_safe == 1 else "are"
        return (
            f"{num_safe} of {len(distinct)} answers {verb} safe in {cache.path}; the same command "
            "continues from there."
        )
