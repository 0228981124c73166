"""The load generator of `serve.py`: so many clients, each with one request at a time.

    python benchmarks/serve_load.py --port 8000 --path /classify --requests FILE --out FILE

A process of its own, without PyTorch. `--requests` is a file of JSON lines `{"body": ...,
"expected": ...}`, `expected` being the probability of the first option or null; clients take them
in turn. A closed loop: a client sends its next request when the answer to the last one is there,
over one connection. After a warm-up in which every client was answered once, answers count until
the time is over and every client was answered twice more.
"""

import argparse
import asyncio
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_client import Connection, Reply, render

LONGEST_SECONDS = 45.0


def first_of_systemone(answer: dict[str, Any]) -> float:
    """Return the probability of the first option of the first question."""
    found = next(iter(answer["answers"].values()))
    if found["type"] == "noul":
        return float(found["noul"])
    return float(next(iter(found["probabilities"].values())))


READERS: dict[str, Callable[[dict[str, Any]], float]] = {
    "systemone": first_of_systemone,
    "classify": lambda answer: float(answer["data"][0]["probs"][0]),
    "plain": lambda answer: float(answer["probabilities"][0]),
}


@dataclass(slots=True)
class Seen:
    """What clients saw.

    Attributes:
        ends: When each answer was there, and its number among the requests, seconds and reply.
        lost: Requests without an answer.
    """

    ends: list[tuple[float, int, float, Reply]] = field(default_factory=list)
    lost: int = 0


async def client(port: int, requests: Sequence[bytes], numbers: Iterator[int], seen: Seen) -> None:
    """Ask until cancelled."""
    connection = Connection(port)
    try:
        for number in numbers:
            started = time.perf_counter()
            try:
                reply = await connection.ask(requests[number % len(requests)])
            except OSError:
                seen.lost += 1
                connection.close()
                continue
            now = time.perf_counter()
            seen.ends.append((now, number % len(requests), now - started, reply))
    finally:
        connection.close()


async def load(
    port: int, requests: Sequence[bytes], *, clients: int, seconds: float, warmup: float
) -> tuple[Seen, float, float]:
    """Return what was seen, and when measuring began and ended."""
    seen, numbers = Seen(), itertools.count()
    tasks = [asyncio.create_task(client(port, requests, numbers, seen)) for _ in range(clients)]

    async def until(start: float, least: float, answers: int) -> float:
        while (now := time.perf_counter()) - start < LONGEST_SECONDS:
            if now - start >= least and len(seen.ends) + seen.lost >= answers:
                break
            await asyncio.sleep(0.02)
        return now

    try:
        began = await until(time.perf_counter(), warmup, clients)
        ended = await until(began, seconds, len(seen.ends) + 2 * clients)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return seen, began, ended


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that is not below this share of all."""
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def summary(
    seen: Seen,
    window: tuple[float, float],
    expected: Sequence[float | None],
    read: Callable[[dict[str, Any]], float],
) -> dict[str, Any]:
    """Return rate, latencies, outcomes and the largest difference from what was expected."""
    began, ended = window
    counted = [end for end in seen.ends if began < end[0] <= ended]
    good = [end for end in counted if end[3].status == 200]
    times = sorted(end[2] for end in good)
    differences = [
        abs(read(reply.json()) - wanted)
        for _, number, _, reply in good
        if (wanted := expected[number]) is not None
    ]
    found: dict[str, Any] = {
        "answers": len(good),
        "seconds": ended - began,
        "per_second": len(good) / (ended - began),
        "statuses": dict(Counter(str(end[3].status) for end in counted)),
        "lost": seen.lost,
        "compared": len(differences),
        "largest_difference": max(differences, default=None),
    }
    if times:
        found |= {f"p{p}_ms": 1000 * quantile(times, p / 100) for p in (50, 95, 99)}
    return found


def main() -> None:
    """Load a server; write what was seen."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--requests", type=Path, required=True)
    parser.add_argument("--read", choices=list(READERS), required=True)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--warmup", type=float, default=2.0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.requests.read_text("utf-8").splitlines()]
    requests = [render(arguments.path, json.dumps(row["body"]).encode()) for row in rows]
    processor = time.process_time()
    seen, began, ended = asyncio.run(
        load(
            arguments.port,
            requests,
            clients=arguments.clients,
            seconds=arguments.seconds,
            warmup=arguments.warmup,
        )
    )
    processor = time.process_time() - processor
    expected = [row["expected"] for row in rows]
    found = summary(seen, (began, ended), expected, READERS[arguments.read])
    found |= {"clients": arguments.clients, "client_cpu_seconds": processor}
    arguments.out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
