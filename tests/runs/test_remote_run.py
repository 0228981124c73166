"""A run on a remote endpoint: a real local server, its cache, its failures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from chat_server import ChatServer, answer, error
from taskfit.errors import TaskfitError
from taskfit.runs.classifier import Classifier
from taskfit.runs.fit import fit
from taskfit.settings_file import load_settings

EXAMPLES = tiny.toy_examples(8)


@pytest.fixture
def server(server: ChatServer) -> ChatServer:
    server.then = judge
    return server


def judge(body: dict[str, Any]) -> Any:
    """Answer as one would who reads the words."""
    text = body["messages"][-1]["content"]
    if "river" in text:
        return answer("I cannot say.")
    good = any(word in text for word in tiny.GOOD)
    return answer("good" if good else "Bad.")


def settings_of(server: ChatServer, tmp_path: Path) -> Any:
    path = tiny.write_csv(tmp_path / "test.csv", EXAMPLES)
    task = tmp_path / "task.yaml"
    task.write_text(
        "name: toy\ntext: text\nlabels: [{name: bad}, {name: good}]\n"
        "template: {line: 'Text: {text}\\nLabel:{label}'}\n"
    )
    return load_settings(
        overrides=[
            f"task.name={task}",
            f"data.tests.toy={path}",
            "method.name=remote",
            *server.settings,
        ]
    )


def test_answers_are_measured_counted_and_paid_for_once(server: ChatServer, tmp_path: Path) -> None:
    settings = settings_of(server, tmp_path)
    result = fit(settings, tmp_path / "run").result
    assert result.evaluations["toy"].accuracy == 1
    assert len(server.bodies) == len(EXAMPLES)
    assert "Answer with one of: bad, good." in server.bodies[0]["messages"][0]["content"]
    assert result.details["num_unparsable"] == 0
    sent = len(server.bodies)
    again = Classifier.load(tmp_path / "run", device="cpu")
    assert again.probabilities(EXAMPLES).argmax(axis=1).tolist() == [1, 0] * 4
    assert len(server.bodies) == sent


def test_an_answer_without_a_label_is_no_answer(server: ChatServer, tmp_path: Path) -> None:
    fitted = fit(settings_of(server, tmp_path), tmp_path / "run").fitted
    odd = tiny.toy_examples(2, offset=60)
    assert "river" in odd[0].texts["text"]
    assert np.isnan(fitted.probabilities(odd)).all()
    assert fitted.method.report()["num_unparsable"] == 2


def test_an_endpoint_that_goes_down_loses_nothing(server: ChatServer, tmp_path: Path) -> None:
    settings = settings_of(server, tmp_path)
    served = []

    def fails_later(body: dict[str, Any]) -> Any:
        served.append(body)
        return judge(body) if len(served) <= 5 else error(503, "overloaded")

    server.then = fails_later
    with pytest.raises(TaskfitError, match=r"overloaded.*5 of 8 answers are safe"):
        fit(settings, tmp_path / "run")
    server.then = judge
    server.bodies.clear()
    result = fit(settings, tmp_path / "run", resume=True).result
    assert result.evaluations["toy"].accuracy == 1
    assert 0 < len(server.bodies) <= 3
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["details"]["cost"] is not None
