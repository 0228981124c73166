"""Laws of waiting, on a clock that is a number."""

import itertools
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskfit.remote.pace import Pace, backoff_seconds, retry_after_seconds


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 3.0), min_size=2, max_size=50), st.floats(1.0, 600.0))
def test_no_window_of_a_minute_holds_more_than_the_limit(gaps: list[float], rate: float) -> None:
    pace, now, starts = Pace(rate), 0.0, []
    for gap in gaps:
        now += gap
        wait = pace.reserve(now)
        assert wait >= 0.0
        starts.append(now + wait)
    steps = [b - a for a, b in itertools.pairwise(starts)]
    assert min(steps) >= 60.0 / rate - 1e-9


def test_without_a_limit_nothing_waits_unless_it_is_held() -> None:
    pace = Pace(None)
    assert [pace.reserve(5.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    pace.hold(7.5)
    pace.hold(6.0)
    assert (pace.reserve(5.0), pace.reserve(8.0)) == (2.5, 0.0)


@pytest.mark.parametrize("attempt", range(12))
def test_backoff_doubles_up_to_a_minute_with_jitter(attempt: int) -> None:
    longest = min(0.5 * 2**attempt, 60.0)
    waits = [backoff_seconds(0.5, attempt) for _ in range(50)]
    assert all(longest / 2 <= wait <= longest for wait in waits)
    assert len(set(waits)) > 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("-4", 0.0),
        (None, None),
        ("soon", None),
        ("nan", None),
        ("", None),
    ],
)
def test_retry_after_is_read_as_seconds(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header) == seconds


def test_retry_after_is_read_as_a_date() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=100)
    assert retry_after_seconds(format_datetime(soon, usegmt=True)) == pytest.approx(100, abs=3)
    assert retry_after_seconds(format_datetime(soon.replace(tzinfo=None))) == pytest.approx(
        100, abs=3
    )
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
