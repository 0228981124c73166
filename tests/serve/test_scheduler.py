"""Load and trouble at a live server: what waits, what is given up, what never takes it down."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx2
from fake_engine import SENTIMENT, FakeEngine, FakeJob, probabilities
from live_server import serving

from taskfit.serve.work import RequestError, TextsRequest


def ask(client: httpx2.Client, text: str, **headers: str) -> httpx2.Response:
    body = {"model": "tone", "input": text}
    return client.post("/classify", json=body, headers=headers)


def leave(client: httpx2.Client, text: str, *, timeout: float) -> None:
    """Ask, and hang up before the answer."""
    leaver = httpx2.Client(base_url=client.base_url, timeout=timeout)
    with leaver, suppress(httpx2.TimeoutException):
        ask(leaver, text)


def until(is_so: Callable[[], bool]) -> None:
    for _ in range(500):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to it")


def texts(batch: list[FakeJob]) -> list[Any]:
    found = []
    for job in batch:
        assert isinstance(job.request, TextsRequest)
        found.extend(job.request.texts)
    return found


def test_what_arrives_meanwhile_is_the_next_batch_and_nobody_gets_anothers_answer() -> None:
    engine = FakeEngine(hold=threading.Event())
    with serving(engine) as client, ThreadPoolExecutor(12) as pool:
        first = pool.submit(ask, client, "first")
        assert engine.begun.wait(5)
        others = {f"text {i}": pool.submit(ask, client, f"text {i}") for i in range(10)}
        until(lambda: "taskfit_queue_requests 11.0" in client.get("/metrics").text)
        # What is encoded counts; the last of them may be on its way yet.
        until(lambda: "taskfit_queue_tokens 32.0" in client.get("/metrics").text)
        assert engine.hold is not None
        engine.hold.set()
        assert first.result().status_code == 200
        for text, answer in others.items():
            expected = list(probabilities(text, SENTIMENT).values())
            assert answer.result().json()["data"][0]["probs"] == expected
        assert texts(engine.batches[0]) == ["first"]
        assert sorted(texts(engine.batches[1])) == sorted(others)


def test_a_full_queue_is_a_429_that_says_when_to_come_back() -> None:
    engine = FakeEngine(hold=threading.Event())
    with serving(engine, max_queue=1) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, client, "first")
        assert engine.begun.wait(5)
        refused = ask(client, "second")
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["code"] == 429
        assert engine.hold is not None
        engine.hold.set()
        assert first.result().status_code == 200
        assert ask(client, "third").status_code == 200
    with serving(FakeEngine(), max_tokens=5) as client:
        refused = ask(client, "six words are too many here")
        assert refused.status_code == 422
        assert "at most 5" in refused.json()["error"]["message"]


def test_a_request_past_its_deadline_is_a_504_and_is_not_computed() -> None:
    engine = FakeEngine(hold=threading.Event())
    with serving(engine, timeout=30) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, client, "first")
        assert engine.begun.wait(5)
        late = ask(client, "late", **{"X-Request-Timeout": "0.05"})
        assert late.status_code == 504
        assert engine.hold is not None
        engine.hold.set()
        assert first.result().status_code == 200
        assert ask(client, "after").status_code == 200
        assert [texts(batch) for batch in engine.batches] == [["first"], ["after"]]


def test_the_work_of_a_client_that_has_gone_is_dropped() -> None:
    engine = FakeEngine(hold=threading.Event())
    with serving(engine) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, client, "first")
        assert engine.begun.wait(5)
        leave(client, "gone", timeout=0.2)
        until(lambda: 'outcome="gone"' in client.get("/metrics").text)
        assert engine.hold is not None
        engine.hold.set()
        assert first.result().status_code == 200
        assert ask(client, "after").status_code == 200
        assert [texts(batch) for batch in engine.batches] == [["first"], ["after"]]


def test_a_text_stops_being_written_when_its_reader_goes() -> None:
    engine = FakeEngine(piece_seconds=0.01)
    body = {"model": "writer", "prompt": "on and on", "max_tokens": 3000, "stream": True}
    with serving(engine) as client:
        with client.stream("POST", "/v1/completions", json=body) as response:
            next(response.iter_lines())
        until(lambda: engine.closed == ["on and on"])
        until(lambda: "taskfit_queue_requests 0.0" in client.get("/metrics").text)


def test_texts_are_labelled_while_others_are_written_and_writing_takes_turns() -> None:
    engine = FakeEngine(piece_seconds=0.005)
    body = {"model": "writer", "prompt": "a b c", "max_tokens": 4000, "stream": True}
    short = {**body, "max_tokens": 5}
    with (
        serving(engine, max_generations=2) as client,
        client.stream("POST", "/v1/completions", json=body) as one,
        client.stream("POST", "/v1/completions", json=short) as two,
    ):
        lines = one.iter_lines()  # kept: the end of the iterator ends the connection
        next(lines)
        assert ask(client, "meanwhile").status_code == 200
        assert two.read().endswith(b"[DONE]\n\n")
        until(lambda: engine.closed == ["a b c"])  # just behind its last words


def test_more_texts_than_may_be_written_at_once_wait_and_a_limit_ends_them() -> None:
    engine = FakeEngine(piece_seconds=0.002)
    messages = [{"role": "user", "content": "a b c d e f"}]
    body = {"model": "writer", "messages": messages}
    with (
        serving(engine, max_generations=1, max_new_tokens=4) as client,
        ThreadPoolExecutor(3) as pool,
    ):
        asked = [pool.submit(client.post, "/v1/chat/completions", json=body) for _ in range(3)]
        for one in asked:
            choice = one.result().json()["choices"][0]
            assert choice["message"]["content"] == " f e d c"
            assert choice["finish_reason"] == "length"


def test_a_failure_is_one_requests_own_and_the_server_lives_on() -> None:
    engine = FakeEngine(
        hold=threading.Event(),
        fail=lambda text: {
            "sick": RuntimeError("inside"),
            "too much": RequestError(413, "Not enough memory for this text."),
        }.get(str(text)),
    )
    with serving(engine) as client, ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, client, "first")
        assert engine.begun.wait(5)
        asked = {text: pool.submit(ask, client, text) for text in ("sick", "well", "too much")}
        until(lambda: "taskfit_queue_requests 4.0" in client.get("/metrics").text)
        assert engine.hold is not None
        engine.hold.set()
        found = {text: answer.result() for text, answer in asked.items()}
        assert (first.result().status_code, found["well"].status_code) == (200, 200)
        assert found["sick"].status_code == 500
        assert "inside" not in found["sick"].text
        assert found["sick"].headers["x-request-id"] in found["sick"].text
        assert found["too much"].status_code == 413
        # The whole call raises; so does what turns texts into tokens.
        assert ask(client, "crash the batch").status_code == 500
        assert ask(client, "unreadable").status_code == 500
        assert ask(client, "after").status_code == 200


class Ended(BaseException):
    """What no server expects."""


def test_an_engine_that_has_ended_is_told_and_nobody_hangs() -> None:
    engine = FakeEngine()

    def end(jobs: object) -> Any:
        raise Ended

    engine.score = end  # type: ignore[method-assign]
    with serving(engine) as client:
        assert ask(client, "first").status_code == 503
        until(lambda: client.get("/health").status_code == 503)
        assert client.get("/readyz").status_code == 503
        assert ask(client, "second").status_code == 503
        assert "taskfit_queue_requests 0.0" in client.get("/metrics").text


def test_requests_are_answered_with_503_while_models_load() -> None:
    may_load = threading.Event()

    def load() -> FakeEngine:
        assert may_load.wait(10)
        return FakeEngine()

    with serving(load, waits=False) as client:
        until(lambda: client.get("/health").status_code == 200)
        assert client.get("/readyz").status_code == 503
        refused = ask(client, "early")
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        assert client.get("/openapi.json").status_code == 200
        may_load.set()
        until(lambda: client.get("/readyz").status_code == 200)
        assert ask(client, "now").status_code == 200


def test_models_that_cannot_be_loaded_are_told() -> None:
    def load() -> FakeEngine:
        raise ValueError("no such folder: secret")

    with serving(load, waits=False) as client:
        until(lambda: client.get("/health").status_code == 503)
        assert "secret" not in ask(client, "a").text
        assert client.get("/readyz").status_code == 503


def test_under_load_with_hang_ups_and_bad_requests_every_answer_is_its_own() -> None:
    engine = FakeEngine(seconds=0.002)
    with serving(engine, max_queue=64) as client:

        def one(i: int) -> None:
            text, kind = f"text number {i}", i % 7
            if kind == 0:
                leave(client, text, timeout=0.001)
            elif kind == 1:
                bad = client.post("/classify", content=b"{", headers=JSON)
                assert bad.status_code == 400
            elif kind == 2:
                assert ask(client, f"crash the batch {i}").status_code == 500
            else:
                answer = ask(client, text)
                # Mates of one whose call raises fail with it in this engine; ours tries them again.
                if answer.status_code == 200:
                    expected = list(probabilities(text, SENTIMENT).values())
                    assert answer.json()["data"][0]["probs"] == expected
                else:
                    assert answer.status_code == 500

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(one, range(200)))
        until(lambda: "taskfit_queue_requests 0.0" in client.get("/metrics").text)
        assert ask(client, "after").status_code == 200


JSON = {"Content-Type": "application/json"}
