"""Bad clients, runs that vanish and memory that runs out: nobody else notices."""

import asyncio
import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import tiny
from conftest import serving
from taskfit.serve.engine import load_engine

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from serve_client import Reply, ask_once, render
from serve_faults import BUSY, Case, Cases, Expected, Outcome, close_to, soak
from serve_soak import direct

if TYPE_CHECKING:
    from taskfit.serve.engine import RunsEngine

TEXTS = [example.texts["text"] for example in tiny.toy_examples(24, offset=30)]
KEY = "s3cret"
HEADERS = {"authorization": f"Bearer {KEY}"}
MAX_BODY = 5000


@pytest.fixture(scope="module")
def known(runs: dict[str, Path]) -> dict[str, dict[str, dict[str, float]]]:
    """What the runs say of the texts when they are asked directly."""
    return {name: direct(runs[name], TEXTS) for name in ("words", "head")}


def texts_request(model: str, texts: list[str], headers: dict[str, str] = HEADERS) -> bytes:
    return render(
        "/classify", json.dumps({"model": model, "input": texts}).encode(), headers=headers
    )


def probabilities(reply: Reply) -> list[list[float]]:
    assert reply.status == 200, reply.body
    return [row["probs"] for row in reply.json()["data"]]


def test_bad_clients_cost_nobody_an_answer_and_cross_none(
    engine: "RunsEngine", known: dict[str, Any]
) -> None:
    cases = Cases(Expected(known, max_body=MAX_BODY, headers=HEADERS), seed=1)
    with serving(lambda: engine, api_key=KEY, max_body=MAX_BODY, max_queue=8) as client:
        assert client.base_url.port is not None
        outcome = asyncio.run(soak(client.base_url.port, cases, count=400, clients=16))
        # When all have gone, nothing is left in the queue.
        end = time.monotonic() + 5
        told: list[str] = []
        while "taskfit_queue_requests 0.0" not in told and time.monotonic() < end:
            told = client.get("/metrics", headers=HEADERS).text.splitlines()
    assert outcome.num_wrong == 0, outcome.wrong
    assert not outcome.lost
    assert sum(outcome.counts.values()) == 400
    # The queue was full for some, and others were answered.
    assert outcome.counts["texts", str(BUSY)]
    assert outcome.counts["texts", "200"]
    assert {kind for kind, _ in outcome.counts} == set(cases._makers)
    assert "taskfit_queue_requests 0.0" in told


def test_an_answer_that_is_off_is_seen(known: dict[str, Any]) -> None:
    """Otherwise the tests here could not fail."""
    outcome, right = Outcome(), known["head"][TEXTS[0]]
    shares = list(right.values())
    case = Case("texts", b"", is_right=lambda r: close_to(r.json()["probs"], shares))
    for shift in (0.0, 2e-5):
        body = json.dumps({"probs": [shares[0] + shift, *shares[1:]]}).encode()
        outcome.note(case, Reply(200, {}, body))
    outcome.note(case, Reply(500, {}, b"{}"))
    assert outcome.num_wrong == 2


def test_a_run_that_vanishes_once_it_is_loaded_is_served_on(
    runs: dict[str, Path], known: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "gone"
    shutil.copytree(runs["words"], folder)
    engine = load_engine({"gone": folder}, device="cpu")
    shutil.rmtree(folder)
    with serving(lambda: engine) as client:
        reply = ask_once(client.base_url.port or 0, texts_request("gone", TEXTS[:3], {}))
        found = probabilities(reply)
    for text, row in zip(TEXTS[:3], found, strict=True):
        assert row == pytest.approx(list(known["words"][text].values()), abs=1e-5)


def test_memory_that_runs_out_in_a_batch_is_no_matter_of_the_clients(
    engine: "RunsEngine", known: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = engine._served["words"].own
    assert own is not None
    tree = own._classifier.method.context.need_model().tree
    true, sizes = tree.hidden, []

    def limited(found: Any, *rest: Any, **more: Any) -> Any:
        sizes.append(len(found))
        if len(found) > 40:
            raise MemoryError("out of memory")
        return true(found, *rest, **more)

    monkeypatch.setattr(tree, "hidden", limited)
    with serving(lambda: engine) as client:
        replies = [
            probabilities(ask_once(client.base_url.port or 0, texts_request("words", TEXTS, {})))
            for _ in range(2)
        ]
    assert max(sizes) > 40
    for rows in replies:
        for text, row in zip(TEXTS, rows, strict=True):
            assert row == pytest.approx(list(known["words"][text].values()), abs=1e-5)
