"""When the next request may go: a limit on the rate, and waiting after a failure."""

import math
import random
import threading
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_BACKOFF_SECONDS = 60.0


class Pace:
    """Evenly spaced places in time, one for each request, shared by all threads."""

    def __init__(self, requests_per_minute: float | None) -> None:
        """Set the limit; None: no limit."""
        self._interval = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next = -math.inf
        self._lock = threading.Lock()

    def reserve(self, now: float) -> float:
        """Take the next free place; return how long to wait for it from `now` (seconds)."""
        with self._lock:
            start = max(now, self._next)
            self._next = start + self._interval
            return start - now

    def hold(self, until: float) -> None:
        """Give no place before `until`, on the clock of `reserve` (seconds)."""
        with self._lock:
            self._next = max(self._next, until)


def backoff_seconds(base: float, attempt: int) -> float:
    """Return the wait after failure number `attempt` (from 0): doubling, jittered by half.

    Without the jitter, clients that failed together would come back together.
    """
    longest: float = min(base * 2.0**attempt, LONGEST_BACKOFF_SECONDS)
    return longest * random.uniform(0.5, 1.0)


def retry_after_seconds(header: str | None) -> float | None:
    """Read `Retry-After` (RFC 9110, section 10.2.3: seconds or a date); None if it says nothing."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        # A date whose zone is given as -0000 comes without one; such dates are in UTC.
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None
