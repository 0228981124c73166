"""Grids: expanded in order, skipped when finished, resumed, and going on after a failure."""

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tiny
from taskfit.compare.fingerprint import EXCLUDED_FROM_HASH
from taskfit.compare.grid import (
    Grid,
    GridRun,
    describe_runs,
    expand_grid,
    hold_out_test,
    load_grid,
)
from taskfit.compare.run import run_grid
from taskfit.errors import CheckpointError, SettingsError, TaskfitError
from taskfit.screen import SilentScreen
from taskfit.settings import RunSettings
from taskfit.settings_base import merge_settings
from tiny_grid import run_until_killed
from tiny_locks import held_elsewhere
from tiny_processes import SERVER
from tiny_screens import Killed, NotingScreen


@pytest.fixture
def grid(tmp_path: Path, model_folder: Path) -> dict[str, Any]:
    train = tiny.write_csv(tmp_path / "train.csv", tiny.toy_examples(60))
    test = tiny.write_csv(tmp_path / "test.csv", tiny.toy_examples(10, offset=100))
    return {
        "base": {
            "data": {
                "train": str(train),
                "tests": {"new": str(test)},
                "validation_fraction": 0.1,
                "max_validation": 6,
            },
            "model": {"name": str(model_folder), "dtype": "float32"},
            "training": {"tensorboard": False, "learning_rate": 0.01, "batch_size": 4, "epochs": 1},
        },
        "sizes": {8: {"training": {"epochs": 2}}, 16: {}},
        "seeds": 2,
        "methods": {
            "words": {"method": {"name": "label_words", "num_demonstrations": 0}},
            "zero-shot": {"method": {"name": "in_context", "num_demonstrations": 0}},
            "words of all": {"method": {"name": "tfidf"}},
        },
    }


def runs_of(grid: dict[str, Any]) -> list[GridRun]:
    return expand_grid(grid).runs


def folders(grid: dict[str, Any]) -> list[str]:
    return [run.folder for run in runs_of(grid)]


def test_a_grid_is_methods_by_sizes_by_draws_and_zero_shot_runs_once(grid: dict[str, Any]) -> None:
    runs = runs_of(grid)
    assert describe_runs(runs) == "words of all: 4, zero-shot: 1, words: 4"
    assert len({run.folder for run in runs}) == 9
    seeds = [run.settings.seed for run in runs]
    assert seeds == sorted(seeds)
    by_size = {run.size: run.settings.training.epochs for run in runs if run.name == "words"}
    assert by_size == {8: 2.0, 16: 1.0}
    assert folders(grid) == [run.folder for run in runs]


def test_a_fingerprint_changes_with_settings_data_and_task_and_with_nothing_else(
    grid: dict[str, Any], tmp_path: Path
) -> None:
    before = folders(grid)
    task = tmp_path / "task.yaml"
    text = """name: mood
version: 1
text: [text]
label: label
labels: [{name: good, words: [" good"]}, {name: bad, words: [" bad"]}]
template: {line: "{text} -{label}"}
metric: accuracy
"""
    seen = set(before)

    def all_new() -> bool:
        found = folders(grid)
        new = not seen & set(found)
        seen.update(found)
        return new

    for key, value in {
        "model": {"device": "cuda:3"},
        "training": {"tensorboard": True, "save_every_steps": 7, "trackers": ["mlflow"]},
        "data": {"folder": "/elsewhere"},
        "seed": 0,
    }.items():
        merge_settings(grid["base"], {key: value})
        assert folders(grid) == before, key
    merge_settings(grid["base"], {"training": {"max_grad_norm": 1.0}})  # its default
    assert folders(grid) == before
    merge_settings(grid["base"], {"training": {"max_grad_norm": 2.0}})
    assert all_new()
    task.write_text(text)
    merge_settings(grid["base"], {"task": {"name": str(task)}})
    assert all_new()
    task.write_text(text.replace("version: 1", "version: 2"))
    assert all_new()
    for name in ("train.csv", "test.csv"):
        with (tmp_path / name).open("a") as file:
            file.write("A new song was warm.,good\n")
        assert all_new(), name


def test_what_has_no_part_in_a_fingerprint_is_a_setting() -> None:
    dumped = RunSettings().model_dump()
    for section, names in EXCLUDED_FROM_HASH.items():
        assert names <= dumped[section].keys()


def test_a_source_is_read_once_however_many_runs_share_it(
    grid: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["taskfit.runs.sources"]
    original: Any = module.__dict__["read_table"]
    read: list[str] = []

    def counting(source: str, **options: Any) -> Any:
        read.append(source)
        return original(source, **options)

    monkeypatch.setattr(module, "read_table", counting)
    grid["methods"] = {"tfidf": grid["methods"]["words of all"]}
    outcome = run_grid(expand_grid(grid), tmp_path / "out", screen=SilentScreen())
    assert len(outcome.results) == 4
    assert sorted(Path(source).name for source in read) == ["test.csv", "train.csv"]


def test_a_method_that_reads_no_model_runs_once_for_all_models(grid: dict[str, Any]) -> None:
    counts = describe_runs(runs_of(grid | {"models": ["a/one", "b/other"]}))
    assert counts == "words of all: 4, zero-shot: 2, words: 8"


def test_settings_wrong_for_one_method_are_recorded_and_the_rest_runs(
    grid: dict[str, Any], tmp_path: Path
) -> None:
    grid |= {"seeds": 1, "sizes": [8]}
    grid["methods"] = {
        "misspelt": {"method": {"nmae": "head"}},
        "strange words": {"task": {"label_words": {"gold": " gold"}}},
        "tfidf": {"method": {"name": "tfidf"}},
    }
    outcome = run_grid(expand_grid(grid), tmp_path / "out", screen=SilentScreen())
    assert [result.name for result in outcome.results] == ["tfidf"]
    first, second = sorted(outcome.failures.values(), key=lambda text: "misspelt" in text)
    assert "gold" in first
    assert second.startswith("method misspelt of the grid: Unknown setting method.nmae")
    kept = sorted((tmp_path / "out" / "runs").glob("*/failure.json"))
    assert len(kept) == 2
    del grid["methods"]["misspelt"], grid["methods"]["strange words"]
    run_grid(expand_grid(grid), tmp_path / "out", screen=SilentScreen())
    assert not (tmp_path / "out" / "runs" / "refused-misspelt-8").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"task": {"label_words": {"gold": " gold"}}}, "gold"),
        ({"data": {"train": "nowhere.csv"}}, "nowhere.csv"),
        ({"data": {"label": "mood"}}, "mood"),
        ({"training": {"epoch": 3}}, "Unknown setting training.epoch. Did you mean"),
    ],
)
def test_settings_wrong_for_all_stop_before_anything_runs(
    grid: dict[str, Any], tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    merge_settings(grid["base"], wrong)
    with pytest.raises(TaskfitError, match=message) as caught:
        run_grid(expand_grid(grid), tmp_path / "out", screen=SilentScreen())
    assert str(caught.value).count(message) == 1
    assert not list((tmp_path / "out").glob("runs/*/*"))


def test_a_method_that_gives_one_label_does_not_stop_a_grid_of_several(
    grid: dict[str, Any], tmp_path: Path
) -> None:
    grid |= {"seeds": 1, "sizes": [8]}
    merge_settings(grid["base"], {"task": {"multi_label": True}})
    outcome = run_grid(expand_grid(grid), tmp_path / "out", screen=SilentScreen())
    assert [result.name for result in outcome.results] == ["words of all"]
    assert len(outcome.failures) == 2
    assert all("task.multi_label is set" in text for text in outcome.failures.values())


def test_all_methods_at_one_size_and_draw_see_the_same_examples(
    grid: dict[str, Any], tmp_path: Path
) -> None:
    found = expand_grid(grid)
    runs = found.runs
    run_grid(found, tmp_path / "out", screen=SilentScreen())
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
    with pytest.raises(Killed):
        run_grid(runs, tmp_path / "broken", screen=NotingScreen(kill_at=3))
    screen = NotingScreen()
    again = run_grid(runs, tmp_path / "broken", screen=screen)
    started = [note for note in screen.notes if note.startswith("[")]
    assert len(started) == 1
    assert "words-" in started[0]
    for one, other in zip(whole.results, again.results, strict=True):
        assert one.name == other.name
        assert one.evaluations["new"].log_loss == other.evaluations["new"].log_loss


def test_each_run_is_recorded_before_the_next_one_starts(
    grid: dict[str, Any], tmp_path: Path
) -> None:
    grid |= {"sizes": [8], "methods": {"words of all": grid["methods"]["words of all"]}}
    finished = []

    class Looking(SilentScreen):
        def note(self, text: str) -> None:
            if text.startswith("["):
                record = json.loads((tmp_path / "out" / "grid.json").read_text())
                finished.append(record["num_finished"])
                assert set(record["names"].values()) == {"words of all"}

    run_grid(expand_grid(grid), tmp_path / "out", screen=Looking())
    assert finished == [0, 1]


def test_a_run_of_one_method_leaves_the_shared_model_as_it_was(
    grid: dict[str, Any], tmp_path: Path
) -> None:
    zero = {"zero-shot": grid["methods"]["zero-shot"]}
    alone = run_grid(
        expand_grid({**grid, "methods": zero}), tmp_path / "alone", screen=NotingScreen()
    )
    runs = expand_grid(grid)
    last = sorted(runs.runs, key=lambda run: run.name == "zero-shot")
    mixed = run_grid(Grid(last), tmp_path / "mixed", screen=NotingScreen())
    assert mixed.results[-1].evaluations["new"] == alone.results[0].evaluations["new"]


def test_a_failure_is_recorded_the_rest_goes_on_and_it_is_tried_again(
    grid: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid |= {"seeds": 1, "sizes": [8]}
    module = sys.modules["taskfit.compare.runner"]
    original: Any = module.__dict__["search_and_fit"]

    def failing(settings: Any, *args: Any, **kwargs: Any) -> Any:
        if settings.method.name == "tfidf":
            raise RuntimeError("the disk fell off")
        return original(settings, *args, **kwargs)

    monkeypatch.setattr(module, "search_and_fit", failing)
    outcome = run_grid(expand_grid(grid), tmp_path / "out", screen=SilentScreen())
    assert len(outcome.results) == 2
    assert list(outcome.failures.values()) == ["the disk fell off"]
    (name,) = outcome.failures
    saved = json.loads((tmp_path / "out" / "runs" / name / "failure.json").read_text())
    assert "RuntimeError" in saved["traceback"]
    monkeypatch.setattr(module, "search_and_fit", original)
    again = run_grid(expand_grid(grid), tmp_path / "out", screen=SilentScreen())
    assert (len(again.results), again.failures) == (3, {})
    assert not (tmp_path / "out" / "runs" / name / "failure.json").exists()


def test_no_run_starts_when_the_time_is_up(grid: dict[str, Any], tmp_path: Path) -> None:
    runs = expand_grid(grid)
    outcome = run_grid(runs, tmp_path / "out", screen=SilentScreen(), budget_seconds=0)
    assert len(outcome.left) == len(runs.runs)
    assert json.loads((tmp_path / "out" / "grid.json").read_text())["left"] == folders(grid)


def test_no_run_starts_that_is_known_to_take_longer_than_what_is_left(
    grid: dict[str, Any], tmp_path: Path
) -> None:
    grid |= {"sizes": [8, 16], "methods": {"tfidf": {"method": {"name": "tfidf"}}}}
    first = expand_grid(grid | {"seeds": 1, "sizes": [8]})
    run_grid(first, tmp_path / "out", screen=SilentScreen())
    path = tmp_path / "out" / "runs" / first.runs[0].folder / "result.json"
    slow = json.loads(path.read_text()) | {"duration_seconds": 10_000.0}
    path.write_text(json.dumps(slow))
    outcome = run_grid(
        expand_grid(grid), tmp_path / "out", screen=SilentScreen(), budget_seconds=1_000
    )
    assert (len(outcome.results), len(outcome.left)) == (1, 3)


def test_a_finished_grid_needs_no_model_and_is_not_touched(
    grid: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid |= {"seeds": 1}
    run_grid(expand_grid(grid), tmp_path / "out", screen=SilentScreen())
    table = (tmp_path / "out" / "results.csv").read_bytes()
    history = (tmp_path / "out" / "history.csv").read_bytes()
    module = sys.modules["taskfit.compare.runner"]
    monkeypatch.setattr(module, "load_model", None)
    monkeypatch.setattr(module, "search_and_fit", None)
    again = run_grid(expand_grid(grid), tmp_path / "out", screen=SilentScreen())
    assert len(again.results) == 5
    assert (tmp_path / "out" / "results.csv").read_bytes() == table
    assert (tmp_path / "out" / "history.csv").read_bytes() == history


def test_history_has_every_step_and_validation_in_the_order_of_the_grid(
    grid: dict[str, Any], tmp_path: Path
) -> None:
    runs = expand_grid(grid)
    run_grid(runs, tmp_path / "out", screen=SilentScreen())
    table = pd.read_csv(tmp_path / "out" / "history.csv")
    trained = [run.folder for run in runs.runs if run.name == "words"]
    assert list(dict.fromkeys(table["folder"])) == trained
    steps = table[table["kind"] == "step"].groupby("folder", sort=False)
    assert steps["step"].max().tolist() == [4, 4, 4, 4]
    assert steps["size"].first().tolist() == [8, 16, 8, 16]
    assert table.loc[table["kind"] == "validation", "accuracy"].notna().all()


def test_a_finished_run_of_other_settings_is_not_taken_for_this_one(
    grid: dict[str, Any], tmp_path: Path
) -> None:
    grid |= {"seeds": 1, "sizes": [8], "methods": {"tfidf": {"method": {"name": "tfidf"}}}}
    runs = expand_grid(grid)
    run_grid(runs, tmp_path / "out", screen=SilentScreen())
    path = tmp_path / "out" / "runs" / runs.runs[0].folder / "settings.yaml"
    path.write_text(path.read_text().replace("max_validation: 6", "max_validation: 7"))
    outcome = run_grid(runs, tmp_path / "out", screen=SilentScreen())
    (message,) = outcome.failures.values()
    assert "made with other settings by another version" in message


def test_two_commands_do_not_work_in_one_folder(grid: dict[str, Any], tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "out"), pytest.raises(CheckpointError, match="at work in"):
        run_grid(expand_grid(grid), tmp_path / "out", screen=SilentScreen())


def test_a_grid_killed_twice_ends_with_the_same_tables_as_an_undisturbed_one(
    grid: dict[str, Any], tmp_path: Path
) -> None:
    grid |= {"seeds": 1, "sizes": {8: {"training": {"epochs": 2}}}}
    merge_settings(grid["base"], {"training": {"eval_every_steps": 1}})
    runs = expand_grid(grid)
    run_grid(runs, tmp_path / "whole", screen=SilentScreen())
    for step in (2, 4):
        process = SERVER.Process(target=run_until_killed, args=(grid, tmp_path / "broken", step))
        process.start()
        process.join(300)
        assert process.exitcode == -signal.SIGKILL
    run_grid(runs, tmp_path / "broken", screen=SilentScreen())
    for name in ("results.csv", "history.csv"):
        whole, broken = (pd.read_csv(tmp_path / part / name) for part in ("whole", "broken"))
        measured = [c for c in whole if re.search("second|memory", c)]
        assert len(whole.columns) > len(measured) + 8
        pd.testing.assert_frame_equal(
            whole.drop(columns=measured), broken.drop(columns=measured), check_exact=True
        )
    assert not json.loads((tmp_path / "broken" / "grid.json").read_text())["left"]


def test_a_test_set_is_held_out_only_where_none_is_given(grid: dict[str, Any]) -> None:
    def holds_out(*, methods: Any = None, **base: Any) -> bool:
        return hold_out_test({"base": base, "methods": methods or {"a": {}}})

    assert holds_out(data={"train": "a.csv"})
    assert holds_out(data={"train": "a.csv"}, task={"name": "sentiment"})
    assert not holds_out(task={"name": "sentiment"})
    assert not holds_out(data={"train": "a.csv", "test_fraction": 0.1})
    assert not holds_out(
        data={"train": "a.csv"}, methods={"a": {"data": {"tests": {"b": "b.csv"}}}}
    )
    assert not hold_out_test(grid)
    del grid["base"]["data"]["tests"]
    assert hold_out_test(grid)
    assert {run.settings.data.test_fraction for run in runs_of(grid)} == {0.3}


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
    path.write_text("methods: {a: {}}\nmodels: tiny\n")
    with pytest.raises(SettingsError, match="models is 'tiny', but it must be a list of names"):
        load_grid(path)
    grid["methods"] = {"odd": {"method": {"nmae": "head"}}}
    with pytest.raises(
        SettingsError, match=r"method odd of the grid: Unknown setting method\.nmae"
    ):
        expand_grid(grid)
