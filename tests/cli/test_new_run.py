"""Where a run goes that was given no folder, and the flags that commands share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from taskfit.cli.new_run import new_folder, remove_unbegun
from taskfit.errors import SettingsError

Refused = Callable[..., str]


def test_a_run_is_called_after_its_table_and_a_second_one_gets_a_number(shell: Any) -> None:
    for folder in ("runs/train", "runs/train-2"):
        code, out, err = shell("fit", "train.csv", "--method", "tfidf")
        assert code == 0, err
        assert f"run: {folder}\n" in out
        assert Path(folder, "result.json").is_file()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/mine.csv", "mine"),
        ("mine.csv.gz", "mine"),
        ("owner/set:en", "set"),
        ("sentiment", "sentiment"),
        (None, "run"),
    ],
)
def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert new_folder(source, several_processes=False) == Path("runs", name)
    with pytest.raises(SettingsError, match="--out FOLDER"):
        new_folder(source, several_processes=True)


def test_a_mistake_leaves_no_folder_behind(refused: Refused) -> None:
    message = refused("fit", "train.csv", "--label", "lable")
    assert "Did you mean label" in message
    assert not any(Path("runs").iterdir())


def test_what_a_run_has_made_is_never_removed(tmp_path: Path) -> None:
    for name in ("settings.yaml", "metrics.jsonl"):
        (tmp_path / name).write_text("x")
    remove_unbegun(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_table_and_data_are_the_same(shell: Any, refused: Refused) -> None:
    common = ("--method", "tfidf", "--test-fraction", "0.25")
    assert shell("fit", "train.csv", "--data", "train.csv", *common, "--out", "both")[0] == 0
    assert shell("fit", "--data", "train.csv", *common, "--out", "flag")[0] == 0
    first, second = (yaml.safe_load(Path(n, "settings.yaml").read_text()) for n in ("both", "flag"))
    assert first == second
    assert first["data"]["test_fraction"] == 0.25
    for given in (["test.csv"], ["--data", "test.csv"]):
        code, out, err = shell("evaluate", "both", *given)
        assert code == 0, err
        assert "test" in out
    assert "two tables" in refused("evaluate", "both", "test.csv", "--data", "train.csv")


def test_the_flags_of_training_are_settings(shell: Any, refused: Refused) -> None:
    flags = ("--epochs", "1", "--learning-rate", "0.01", "--batch-size", "30")
    code, _, err = shell.fit(*flags, "--set", "training.max_steps=1")
    assert code == 0, err
    training = yaml.safe_load(Path("run/settings.yaml").read_text())["training"]
    # What --set says stands over a flag.
    assert (training["epochs"], training["learning_rate"], training["batch_size"]) == (1, 0.02, 30)
    assert "training.epochs" in refused("fit", "train.csv", "--method", "tfidf", "--epochs", "3")
    assert not any(Path("runs").glob("*"))


def test_methods_of_a_comparison_are_named_either_way(shell: Any) -> None:
    seen = []
    for given in (["--methods", "tfidf,majority"], ["--method", "tfidf", "--method", "majority"]):
        code, out, err = shell("compare", "train.csv", *given, "--seeds", "1", "--dry-run")
        assert code == 0, err
        seen.append(out)
    assert seen[0] == seen[1]
    assert "2 runs" in seen[0]


def test_a_comparison_takes_the_flags_of_training(shell: Any) -> None:
    given = ("--methods", "majority", "--seeds", "1", "--test-fraction", "0.5", "--epochs", "2")
    code, _, err = shell("compare", "train.csv", *given, "--out", "grid")
    assert code == 0, err
    result = json.loads(next(Path("grid/runs").glob("*/result.json")).read_text())
    assert result["evaluations"]["test"]["num_examples"] == 30
