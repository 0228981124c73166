"""`taskfit prompts`: a table in 80 columns, the winner's prompt, and what to do next."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

import tiny
from taskfit.cli.prompts import prompts
from taskfit.errors import SettingsError
from taskfit.search import wordings
from taskfit.tasks import load_task

app = typer.Typer()
app.command()(prompts)


@pytest.fixture
def run(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    tiny.write_csv(tmp_path / "train.csv", tiny.toy_examples(60))
    sets = ["model.dtype=float32", "model.device=cpu", "method.num_demonstrations=0"]
    fixed = ["--data", "train.csv", "--label", "label", "--model", str(model_folder)]
    fixed += [part for one in sets for part in ("--set", one)]

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*fixed, "--examples", "32", *arguments])

    return invoke


def test_the_winner_is_shown_written_and_what_to_do_next_is_told(run, tmp_path: Path) -> None:
    result = run("--out", "winner.yaml", "--table", "--keep", "2", "--seed", "3")
    assert result.exit_code == 0, result.output
    task = load_task("winner.yaml")
    out = result.output
    assert "log loss" in out
    assert "as given" in out
    assert "Tokens run" in out
    assert "taskfit fit train.csv --task winner.yaml --label label" in out
    for part in filter(str.strip, task.template.line.partition("{text}")[0].split("\n")):
        assert part in out
    assert (tmp_path / "winner.csv").is_file()
    table = out[out.index("wording") : out.index("Tokens run")].splitlines()
    assert max(map(len, table)) <= 80


def test_your_own_candidates_are_tried_beside_the_task_as_given(run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "- {name: my arrow, line: '{text} =>{label}'}\n"
        "- {name: 'my [words]', line: 'Is {text}{label}'}\n"
    )
    result = run("--candidates", "mine.yaml")
    assert result.exit_code == 0, result.output
    for name in ("my arrow", "my [words]", "as given"):
        assert name in result.output
    last = next(line for line in result.output.splitlines() if "taskfit fit" in line)
    words = shlex.split(last)
    assert words[:2] == ["taskfit", "fit"]
    assert "--out FILE.yaml" in result.output


def test_a_file_that_is_there_is_refused_before_anything_is_run(run, tmp_path: Path) -> None:
    (tmp_path / "winner.yaml").write_text("mine")
    result = run("--out", "winner.yaml")
    assert isinstance(result.exception, SettingsError)
    assert "is there already" in str(result.exception)
    assert "round 1" not in result.output
    assert (tmp_path / "winner.yaml").read_text() == "mine"


def test_a_table_without_a_task_file_is_refused(run) -> None:
    result = run("--table")
    assert isinstance(result.exception, SettingsError)
    assert "--out" in str(result.exception)


@pytest.mark.parametrize(("alone", "told"), [(99, "little or none"), (310, "3.1 times as many")])
def test_a_saving_is_told_only_where_there_is_one(
    run, monkeypatch: pytest.MonkeyPatch, alone: int, told: str
) -> None:
    real = wordings.search_prompts

    def counted(*arguments: Any, **options: Any) -> wordings.PromptSearch:
        found = real(*arguments, **options)
        return replace(found, num_tokens_run=100, num_tokens_separate=alone)

    monkeypatch.setattr(wordings, "search_prompts", counted)
    out = " ".join(run("--keep", "2").output.split())
    assert f"Tokens run: 100; one wording at a time they would be {alone}, " in out
    assert told in out
    assert "1.0 times" not in out
