"""What waits for the engine, and which of it is scored together next."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from taskfit.serve.work import Answers, GenerateRequest, Job, Piece, RequestError

Result = Answers | Exception
# Of the request that is served, for answers and the log.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="-")
STOPPING = "This server is stopping; ask another."


class BusyError(RequestError):
    """A request that may succeed later.

    Attributes:
        retry_after: Seconds after which to try again.
    """

    def __init__(self, status: int, message: str, *, retry_after: int = 1) -> None:
        """Say what is wrong."""
        super().__init__(status, message)
        self.retry_after = retry_after


class Ticket:
    """Jobs of one request, which are scored together.

    Attributes:
        jobs: At least one, all of one model.
        num_tokens: Of all.
        deadline: Of `time.monotonic`; not begun after it.
        queued_at: Of `time.monotonic`.
        request_id: Of the request.
        is_dropped: Whether nobody waits any more.
        answer: The answers in order, or the first exception.
    """

    def __init__(self, jobs: Sequence[Job], *, deadline: float) -> None:
        """Begin to wait, on the loop that runs."""
        self.jobs = jobs
        self.num_tokens = sum(job.num_tokens for job in jobs)
        self.deadline = deadline
        self.queued_at = time.monotonic()
        self.request_id = REQUEST_ID.get()
        self.is_dropped = False
        self.loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[list[Answers]] = self.loop.create_future()

    def settle(self, results: Sequence[Result]) -> None:
        """Give the answers to who waits; on its loop."""
        if self.answer.done():
            return
        answers = []
        for result in results:
            if isinstance(result, Exception):
                self.answer.set_exception(result)
                return
            answers.append(result)
        self.answer.set_result(answers)


class Writing:
    """A text that is written for one request, token by token.

    Attributes:
        request: What to write.
        deadline: Of `time.monotonic`; not begun after it.
        request_id: Of the request.
        is_dropped: Whether nobody reads any more.
        pieces: What was written, or the exception that ended it.
        iterator: The engine's, once it has begun.
    """

    def __init__(self, request: GenerateRequest, *, deadline: float) -> None:
        """Begin to wait, on the loop that runs."""
        self.request = request
        self.deadline = deadline
        self.request_id = REQUEST_ID.get()
        self.is_dropped = False
        self.loop = asyncio.get_running_loop()
        self.pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self.iterator: Iterator[Piece] | None = None

    def put(self, piece: Piece | Exception) -> None:
        """Hand on what comes next; from any thread."""
        # A loop that is closed has nobody who waits.
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


def deliver(settled: Sequence[tuple[Ticket, Sequence[Result]]]) -> None:
    """Settle tickets from another thread; those of one loop wake it once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Sequence[Result]]]] = {}
    for ticket, results in settled:
        by_loop.setdefault(ticket.loop, []).append((ticket, results))

    def settle(of_loop: list[tuple[Ticket, Sequence[Result]]]) -> None:
        for ticket, results in of_loop:
            ticket.settle(results)

    for loop, of_loop in by_loop.items():
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, of_loop)


class WaitingRoom:
    """Tickets by model, and writings in order; any thread may use it.

    Attributes:
        num_tokens: Of tickets that wait or run.
    """

    def __init__(self, *, max_tokens_per_batch: int, max_delay: float) -> None:
        """Begin empty.

        Args:
            max_tokens_per_batch: What a batch may have; a ticket that has more goes alone.
            max_delay: Seconds that a ticket waits for others.
        """
        self.num_tokens = 0
        self._max_tokens = max_tokens_per_batch
        self._max_delay = max_delay
        self._changed = threading.Condition()
        self._tickets: dict[str, deque[Ticket]] = {}
        self._writings: deque[Writing] = deque()
        self._is_closed = False

    def add(self, ticket: Ticket) -> None:
        """Let a ticket wait; raises a `BusyError` once closed."""
        with self._open():
            self.num_tokens += ticket.num_tokens
            self._tickets.setdefault(ticket.jobs[0].model, deque()).append(ticket)

    def add_writing(self, writing: Writing) -> None:
        """Let a writing wait; raises a `BusyError` once closed."""
        with self._open():
            self._writings.append(writing)

    def finished(self, tickets: Sequence[Ticket]) -> None:
        """Take tickets that ran off the count."""
        with self._changed:
            self.num_tokens -= sum(ticket.num_tokens for ticket in tickets)

    def close(self) -> None:
        """Take nothing more; `take` ends."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def clear(self) -> tuple[list[Ticket], list[Writing]]:
        """Return what still waits, for the last time."""
        with self._changed:
            tickets = [ticket for queue in self._tickets.values() for ticket in queue]
            writings = list(self._writings)
            self._tickets.clear()
            self._writings.clear()
        return tickets, writings

    def take(
        self, *, free_writings: int, may_wait: bool
    ) -> tuple[list[Ticket], list[Writing]] | None:
        """Return the next batch and the writings that begin.

        What nobody waits for any more, or is too late, is forgotten: those who wait look at the
        clock themselves.

        Args:
            free_writings: How many may begin.
            may_wait: Whether to wait until there is something.

        Returns:
            Tickets to be scored together and writings; None once closed.
        """
        with self._changed:
            while not self._is_closed:
                self._weed()
                writings = self._begin(free_writings)
                delay = self._delay(time.monotonic())
                if delay == 0 or writings or not may_wait:
                    return (self._batch() if delay == 0 else []), writings
                self._changed.wait(delay)
            return None

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._changed:
            if self._is_closed:
                raise BusyError(503, STOPPING)
            yield
            self._changed.notify()

    def _weed(self) -> None:
        now = time.monotonic()

        def stays(one: Ticket | Writing) -> bool:
            if not one.is_dropped and one.deadline > now:
                return True
            if isinstance(one, Ticket):
                self.num_tokens -= one.num_tokens
            return False

        self._tickets = {
            model: kept
            for model, queue in self._tickets.items()
            if (kept := deque(one for one in queue if stays(one)))
        }
        self._writings = deque(one for one in self._writings if stays(one))

    def _begin(self, free_writings: int) -> list[Writing]:
        count = min(free_writings, len(self._writings))
        return [self._writings.popleft() for _ in range(count)]

    def _delay(self, now: float) -> float | None:
        """Return the seconds until a batch is due; None where nothing waits."""
        if not self._tickets:
            return None
        if self._max_delay == 0:
            return 0
        oldest = min(queue[0].queued_at for queue in self._tickets.values())
        waiting = sum(ticket.num_tokens for queue in self._tickets.values() for ticket in queue)
        return 0 if waiting >= self._max_tokens else max(0.0, oldest + self._max_delay - now)

    def _batch(self) -> list[Ticket]:
        """Take tickets in turn between models until the next one does not fit."""
        batch: list[Ticket] = []
        room = self._max_tokens
        turn = deque(self._tickets)
        while turn:
            model = turn.popleft()
            queue = self._tickets[model]
            if batch and queue[0].num_tokens > room:
                continue
            ticket = queue.popleft()
            batch.append(ticket)
            room -= ticket.num_tokens
            # Whoever was served goes to the end, in this batch and for the next.
            del self._tickets[model]
            if queue:
                self._tickets[model] = queue
                turn.append(model)
        return batch
