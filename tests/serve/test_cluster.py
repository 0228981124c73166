"""The server on Ray Serve: right answers from every replica, and none lost when one is killed."""

import asyncio
import functools
import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import tiny
from taskfit.errors import SettingsError
from taskfit.serve.cluster import Replicas, check_size, create_cluster_app
from taskfit.serve.limits import Limits
from taskfit.serve.replica import Asked, Replica
from taskfit.serve.server import DrainingServer, bind, configuration

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from serve_client import Connection, Reply, ask_once, render
from serve_soak import direct

is_long = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or not os.environ.get("TASKFIT_LONG"),
    reason="a minute with Ray (extra `ray`): set TASKFIT_LONG=1",
)
SECONDS = 120.0
NUM_CLIENTS = 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"least": 0}, "--replicas is 0; give a number from 1"),
        ({"least": 3, "most": 2}, r"--max-replicas is 2, which is less than --replicas \(3\)"),
    ],
)
def test_numbers_of_replicas_that_cannot_be_are_refused(
    options: dict[str, int], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        Replicas(**options)


def test_more_replicas_than_this_machine_holds_are_refused_at_once() -> None:
    with pytest.raises(SettingsError, match="3 replicas of 1 CPUs each do not fit here: Ray has 2"):
        check_size({"CPU": 2.0}, Replicas(least=3))
    check_size({"CPU": 2.0}, Replicas(least=2))
    check_size({"CPU": 2.0}, Replicas(least=3, address="ray://there:1"))  # that one may grow


def test_a_replica_answers_as_the_app_does_also_in_parts() -> None:
    from fake_engine import FakeEngine

    async def ask() -> None:
        replica = Replica.__new__(Replica)
        options: dict[str, Any] = {"folder": str(Path.cwd()), "environment": {}, "num_threads": 1}
        await replica.__init__(FakeEngine, Limits(), **options)  # type: ignore[misc]
        replica.check_health()
        asked = Asked("GET", "/v1/models", b"", [], b"")
        (part,) = [part async for part in replica.answer(asked)]
        assert part.status == 200
        assert not part.more
        assert [model["id"] for model in json.loads(part.body)["data"]] == [
            "tone",
            "mail",
            "writer",
        ]
        await replica._life.__aexit__(None, None, None)

    asyncio.run(ask())


@pytest.fixture
def served(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server with two replicas."""
    import ray

    from taskfit.serve.engine import load_engine

    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray writes the cluster's token
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    make = functools.partial(load_engine, {"head": runs["head"]}, device="cpu")
    limits, held, is_up = Limits(), bind("127.0.0.1", 0), threading.Event()
    app = create_cluster_app(make, limits, replicas=Replicas(least=2))
    config = configuration(app, limits)
    server = DrainingServer(config, app, grace=limits.grace, started=is_up.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [held]}, daemon=True)
    thread.start()
    try:
        assert is_up.wait(SECONDS)
        port = held.getsockname()[1]
        assert get(port, "/readyz").status == 200
        yield port
    finally:
        server.should_exit = True
        thread.join(60)
        ray.shutdown()


def wait_for(condition: Any) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def get(port: int, path: str) -> Reply:
    return ask_once(port, render(path, b"", method="GET"))


def replicas() -> list[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return [process for process in found if process.name().startswith("ray::ServeRepl")]


@is_long
@pytest.mark.filterwarnings("default")  # Ray's own are no matter of ours
def test_a_killed_replica_loses_no_request_and_changes_no_answer(
    served: int, runs: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    texts = [example.texts["text"] for example in tiny.toy_examples(40, offset=30)]
    expected = direct(runs["head"], texts)
    killed: list[int] = []
    answers: list[tuple[int, Reply]] = []

    async def client(number: int, until: float) -> None:
        connection = Connection(served)
        while time.monotonic() < until:
            # Many texts, so that the replica is at work on some whenever it is killed.
            start = (number + len(answers)) % len(texts)
            body = json.dumps({"model": "head", "input": texts[start:] + texts[:start]}).encode()
            answers.append((start, await connection.ask(render("/classify", body))))
        connection.close()

    async def kill() -> None:
        await asyncio.sleep(1.0)
        victim = replicas()[0]
        killed.append(len(answers))
        os.kill(victim.pid, signal.SIGKILL)

    async def all_of_it() -> None:
        until = time.monotonic() + 4.0
        await asyncio.gather(*(client(i, until) for i in range(NUM_CLIENTS)), kill())

    assert len(replicas()) == 2
    asyncio.run(all_of_it())
    assert 0 < killed[0] < len(answers) - NUM_CLIENTS
    assert {reply.status for _, reply in answers} == {200}
    assert "A replica died under a request" in caplog.text  # some were given to the other one
    for start, reply in answers:
        rows = [row["probs"] for row in reply.json()["data"]]
        for text, row in zip(texts[start:] + texts[:start], rows, strict=True):
            assert row == pytest.approx(list(expected[text].values()), abs=1e-5)
    assert get(served, "/health").status == 200
    wait_for(lambda: len(replicas()) == 2)  # Ray has replaced it
