"""A run whose texts may have several labels, over HTTP: the labels are those of `predict`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pandas as pd
import pytest
from live_server import serving

import tiny
from taskfit.runs.fit import fit
from taskfit.runs.predict import predict_file
from taskfit.screen import SilentScreen
from taskfit.serve.engine import load_engine
from taskfit.settings_file import load_settings

TEXTS = [example.texts["text"] for example in tiny.toy_examples(12, offset=300)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two labels, of which one is rare, with thresholds for F1."""
    folder = tmp_path_factory.mktemp("several")
    rows = [
        {"text": e.texts["text"], "label": "|".join(["good"] * (e.label == "good") + more)}
        for i, e in enumerate(tiny.toy_examples(300))
        for more in [["warm"] if "warm" in e.texts["text"] and i % 3 else []]
    ]
    pd.DataFrame(rows).to_csv(folder / "train.csv", index=False)
    flags = {
        "data": {
            **{"train": str(folder / "train.csv"), "text": ["text"]},
            **{"test_fraction": 0, "validation_fraction": 0.3},
        },
        "task": {"multi_label": True},
        "method": {"name": "tfidf"},
    }
    fit(load_settings(flags=flags), folder / "run", baselines=False)
    return folder / "run"


@pytest.fixture(scope="module")
def client(run: Path) -> Iterator[httpx2.Client]:
    with serving(lambda: load_engine({"mine": run}, base=None, device="cpu")) as found:
        yield found


def answered(client: httpx2.Client, path: str, body: Any) -> Any:
    found = client.post(path, json=body)
    assert found.status_code == 200, found.text
    return found.json()


def test_every_wire_names_the_labels_that_predict_gives(
    client: httpx2.Client, run: Path, tmp_path: Path
) -> None:
    pd.DataFrame({"text": TEXTS}).to_csv(tmp_path / "new.csv", index=False)
    source, out = str(tmp_path / "new.csv"), tmp_path / "out.csv"
    predict_file(run, source, out, encoding="utf-8", device="cpu", screen=SilentScreen())
    expected = [
        label.split("|") if label else [] for label in pd.read_csv(out)["predicted"].fillna("")
    ]
    assert [] in expected
    assert ["good", "warm"] in expected

    rows = answered(client, "/v1/classify", {"input": TEXTS})["data"]
    assert [row["labels"] for row in rows] == expected
    # What vLLM's clients read is the most probable label, as ever.
    assert [row["label"] for row in rows] == [
        ("good", "warm")[row["probs"][0] < row["probs"][1]] for row in rows
    ]
    batch = answered(client, "/predict", {"inputs": [[text] for text in TEXTS]})
    assert [sorted(one["label"] for one in row if one["given"]) for row in batch] == expected

    card = answered_get(client, "/v1/taskfit/models")["models"][0]
    assert list(card["thresholds"]) == ["good", "warm"]
    for text, labels in zip(TEXTS, expected, strict=True):
        question = {"type": "choice", "criteria": {"warm": None, "good": None}}
        body = {"state": text, "questions": {"mood": question}}
        answer = answered(client, "/v1/systemone", body)["answers"]["mood"]
        assert answer["labels"] == labels
        chosen = [
            name for name, p in answer["probabilities"].items() if p >= card["thresholds"][name]
        ]
        assert sorted(chosen) == labels
        asked = {
            "type": "choice",
            "instructions": "",
            "choices": [{"value": "good"}, {"value": "warm"}],
        }
        body = {"input": text, "questions": [asked]}
        assert answered(client, "/v1/decisions", body)["answers"][0]["labels"] == labels


def answered_get(client: httpx2.Client, path: str) -> Any:
    found = client.get(path)
    assert found.status_code == 200, found.text
    return found.json()


def test_answers_of_one_label_have_no_further_fields(live: httpx2.Client) -> None:
    (row,) = answered(live, "/v1/classify", {"model": "tone", "input": "x"})["data"]
    assert "labels" not in row
    assert all(
        "given" not in one for one in answered(live, "/predict", {"model": "tone", "inputs": "x"})
    )
