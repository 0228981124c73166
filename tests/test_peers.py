"""The comparison with other tools: one draw for all, and verdicts that follow from figures."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from peer_data import PeerData, read_data
from peer_prepare import prepare, write_data
from peer_table import verdict


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "banking77"
    folder.mkdir()
    rows = [f"question {i} about {'cards' if i % 2 else 'fees'},{i % 2}_x\n" for i in range(40)]
    with gzip.open(folder / "train.csv.gz", "wt") as file:
        file.write("text,category\n" + "".join(rows))
    # One text stands in both tables.
    (folder / "test.csv").write_text("text,category\nnew fees?,0_x\nnew card?,1_x\n" + rows[3])
    monkeypatch.setenv("TASKFIT_DATA", str(tmp_path))
    return tmp_path / "peers"


def written(folder: Path, seed: int) -> PeerData:
    write_data(folder, "banking77", 5, seed=seed, max_test=3, max_other=3)
    return read_data(folder)


def test_contenders_read_the_examples_that_taskfit_draws(table: Path) -> None:
    data, drawn = written(table, 0), prepare("banking77", 5, seed=0)
    assert data.train.texts == [example.texts["text"] for example in drawn.train]
    assert [data.labels[i] for i in data.train.gold] == [example.label for example in drawn.train]
    assert not set(data.train.texts) & set(data.tests["test"].texts)
    assert all(text in p for text, p in zip(data.train.texts, data.train.prompts, strict=True))


def test_another_draw_replaces_the_files_and_changes_the_digest(table: Path) -> None:
    first = written(table, 0)
    assert written(table, 0).digest() == first.digest()
    assert written(table, 1).digest() != first.digest()


def result(contender: str, side: str, accuracy: float, seconds: float) -> dict[str, object]:
    return {
        "contender": contender,
        "side": side,
        "evaluations": {"test": {"accuracy": accuracy}},
        "seconds": {"load": 99.0, "training": seconds - 1, "evaluation": 1.0},
    }


@pytest.mark.parametrize(
    ("peer_right", "peer_seconds", "beaten", "reached"),
    [(90, 40.0, False, True), (90, 20.0, False, False), (99, 40.0, False, False),
     (99, 5.0, True, False)],
)  # fmt: skip
def test_the_claims_follow_from_quality_and_seconds(
    peer_right: int,
    peer_seconds: float,
    beaten: bool,
    reached: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("taskfit.stats.bootstrap.NUM_RESAMPLES", 40)
    gold = np.ones(100, int)
    predicted = {
        "taskfit default": (np.arange(100) < 95).astype(int),
        "other": (np.arange(100) < peer_right).astype(int),
    }
    rows = [
        result("taskfit default", "ours", 0.95, 10.0),
        result("other", "peer", peer_right / 100, peer_seconds),
    ]
    found = verdict(rows, "accuracy", "test", gold, predicted)
    assert found["nobody_better_and_faster"] is not beaten
    assert found["nobody_clearly_better_and_faster"] is not beaten
    assert found["default_reaches_best_peer_in_a_third"] is reached
    fastest = {"contender": "taskfit default", "share_of_its_time": 10 / peer_seconds}
    assert found["our_fastest_to_reach_best_peer"] == (fastest if peer_right <= 95 else None)
    assert found["duels_with_our_best"][0]["ratio_to_our_best"] == peer_seconds / 10
