"""Requests of all kinds and bad clients, each with what must come of it; for `serve_soak.py`.

A case is sent to a server by one of many clients at once. It is wrong if its answer has another
status than it may have, or other probabilities than the run gives when asked directly; lost if a
client that waited for an answer got none.
"""

import asyncio
import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from serve_client import Connection, Reply, render

# How far a probability may lie from the run's own.
TOLERANCE = 1e-5
BUSY = 429
# A client that was sent away comes back after a moment, or it would do nothing but knock.
BUSY_SECONDS = 0.02
Shares = Mapping[str, float]
Act = Literal["ask", "leave", "break_off", "dribble"]


@dataclass(frozen=True, slots=True)
class Expected:
    """What runs say when they are asked directly, and what a server said when it was idle.

    Attributes:
        texts: Run -> text -> label -> probability.
        written: Prompt -> what the generator writes; none: it is not asked.
        max_body: Bytes that the server takes.
        headers: With the key.
    """

    texts: Mapping[str, Mapping[str, Shares]]
    written: Mapping[str, str] = field(default_factory=dict)
    max_body: int = 20_000
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Case:
    """A request and what must come of it.

    Attributes:
        kind: What it is called in counts.
        data: As it goes over the wire.
        statuses: That it may have; none: the client does not wait.
        is_right: Of an answer with status 200.
        act: What the client does: ask; leave after sending; break off in the middle of the body;
            send the body in small parts.
    """

    kind: str
    data: bytes
    statuses: tuple[int, ...] = (200, BUSY)
    is_right: Callable[[Reply], bool] = lambda reply: True
    act: Act = "ask"


def close_to(found: Sequence[float], wanted: Sequence[float]) -> bool:
    """Return whether probabilities are the same."""
    pairs = zip(found, wanted, strict=True)
    return all(math.isfinite(a) and abs(a - b) <= TOLERANCE for a, b in pairs)


class Cases:
    """A source of cases, the same ones for the same seed."""

    def __init__(self, expected: Expected, *, seed: int = 0) -> None:
        """Make cases of what is expected."""
        self._expected = expected
        self._random = random.Random(seed)
        self._makers: dict[str, tuple[float, Callable[[], Case]]] = {
            "texts": (40, self._texts),
            "state": (25, self._state),
            "left": (6, lambda: self._bad_client("left", "leave")),
            "broken off": (4, lambda: self._bad_client("broken off", "break_off")),
            "dribbled": (3, lambda: self._bad_client("dribbled", "dribble")),
            "malformed": (6, self._malformed),
            "oversized": (3, self._oversized),
            "wrong key": (4, self._wrong_key),
            "unknown model": (4, self._unknown_model),
        }
        if expected.written:
            self._makers["written"] = (5, self._written)

    def __iter__(self) -> Iterator[Case]:
        """Yield cases without an end."""
        makers = [maker for _, maker in self._makers.values()]
        weights = [weight for weight, _ in self._makers.values()]
        while True:
            (maker,) = self._random.choices(makers, weights)
            yield maker()

    def _request(self, path: str, body: object) -> bytes:
        return render(path, json.dumps(body).encode(), headers=self._expected.headers)

    def _run(self) -> tuple[str, Mapping[str, Shares]]:
        return self._random.choice(list(self._expected.texts.items()))

    def _texts(self) -> Case:
        run, known = self._run()
        texts = self._random.sample(list(known), self._random.choice((1, 1, 1, 2, 5)))

        def is_right(reply: Reply) -> bool:
            rows = reply.json()["data"]
            wanted = [list(known[text].values()) for text in texts]
            return len(rows) == len(texts) and all(
                close_to(row["probs"], shares) for row, shares in zip(rows, wanted, strict=True)
            )

        data = self._request("/classify", {"model": run, "input": texts})
        return Case("texts", data, is_right=is_right)

    def _state(self) -> Case:
        run, known = self._run()
        text = self._random.choice(list(known))
        shares = known[text]
        question = {"type": "choice", "criteria": dict.fromkeys(shares)}
        body = {"model": run, "state": text, "questions": {"label": question}}

        def is_right(reply: Reply) -> bool:
            found = reply.json()["answers"]["label"]["probabilities"]
            return close_to([found[label] for label in shares], list(shares.values()))

        return Case("state", self._request("/v1/systemone", body), is_right=is_right)

    def _written(self) -> Case:
        prompt, text = self._random.choice(list(self._expected.written.items()))
        body = {"model": "writer", "prompt": prompt, "max_tokens": 6, "temperature": 0}
        return Case(
            "written",
            self._request("/v1/completions", body),
            is_right=lambda reply: reply.json()["choices"][0]["text"] == text,
        )

    def _bad_client(self, kind: str, act: Act) -> Case:
        case = self._texts()
        statuses = case.statuses if act == "dribble" else ()
        return Case(kind, case.data, statuses, case.is_right, act)

    def _malformed(self) -> Case:
        bodies = (
            b"{",
            b'{"model": NaN',
            b"\xff\xfe",
            b"[]",
            b"nul",
            b'{"model":"words","input":3}',
        )
        body = self._random.choice(bodies)
        data = render("/classify", body, headers=self._expected.headers)
        return Case("malformed", data, (400, 422))

    def _oversized(self) -> Case:
        text = "a" * (self._expected.max_body + self._random.randrange(1, 5000))
        data = self._request("/classify", {"model": "words", "input": text})
        return Case("oversized", data, (413,))

    def _wrong_key(self) -> Case:
        body = json.dumps({"model": "words", "input": "a"}).encode()
        data = render("/classify", body, headers={"authorization": "Bearer wrong"})
        return Case("wrong key", data, (401,))

    def _unknown_model(self) -> Case:
        data = self._request("/classify", {"model": "nobody", "input": "a"})
        return Case("unknown model", data, (404,))


@dataclass(slots=True)
class Outcome:
    """What came of many cases.

    Attributes:
        counts: (kind, status or "-" for a client that did not wait) -> how many.
        wrong: Kinds, statuses and bodies of answers that should not be, the first few.
        num_wrong: How many there were.
        lost: Kinds of requests that got no answer.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    num_wrong: int = 0
    lost: Counter[str] = field(default_factory=Counter)

    def note(self, case: Case, reply: Reply) -> None:
        """Count an answer."""
        self.counts[case.kind, str(reply.status)] += 1
        good = reply.status in case.statuses
        if good and reply.status == 200:
            good = case.is_right(reply)
        if not good:
            self.num_wrong += 1
            if len(self.wrong) < 10:
                self.wrong.append(f"{case.kind}: {reply.status} {reply.body[:300]!r}")

    def as_json(self) -> dict[str, Any]:
        """Return it for a record."""
        kinds = sorted({kind for kind, _ in self.counts})
        by_kind = {
            kind: {status: n for (k, status), n in sorted(self.counts.items()) if k == kind}
            for kind in kinds
        }
        return {
            "by_kind": by_kind,
            "wrong": self.num_wrong,
            "first_wrong": self.wrong,
            "lost": dict(self.lost),
        }


async def do(case: Case, connection: Connection, port: int) -> Reply | None:
    """Do what a case says; a client that misbehaves has a connection of its own.

    Returns:
        The answer; None if nobody waited for one.
    """
    if case.act == "ask":
        return await connection.ask(case.data)
    own = Connection(port)
    try:
        if case.act == "dribble":
            head, _, body = case.data.partition(b"\r\n\r\n")
            await own.send(head + b"\r\n\r\n")
            for start in range(0, len(body), 1 + len(body) // 5):
                await own.send(body[start : start + 1 + len(body) // 5])
                await asyncio.sleep(0.01)
            return await own.receive()
        await own.send(case.data if case.act == "leave" else case.data[: -len(case.data) // 3])
        await asyncio.sleep(0.002)
        return None
    finally:
        own.close()


async def soak(
    port: int,
    cases: Cases,
    *,
    count: int,
    clients: int,
    watch: Callable[[int], None] = lambda number: None,
) -> Outcome:
    """Send cases by so many clients at once.

    Args:
        port: Of the server.
        cases: What to send.
        count: How many.
        clients: Each sends a case after the other.
        watch: Told the number of each case before it is sent.
    """
    outcome, numbered = Outcome(), zip(range(count), itertools.chain(cases), strict=False)

    async def client() -> None:
        connection = Connection(port)
        for number, case in numbered:
            watch(number)
            try:
                reply = await do(case, connection, port)
            except OSError:
                outcome.lost[case.kind] += 1
                connection.close()
                continue
            if reply is None:
                outcome.counts[case.kind, "-"] += 1
                continue
            outcome.note(case, reply)
            if reply.status == BUSY:
                await asyncio.sleep(BUSY_SECONDS)
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return outcome
