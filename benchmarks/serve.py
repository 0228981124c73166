"""Servers of one fitted run, side by side: `taskfit serve` and what people would use instead.

    python benchmarks/serve.py --run RUN --out results/benchmarks/serve.json

`--run` is a run of label words of one token each, on the packaged model. Every server gets the same
weights, the same sentences and, but for `decisionformer`, which has a prompt of its own, the same
prompt and label words. Each is started in a process group of its own with so many threads, asked
over loopback by 1, 8, 32 and 64 clients of a load generator in another process (`serve_load.py`),
and stopped before the next one starts. Answers under load are compared with the run's own
prediction. What is measured already is kept in the work folder, server by server, so that the
command goes on where it was stopped; `--only` chooses servers. Needs the `serve` and `peers`
extras, and `transformers[serving]`.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from serve_client import ask_once, render
from serve_page import compare, page
from serve_targets import (
    SERVERS,
    SYSTEMONE,
    Server,
    Wire,
    body,
    command,
    free_port,
    resident,
    several,
    started,
    write_requests,
)
from taskfit.files import write_json_atomic, write_text_atomic

CLIENTS = (1, 8, 32, 64)
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Measuring:
    """How a server is measured.

    Attributes:
        run: Folder of the run.
        folder: What `serve_prepare.py` wrote.
        threads: Of each server.
        seconds: Least time that answers count for.
        clients: Numbers of clients.
    """

    run: Path
    folder: Path
    threads: int
    seconds: float
    clients: tuple[int, ...]

    @property
    def prepared(self) -> dict[str, Any]:
        """Return what is known of the run."""
        found: dict[str, Any] = json.loads((self.folder / "prepared.json").read_text("utf-8"))
        return found

    @property
    def texts(self) -> list[str]:
        """Return the sentences."""
        found: list[str] = json.loads((self.folder / "texts.json").read_text("utf-8"))
        return found


def generate_load(
    measuring: Measuring, *, port: int, wire: Wire, requests: Path, clients: int
) -> dict[str, Any]:
    """Run the load generator; return what it saw."""
    out = measuring.folder / "load.json"
    words = [sys.executable, str(HERE / "serve_load.py"), "--port", str(port), "--path", wire.path]
    words += ["--read", wire.read, "--requests", str(requests), "--clients", str(clients)]
    words += ["--seconds", str(measuring.seconds), "--out", str(out)]
    subprocess.run(words, check=True)
    found: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return found


def measure(key: str, measuring: Measuring) -> dict[str, Any]:
    """Start a server, load it, stop it; return what was seen."""
    server, port, prepared = SERVERS[key], free_port(), measuring.prepared
    words = command(key, run=measuring.run, folder=measuring.folder, port=port)
    log, requests = measuring.folder / f"{key}.log", measuring.folder / "requests.jsonl"
    begun = time.perf_counter()
    found: dict[str, Any] = {"levels": {}, "first_answer": {}}
    with started(
        words, port=port, ready=server.ready, log=log, threads=measuring.threads
    ) as process:
        found["start_seconds"] = time.perf_counter() - begun
        for name, wire in server.wires.items():
            asked = {"folder": measuring.folder, "labels": prepared["labels"]}
            bodies = [body(key, name, text, **asked) for text in measuring.texts]
            first = ask_once(port, render(wire.path, json.dumps(bodies[0]).encode()))
            if first.status != 200:
                raise RuntimeError(f"{key} {name}: {first.status} {first.body[:400]!r}")
            # A server may name its model by a folder of this machine.
            answer = json.dumps(first.json()).replace(f"{Path.cwd()}/", "")
            found["first_answer"][name] = json.loads(answer)
            expected = [row[0] if server.comparable else None for row in prepared["probabilities"]]
            write_requests(requests, bodies, expected)
            for clients in measuring.clients:
                seen = generate_load(
                    measuring, port=port, wire=wire, requests=requests, clients=clients
                )
                seen["resident_bytes"] = resident(process)
                found["levels"][f"{name} {clients}"] = seen
                told(key, f"{name}, {clients} clients", seen)
        if server.questions:
            found["questions"] = measure_questions(key, server, measuring, port)
    return found


def measure_questions(
    key: str, server: Server, measuring: Measuring, port: int
) -> dict[str, dict[str, Any]]:
    """Ask one and eight questions of each state, in words, by one client."""
    requests, found = measuring.folder / "requests.jsonl", {}
    for count in (1, 8):
        bodies = [several(key, text, count, folder=measuring.folder) for text in measuring.texts]
        write_requests(requests, bodies, [None] * len(bodies))
        seen = generate_load(measuring, port=port, wire=SYSTEMONE, requests=requests, clients=1)
        found[str(count)] = seen
        told(key, f"{count} questions", seen)
    return found


def told(key: str, what: str, seen: dict[str, Any]) -> None:
    """Print a line."""
    times = ", ".join(f"p{p} {seen.get(f'p{p}_ms', float('nan')):.1f}" for p in (50, 95, 99))
    other = (
        "" if seen["largest_difference"] is None else f", off by {seen['largest_difference']:.1e}"
    )
    statuses = {k: n for k, n in seen["statuses"].items() if k != "200"}
    print(
        f"{key} {what}: {seen['per_second']:.1f}/s, {times} ms{other} {statuses or ''}", flush=True
    )


def main() -> None:
    """Measure every server that has no result yet; then compare and write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/serve"))
    parser.add_argument("--only", nargs="+", choices=list(SERVERS), default=list(SERVERS))
    parser.add_argument("--clients", nargs="+", type=int, default=list(CLIENTS))
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count())
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    parser.add_argument("--out", type=Path, help="JSON file; a Markdown page stands beside it")
    arguments = parser.parse_args()
    # Stopped from outside, the server under way is stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run, folder = arguments.run.resolve(), arguments.work.resolve()
    prepare = [sys.executable, str(HERE / "serve_prepare.py"), "--run", str(run)]
    subprocess.run([*prepare, "--folder", str(folder)], check=True)
    clients = tuple(arguments.clients)
    measuring = Measuring(run, folder, arguments.threads, arguments.seconds, clients)
    results, failed = {}, []
    for key in arguments.only:
        stored = folder / f"{key}.json"
        if not stored.exists() or arguments.again:
            try:
                write_json_atomic(stored, measure(key, measuring))
            except RuntimeError as error:
                # The others are still worth their time; the failure is told again at the end.
                print(f"{key}: {error}", flush=True)
                failed.append(key)
                continue
        results[key] = json.loads(stored.read_text("utf-8"))
    # Here, because the servers must not wait for it, nor it for them.
    from machine import describe
    from peer_contender import versions

    prepared = {k: v for k, v in measuring.prepared.items() if k != "probabilities"}
    record = {
        "machine": describe(),
        "versions": versions(),
        "threads": arguments.threads,
        "run": prepared,
        "failed": failed,
        **compare(results),
        "servers": results,
    }
    written = page(record)
    print(written)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(arguments.out, record)
        write_text_atomic(arguments.out.with_suffix(".md"), written)
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
