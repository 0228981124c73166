"""Real runs behind the server: many clients at once, each another run, get what runs say alone."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from live_server import serving

import tiny
from taskfit.data import Example
from taskfit.data.messages import Message
from taskfit.runs.load import load_classifier
from taskfit.runs.tuning.generate import load_generator
from taskfit.runs.tuning.model import Decoding
from taskfit.serve.engine import RunsEngine

LABELLING = ["words", "head", "blend", "few-shot", "whole", "tfidf"]
TEXTS = [example.texts["text"] for example in tiny.toy_examples(6, offset=50)]
RAIN = {"type": "noul", "instructions": "Does it rain?"}


@pytest.fixture(scope="module")
def client(engine: RunsEngine) -> Iterator[httpx2.Client]:
    with serving(lambda: engine) as found:
        yield found


def answered(client: httpx2.Client, path: str, body: Any) -> Any:
    found = client.post(path, json=body)
    assert found.status_code == 200, found.text
    return found.json()


def test_clients_at_once_get_what_each_run_says_alone(
    client: httpx2.Client, runs: dict[str, Path]
) -> None:
    alone = {name: load_classifier(runs[name], device="cpu") for name in LABELLING}
    wanted = {
        (name, text): classifier.probabilities([Example("x", {"text": text})])[0]
        for name, classifier in alone.items()
        for text in TEXTS
    }
    state = {"model": "words", "state": "It pours.", "questions": {"rain": RAIN}}
    rain = answered(client, "/v1/systemone", state)["answers"]["rain"]["noul"]
    chat = {
        "model": "writer",
        "messages": [{"role": "user", "content": "Is the dog warm?"}],
        "max_tokens": 8,
        "temperature": 0,
    }
    generator = load_generator(str(runs["writer"]), device="cpu")
    prompt = (Message("user", "Is the dog warm?"),)
    (written,) = generator.answer([prompt], Decoding(max_new_tokens=8))

    def ask(place: int) -> None:
        if place % 8 == 6:
            found = answered(client, "/v1/systemone", state)["answers"]["rain"]["noul"]
            assert found == pytest.approx(rain, abs=1e-5)
        elif place % 8 == 7:
            choice = answered(client, "/v1/chat/completions", chat)["choices"][0]
            assert choice["message"]["content"].strip() == written
        else:
            name, text = pairs[place % len(pairs)]
            (row,) = answered(client, "/classify", {"model": name, "input": text})["data"]
            assert row["probs"] == pytest.approx(wanted[name, text], abs=1e-5)

    pairs = list(itertools.product(LABELLING, TEXTS))
    with ThreadPoolExecutor(16) as clients:
        list(clients.map(ask, range(80)))


def test_what_a_run_cannot_be_asked_is_said_with_what_it_knows(client: httpx2.Client) -> None:
    body = {"model": "head", "state": "x", "questions": {"rain": RAIN}}
    found = client.post("/v1/systemone", json=body)
    assert found.status_code == 422
    assert "label (bad, good)" in found.text
