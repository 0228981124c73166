"""Grids: expanded once, skipped when finished, resumed, and going on after a failure."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tiny
from taskfit.errors import SettingsError
from taskfit.experiments import SilentScreen
from taskfit.experiments.grid.grid import describe_runs, expand_grid, load_grid, run_grid


@pytest.fixture
def grid(tmp_path: Path, model_folder: Path) -> dict[str, Any]:
    train = tiny.write_csv(tmp_path / "train.csv", tiny.toy_examples(60))
    test = tiny.write_csv(tmp_path / "test.csv", tiny.toy_examples(10, offset=100))
    return {
        "base": {
            "data": {"train": str(train), "tests": {"new": str(test)}, "max_validation": 6},
            "model": {"name": str(model_folder), "dtype": "float32"},
            "training": {"tensorboard": False, "learning_rate": 0.01, "batch_size": 4},
        },
        "sizes": {8: {"training": {"epochs": 2}}, 16: {}},
        "seeds": 2,
        "methods": {
            "words": {"method": {"name": "label_words", "num_demonstrations": 0}},
            "zero-shot": {"method": {"name": "in_context", "num_demonstrations": 0}},
            "words of all": {"method": {"name": "tfidf"}},
        },
    }


class Listening(SilentScreen):
    """Keeps what was said, and stops at a training step if told to."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.notes: list[str] = []
        self.kill_at = kill_at

    def note(self, text: str) -> None:
        self.notes.append(text)

    def record(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "step" and record["step"] == self.kill_at:
            raise KeyboardInterrupt


def test_a_grid_is_methods_by_sizes_by_draws_and_zero_shot_runs_once(grid: dict[str, Any]) -> None:
    runs = expand_grid(grid)
    assert describe_runs(runs) == "words of all: 4, zero-shot: 1, words: 4"
    assert len({run.folder for run in runs}) == 9
    seeds = [run.settings.seed for run in runs]
    assert seeds == sorted(seeds)
    by_size = {run.size: run.settings.training.epochs for run in runs if run.name == "words"}
    assert by_size == {8: 2.0, 16: 1.0}
    assert [run.folder for run in expand_grid(grid)] == [run.folder for run in runs]
    grid["base"]["training"]["learning_rate"] = 0.02
    assert not {r.folder for r in expand_grid(grid)} & {r.folder for r in runs if r.name == "words"}


def test_all_methods_at_one_size_and_draw_see_the_same_examples(
    grid: dict[str, Any], tmp_path: Path
) -> None:
    runs = expand_grid(grid)
    run_grid(runs, tmp_path / "out", screen=SilentScreen())
    prints: dict[tuple[int | None, int], set[str]] = {}
    tests = set()
    for run in runs:
        found = json.loads((tmp_path / "out" / "runs" / run.folder / "data.json").read_text())
        tests.add(found["new"])
        if run.size is not None:
            prints.setdefault((run.size, run.settings.seed), set()).add(found["train"])
    assert len(tests) == 1
    assert len(prints) == 4
    assert all(len(found) == 1 for found in prints.values())
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert len(table) == 9
    assert set(table["num_train"]) == {0, 8, 16}


def test_finished_runs_are_kept_and_an_interrupted_one_goes_on_to_the_same_result(
    grid: dict[str, Any], tmp_path: Path
) -> None:
    grid |= {"seeds": 1, "sizes": [16]}
    runs = expand_grid(grid)
    whole = run_grid(runs, tmp_path / "whole", screen=SilentScreen())
    with pytest.raises(KeyboardInterrupt):
        run_grid(runs, tmp_path / "broken", screen=Listening(kill_at=3))
    screen = Listening()
    again = run_grid(runs, tmp_path / "broken", screen=screen)
    started = [note for note in screen.notes if note.startswith("[")]
    assert len(started) == 1
    assert "words-" in started[0]
    for one, other in zip(whole.results, again.results, strict=True):
        assert one.name == other.name
        assert one.evaluations["new"].log_loss == other.evaluations["new"].log_loss


def test_a_run_of_one_method_leaves_the_shared_model_as_it_was(
    grid: dict[str, Any], tmp_path: Path
) -> None:
    zero = {"zero-shot": grid["methods"]["zero-shot"]}
    alone = run_grid(expand_grid({**grid, "methods": zero}), tmp_path / "alone", screen=Listening())
    runs = expand_grid(grid)
    last = sorted(runs, key=lambda run: run.name == "zero-shot")
    mixed = run_grid(last, tmp_path / "mixed", screen=Listening())
    assert mixed.results[-1].evaluations["new"] == alone.results[0].evaluations["new"]


def test_a_failure_is_recorded_the_rest_goes_on_and_it_is_tried_again(
    grid: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid |= {"seeds": 1, "sizes": [8]}
    module = sys.modules["taskfit.experiments.grid.grid"]
    original: Any = module.__dict__["fit"]

    def failing(settings: Any, *args: Any, **kwargs: Any) -> Any:
        if settings.method.name == "tfidf":
            raise RuntimeError("the disk fell off")
        return original(settings, *args, **kwargs)

    monkeypatch.setattr(module, "fit", failing)
    outcome = run_grid(expand_grid(grid), tmp_path / "out", screen=SilentScreen())
    assert len(outcome.results) == 2
    assert list(outcome.failures.values()) == ["the disk fell off"]
    (name,) = outcome.failures
    saved = json.loads((tmp_path / "out" / "runs" / name / "failure.json").read_text())
    assert "RuntimeError" in saved["traceback"]
    monkeypatch.setattr(module, "fit", original)
    again = run_grid(expand_grid(grid), tmp_path / "out", screen=SilentScreen())
    assert (len(again.results), again.failures) == (3, {})
    assert not (tmp_path / "out" / "runs" / name / "failure.json").exists()


def test_no_run_starts_when_the_time_is_up(grid: dict[str, Any], tmp_path: Path) -> None:
    runs = expand_grid(grid)
    outcome = run_grid(runs, tmp_path / "out", screen=SilentScreen(), budget_seconds=0)
    assert outcome.num_left == len(runs)
    assert json.loads((tmp_path / "out" / "grid.json").read_text())["left"]


def test_a_grid_that_is_none_says_what_is_wrong(grid: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no grid file"):
        load_grid(tmp_path / "none.yaml")
    path = tmp_path / "grid.yaml"
    path.write_text("methods: {a: {}}\nseed: 3\n")
    with pytest.raises(SettingsError, match=r"unknown key seed \(allowed: base, methods, sizes"):
        load_grid(path)
    path.write_text("base: {}\n")
    with pytest.raises(SettingsError, match="it needs `methods`"):
        load_grid(path)
    grid["methods"] = {"odd": {"method": {"nmae": "head"}}}
    with pytest.raises(
        SettingsError, match=r"method odd of the grid: Unknown setting method\.nmae"
    ):
        expand_grid(grid)
