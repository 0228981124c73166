"""Servers that `serve.py` measures: how each is started, asked and read."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from serve_client import ask_once, render
from serve_prepare import QUESTION

START_SECONDS = 180.0
STOP_SECONDS = 20.0
# What eight people may want to know of one state; asked in words, so that no run has learnt them.
ASKED = (
    "Does the writer sound pleased?",
    "Is this about money?",
    "Is this about the weather?",
    "Is a person mentioned?",
    "Is the writer surprised?",
    "Would a reply be polite?",
    "Is something praised?",
    "Is this a complaint?",
)


@dataclass(frozen=True, slots=True)
class Wire:
    """A way to ask a server.

    Attributes:
        path: Of requests.
        read: Which reader of `serve_load.py` takes its answers.
    """

    path: str
    read: str


SYSTEMONE = Wire("/v1/systemone", "systemone")
CLASSIFY = Wire("/classify", "classify")
PLAIN = Wire("/predict", "plain")


@dataclass(frozen=True, slots=True)
class Server:
    """A server to measure.

    Attributes:
        name: What it is called in the table.
        wires: How it is asked, by name.
        ready: Path that answers 200 once it can be asked.
        comparable: Whether it reads the run's own words, so that its answers can be compared.
        questions: Whether several questions may be asked of one state.
    """

    name: str
    wires: Mapping[str, Wire]
    ready: str = "/health"
    comparable: bool = True
    questions: bool = False


OURS = "taskfit serve"
SERVERS = {
    "ours": Server(
        OURS, {"systemone": SYSTEMONE, "classify": CLASSIFY}, ready="/readyz", questions=True
    ),
    "fastapi": Server("FastAPI + transformers", {"plain": PLAIN}),
    "litserve": Server("LitServe, padded batches", {"plain": PLAIN}),
    "transformers": Server("transformers serve", {"systemone": SYSTEMONE}, questions=True),
    "decisionformer": Server(
        "decisionformer serve", {"systemone": SYSTEMONE}, comparable=False, questions=True
    ),
}


def command(key: str, *, run: Path, folder: Path, port: int) -> list[str]:
    """Return what starts a server."""
    here, python = Path(__file__).parent, sys.executable
    beside = Path(python).parent
    if key == "ours":
        return [python, "-m", "taskfit", "serve", f"run={run}", "--port", str(port)]
    if key == "transformers":
        start = [str(beside / "transformers"), "serve", str(folder / "merged"), "--device", "cpu"]
        decisions = str(folder / "decision_config.json")
        return [*start, "--decision-config", decisions, "--port", str(port)]
    if key == "decisionformer":
        start = [str(beside / "decisionformer"), "serve", str(folder / "decisionformer" / "last")]
        return [*start, "--device", "cpu", "--max-batch", "32", "--port", str(port)]
    own = str(here / "serve_peer.py")
    return [python, own, key, "--folder", str(folder), "--port", str(port)]


def choice(labels: Sequence[str], instructions: str | None = QUESTION) -> dict[str, Any]:
    """Return the run's question on System One's wire."""
    found: dict[str, Any] = {"type": "choice", "criteria": dict.fromkeys(labels)}
    return found if instructions is None else found | {"instructions": instructions}


def body(key: str, wire: str, text: str, *, folder: Path, labels: Sequence[str]) -> dict[str, Any]:
    """Return a request for the run's label of a text."""
    if wire == "plain":
        return {"text": text}
    if wire == "classify":
        return {"model": "run", "input": text}
    # A run knows its own question by name and labels.
    asked = {"label": choice(labels, None if key == "ours" else QUESTION)}
    return {"model": model_of(key, folder), "state": text, "questions": asked}


def several(key: str, text: str, count: int, *, folder: Path) -> dict[str, Any]:
    """Return a request of so many questions in words."""
    rows = enumerate(ASKED[:count])
    asked = {f"q{i}": {"type": "noul", "instructions": words} for i, words in rows}
    return {"model": model_of(key, folder), "state": text, "questions": asked}


def model_of(key: str, folder: Path) -> str:
    """Return how requests name the model."""
    return {"ours": "run", "transformers": str(folder / "merged")}.get(key, "last")


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def started(
    words: Sequence[str], *, port: int, ready: str, log: Path, threads: int
) -> Iterator[psutil.Process]:
    """Start a server in a group of its own, wait until it is ready, and stop it at the end.

    Raises:
        RuntimeError: If it does not come up; the message has the end of what it wrote.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            words,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        wait_until_ready(process, port=port, ready=ready, log=log)
        yield psutil.Process(process.pid)
    finally:
        stop(process)


def wait_until_ready(process: subprocess.Popen[bytes], *, port: int, ready: str, log: Path) -> None:
    """Ask until the server says that it is ready."""
    request, deadline = render(ready, b"", method="GET"), time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, TimeoutError):
            if ask_once(port, request, seconds=2.0).status == 200:
                return
        time.sleep(0.2)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
    raise RuntimeError(f"{' '.join(process.args)} did not come up:\n{tail}")  # type: ignore[arg-type]


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and all that it started."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
            break
    # Workers of a server that ended without them.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def resident(process: psutil.Process) -> int:
    """Return the resident memory of a server with its workers (bytes)."""
    total = 0
    for found in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += found.memory_info().rss
    return total


def write_requests(
    path: Path, bodies: Sequence[dict[str, Any]], expected: Sequence[float | None]
) -> Path:
    """Write requests for the load generator."""
    rows = zip(bodies, expected, strict=True)
    lines = (json.dumps({"body": body, "expected": wanted}) + "\n" for body, wanted in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path
