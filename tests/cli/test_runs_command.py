"""`taskfit runs` lists run folders by their records, finished or not."""

import json
from pathlib import Path

import pytest

from taskfit.runs.listing import find_runs


def make_run(folder: Path, *, accuracy: float | None, checkpoint: bool = False) -> None:
    folder.mkdir(parents=True)
    (folder / "settings.yaml").write_text("method:\n  name: head\nmodel:\n  name: tiny\n")
    if checkpoint:
        (folder / "checkpoints" / "step-4").mkdir(parents=True)
    if accuracy is not None:
        result = {
            "method": "head",
            "weights": "lora",
            "model": "tiny",
            "num_train": 34,
            "evaluations": {"test": {"accuracy": accuracy, "mcc": 0.5}, "[new]": {}},
            "created": "2026-02-03T04:05:06+00:00",
        }
        (folder / "result.json").write_text(json.dumps(result))


def test_runs_are_told_with_their_state_and_score(shell) -> None:
    place = shell.folder / "runs"
    make_run(place / "done", accuracy=0.8125)
    make_run(place / "[stopped]", accuracy=None, checkpoint=True)
    make_run(place / "deep" / "begun", accuracy=None)
    # What is inside a run is part of it.
    make_run(place / "done" / "search" / "trial-1", accuracy=0.9)
    (place / "not a run").mkdir()
    found = {run.folder.relative_to(place).as_posix(): run for run in find_runs(place)}
    assert {name: run.state for name, run in found.items()} == {
        "done": "finished",
        "[stopped]": "interrupted",
        "deep/begun": "not started",
    }
    assert found["done"].scores == {"test": (0.8125, 0.5)}
    code, out, _ = shell("runs")
    assert code == 0
    done, stopped = (
        next(line for line in out.splitlines() if name in line) for name in ("done", "[stopped]")
    )
    assert "head, lora" in done
    assert "34" in done
    assert "0.812" in done
    assert "2026-02-03" in done
    assert "interrupted" in stopped
    assert "taskfit fit --resume runs/[stopped]" in out


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"evaluations": {}}'])
def test_a_record_that_says_little_is_listed_all_the_same(tmp_path: Path, record: str) -> None:
    make_run(tmp_path / "run", accuracy=None)
    (tmp_path / "run" / "result.json").write_text(record)
    (run,) = find_runs(tmp_path)
    assert not run.scores


def test_a_place_without_runs_and_no_place_are_told(shell, refused) -> None:
    (shell.folder / "empty").mkdir()
    code, out, _ = shell("runs", "empty")
    assert code == 0
    assert "No runs in empty." in out
    assert "There is no folder nowhere" in refused("runs", "nowhere")
