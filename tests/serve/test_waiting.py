"""What is scored together: laws of the waiting room, without a server."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskfit.serve.waiting import BusyError, Ticket, WaitingRoom, Writing
from taskfit.serve.work import GenerateRequest

BUDGET = 10


@dataclass
class Tokens:
    model: str
    num_tokens: int
    num_texts: int = 1


def ticket(model: str, num_tokens: int, *, seconds: float = 60.0) -> Ticket:
    return Ticket([Tokens(model, num_tokens)], deadline=time.monotonic() + seconds)


def room_of(tickets: list[Ticket], *, max_delay: float = 0.0) -> WaitingRoom:
    room = WaitingRoom(max_tokens_per_batch=BUDGET, max_delay=max_delay)
    for one in tickets:
        room.add(one)
    return room


def batches(room: WaitingRoom) -> list[list[Ticket]]:
    found = []
    while taken := room.take(free_writings=0, may_wait=False):
        if not taken[0]:
            break
        room.finished(taken[0])
        found.append(taken[0])
    return found


arrivals = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 15)), max_size=25)


@given(arrivals)
def test_all_are_taken_once_in_order_within_budget_and_in_turn(
    arrived: list[tuple[str, int]],
) -> None:
    async def check() -> None:
        tickets = [ticket(*one) for one in arrived]
        room = room_of(tickets)
        assert room.num_tokens == sum(n for _, n in arrived)
        found = batches(room)
        assert room.num_tokens == 0
        flat = [one for batch in found for one in batch]
        assert Counter(map(id, flat)) == Counter(map(id, tickets))
        for model in "abc":
            own = [one for one in tickets if one.jobs[0].model == model]
            assert [one for one in flat if one.jobs[0].model == model] == own
        for batch in found:
            assert len(batch) == 1 or sum(one.num_tokens for one in batch) <= BUDGET
        # With equal sizes no model is ahead of another that waits by more than one.
        equal = [ticket(model, 1) for model, _ in arrived]
        for batch in batches(room_of(equal)):
            counts = Counter(one.jobs[0].model for one in batch)
            left = Counter(one.jobs[0].model for one in equal) - counts
            waiting = [counts[model] for model in left]
            assert not waiting or max(counts.values()) - min(waiting) <= 1
            equal = [one for one in equal if one not in batch]

    asyncio.run(check())


def test_a_large_ticket_goes_alone_and_is_not_passed_for_ever() -> None:
    async def check() -> None:
        large = ticket("a", 50)
        room = room_of([ticket("b", 4), large, ticket("b", 4), ticket("b", 4), ticket("b", 4)])
        assert [large] in batches(room)[:2]

    asyncio.run(check())


def test_what_is_late_or_dropped_is_never_taken() -> None:
    async def check() -> None:
        late, gone, kept = ticket("a", 1, seconds=-1), ticket("a", 1), ticket("a", 1)
        room = room_of([late, gone, kept])
        gone.is_dropped = True
        assert batches(room) == [[kept]]
        assert room.num_tokens == 0

    asyncio.run(check())


def test_company_is_waited_for_no_longer_than_asked_and_not_past_the_budget() -> None:
    async def check() -> None:
        room = room_of([ticket("a", 1)], max_delay=0.05)
        assert room.take(free_writings=0, may_wait=False) == ([], [])
        begun = time.monotonic()
        taken = room.take(free_writings=0, may_wait=True)
        assert taken is not None
        assert len(taken[0]) == 1
        assert 0.02 < time.monotonic() - begun < 5
        full = room_of([ticket("a", BUDGET)], max_delay=60)
        taken = full.take(free_writings=0, may_wait=False)
        assert taken is not None
        assert len(taken[0]) == 1

    asyncio.run(check())


def test_a_closed_room_takes_nothing_and_gives_back_what_waits() -> None:
    async def check() -> None:
        one = ticket("a", 1)
        writing = Writing(GenerateRequest("a", "p"), deadline=time.monotonic() + 60)
        room = room_of([one])
        room.add_writing(writing)
        room.close()
        assert room.take(free_writings=1, may_wait=True) is None
        assert room.clear() == ([one], [writing])
        with pytest.raises(BusyError):
            room.add(ticket("a", 1))

    asyncio.run(check())
