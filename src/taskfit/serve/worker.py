"""The one thread that owns the engine."""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from taskfit.errors import TaskfitError
from taskfit.serve.limits import Limits
from taskfit.serve.metrics import Metrics
from taskfit.serve.waiting import (
    STOPPING,
    BusyError,
    Result,
    Ticket,
    WaitingRoom,
    Writing,
    deliver,
)
from taskfit.serve.work import Engine, ModelCard, RequestError

log = logging.getLogger("taskfit.serve")
# Tokens a second before the first batch has told.
FIRST_RATE = 2000.0


def log_failure(what: str, error: BaseException) -> None:
    """Log where an exception came from; its message may hold what a user wrote, and stays out."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s: %s\n%s", what, type(error).__name__, frames)


def as_request_error(error: Exception, request_id: str) -> RequestError:
    """Return what a client is told of an exception; our own mistakes go to the log."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, TaskfitError):
        return RequestError(422, str(error))
    log_failure(f"Request {request_id} failed", error)
    return RequestError(500, "The server failed on this request; its log says where.")


def _told(result: Result, request_id: str) -> Result:
    return as_request_error(result, request_id) if isinstance(result, Exception) else result


class Worker:
    """Loads the engine, and lets it work on what waits.

    Attributes:
        engine: None until it is loaded.
        cards: What it serves.
        has_failed: Whether it could not be loaded, or its thread has ended by a mistake of ours.
        rate: Tokens a second of recent batches.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        room: WaitingRoom,
        *,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        """Start the thread."""
        self.engine: Engine | None = None
        self.cards: Sequence[ModelCard] = ()
        self.has_failed = False
        self.rate = FIRST_RATE
        self._make_engine = make_engine
        self._room = room
        self._limits = limits
        self._metrics = metrics
        self._running: Sequence[Ticket] = ()
        self._writings: list[Writing] = []
        self._thread = threading.Thread(target=self._run, name="taskfit-engine", daemon=True)
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread, which comes once the room is closed."""
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            engine = self._make_engine()
            self.cards = engine.models()
            self.engine = engine
            while self._turn(engine):
                pass
        except BaseException as error:  # a thread that died silently would leave all hanging
            log_failure("The engine's thread has ended", error)
            if isinstance(error, TaskfitError):
                log.error("%s", error)
            self.has_failed = True
        finally:
            self._room.close()
            tickets, writings = self._room.clear()
            ended = BusyError(503, STOPPING)
            deliver([(ticket, [ended]) for ticket in (*self._running, *tickets)])
            for writing in (*writings, *self._writings):
                self._close(writing)
                writing.put(ended)

    def _turn(self, engine: Engine) -> bool:
        """Score one batch, and let every text that is written go on by a token."""
        taken = self._room.take(
            free_writings=self._limits.max_generations - len(self._writings),
            may_wait=not self._writings,
        )
        if taken is None:
            return False
        batch, begun = taken
        if batch:
            self._score(engine, batch)
        for writing in begun:
            self._begin(engine, writing)
        self._writings = [writing for writing in self._writings if self._goes_on(writing)]
        return True

    def _score(self, engine: Engine, batch: Sequence[Ticket]) -> None:
        begun = time.monotonic()
        jobs = [job for ticket in batch for job in ticket.jobs]
        num_tokens = sum(ticket.num_tokens for ticket in batch)
        for ticket in batch:
            self._metrics.queue.observe(begun - ticket.queued_at)
        self._metrics.batch_requests.observe(len(batch))
        self._metrics.batch_tokens.observe(num_tokens)
        self._running = batch
        try:
            results: Sequence[Result] = engine.score(jobs)
            if len(results) != len(jobs):
                raise RuntimeError("The engine returned another number of answers than of jobs.")
        except Exception as error:
            results = [error] * len(jobs)
        finally:
            self._room.finished(batch)
        seconds = max(time.monotonic() - begun, 1e-6)
        self._metrics.inference.observe(seconds)
        self.rate += 0.2 * (num_tokens / seconds - self.rate)
        settled = []
        for ticket in batch:
            own, results = results[: len(ticket.jobs)], results[len(ticket.jobs) :]
            settled.append((ticket, [_told(result, ticket.request_id) for result in own]))
        deliver(settled)
        self._running = ()

    def _begin(self, engine: Engine, writing: Writing) -> None:
        try:
            writing.iterator = engine.generate(writing.request)
        except Exception as error:
            writing.put(as_request_error(error, writing.request_id))
        else:
            self._writings.append(writing)

    def _goes_on(self, writing: Writing) -> bool:
        assert writing.iterator is not None
        if writing.is_dropped:
            self._close(writing)
            return False
        try:
            piece = next(writing.iterator)
        except Exception as error:  # also StopIteration: a text without a finish reason
            writing.put(as_request_error(error, writing.request_id))
            return False
        self._metrics.generated.inc()
        writing.put(piece)
        if piece.finish_reason is None:
            return True
        self._close(writing)
        return False

    def _close(self, writing: Writing) -> None:
        """Free what the engine holds for a text."""
        close = getattr(writing.iterator, "close", None)
        if close is None:
            return
        try:
            close()
        except Exception as error:
            log_failure("A text could not be closed", error)
