"""Between many connections and one engine: who may wait, and when it is too late.

Everything about connections runs in asyncio; one thread owns the engine (`worker.py`). It takes
what has arrived, by tokens and in turn between models (`waiting.py`), scores it in one call, lets
every text that is being written go on by a token, and begins again. What arrives meanwhile is the
next batch: batches grow with the load, and a lone request never waits.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from taskfit.serve.limits import Limits
from taskfit.serve.metrics import Metrics
from taskfit.serve.waiting import REQUEST_ID, STOPPING, BusyError, Ticket, WaitingRoom, Writing
from taskfit.serve.work import (
    Answers,
    Engine,
    GenerateRequest,
    Job,
    ModelCard,
    Piece,
    PromptToken,
    RequestError,
    StateRequest,
    TextsRequest,
)
from taskfit.serve.worker import Worker, as_request_error

T = TypeVar("T")
Scored = TextsRequest | StateRequest
LONGEST_RETRY_SECONDS = 60


class Scheduler:
    """The queue before an engine.

    Attributes:
        limits: Of the queue, of batches and of time.
        metrics: Told of all.
        num_requests: Requests that wait or run.
    """

    def __init__(
        self, make_engine: Callable[[], Engine], *, limits: Limits, metrics: Metrics
    ) -> None:
        """Begin to load the engine, in the thread that will own it."""
        self.limits = limits
        self.metrics = metrics
        self.num_requests = 0
        self._is_draining = False
        self._room = WaitingRoom(
            max_tokens_per_batch=limits.max_tokens_per_batch, max_delay=limits.max_delay_ms / 1000
        )
        self._encoders = ThreadPoolExecutor(limits.encode_threads, "taskfit-encode")
        self._worker = Worker(make_engine, self._room, limits=limits, metrics=metrics)
        metrics.waiting.set_function(lambda: self.num_requests)
        metrics.waiting_tokens.set_function(lambda: self._room.num_tokens)

    @property
    def has_failed(self) -> bool:
        """Whether the engine will never answer again."""
        return self._worker.has_failed

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self._worker.engine is not None and not self.has_failed and not self._is_draining

    def engine(self) -> Engine:
        """Return the engine.

        Raises:
            BusyError: 503 while it is loaded, has failed, or the server stops.
        """
        if self.has_failed:
            raise BusyError(503, "This server's models do not work; its log says why.")
        if self._is_draining:
            raise BusyError(503, STOPPING)
        if self._worker.engine is None:
            raise BusyError(503, "This server is loading its models; try again soon.")
        return self._worker.engine

    def cards(self) -> Sequence[ModelCard]:
        """Return what is served; raises as `engine`."""
        self.engine()
        return self._worker.cards

    async def score(self, requests: Sequence[Scored], *, deadline: float) -> list[Answers]:
        """Answer requests of one model in one batch.

        Args:
            requests: At least one.
            deadline: Of `time.monotonic`.

        Returns:
            Their answers in order.

        Raises:
            RequestError: What the engine refuses; 422 for too many tokens, 429 if the queue is
                full, 503 if the server cannot answer, 504 past the deadline.
        """
        engine = self.engine()
        with self._place():
            begun = time.monotonic()
            encoding = self._in_thread(lambda: [engine.encode(one) for one in requests])
            jobs = await _in_time(encoding, deadline)
            self.metrics.tokenization.observe(time.monotonic() - begun)
            ticket = self._ticket(jobs, deadline)
            self._room.add(ticket)
            try:
                return await _in_time(ticket.answer, deadline)
            finally:
                ticket.is_dropped = True

    async def tokens(self, request: Scored, *, deadline: float) -> Sequence[PromptToken]:
        """Return the first prompt of a request as the model reads it; raises as `score`."""
        engine = self.engine()
        with self._place():
            return await _in_time(self._in_thread(lambda: engine.tokens(request)), deadline)

    async def generate(
        self, request: GenerateRequest, *, deadline: float
    ) -> AsyncGenerator[Piece, None]:
        """Write a text; closing the iterator stops the writing.

        Args:
            request: What to write.
            deadline: By when the first piece must have come, of `time.monotonic`.

        Yields:
            What comes next, until a piece has a finish reason.

        Raises:
            RequestError: As `score` does.
        """
        self.engine()
        with self._place():
            writing = Writing(request, deadline=deadline)
            self._room.add_writing(writing)
            try:
                piece = await _in_time(writing.pieces.get(), deadline)
                while not isinstance(piece, Exception):
                    yield piece
                    if piece.finish_reason is not None:
                        return
                    piece = await writing.pieces.get()
                raise piece
            finally:
                writing.is_dropped = True

    def drain(self) -> None:
        """Take no more requests; those that were accepted go on."""
        self._is_draining = True

    def close(self) -> None:
        """Let the engine end after what runs; whoever waits then gets a 503."""
        self.drain()
        self._room.close()

    def stop(self) -> None:
        """End the threads, and wait for that."""
        self.close()
        self._encoders.shutdown(wait=False, cancel_futures=True)
        self._worker.join(self.limits.grace)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._encoders, work)
        except Exception as error:
            raise as_request_error(error, REQUEST_ID.get()) from None

    def _ticket(self, jobs: Sequence[Job], deadline: float) -> Ticket:
        ticket = Ticket(jobs, deadline=deadline)
        if ticket.num_tokens > self.limits.max_tokens:
            raise RequestError(
                422,
                f"{ticket.num_tokens:,} tokens; this server takes at most "
                f"{self.limits.max_tokens:,} in a request. Send it in parts.",
            )
        waiting = self._room.num_tokens
        if waiting and waiting + ticket.num_tokens > self.limits.max_queue_tokens:
            raise self._full(f"{waiting:,} tokens")
        return ticket

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self.num_requests >= self.limits.max_queue:
            raise self._full(f"{self.num_requests:,} requests")
        self.num_requests += 1
        try:
            yield
        finally:
            self.num_requests -= 1

    def _full(self, what: str) -> BusyError:
        seconds = math.ceil(self._room.num_tokens / self._worker.rate)
        seconds = max(1, min(seconds, LONGEST_RETRY_SECONDS))
        return BusyError(429, f"The queue is full ({what}); try again later.", retry_after=seconds)


async def _in_time(waited_for: Awaitable[T], deadline: float) -> T:
    """Wait until a deadline of `time.monotonic`.

    Raises:
        RequestError: 504 past it.
    """
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await waited_for
    except TimeoutError:
        raise RequestError(504, "No answer in time; the server is busy.") from None
