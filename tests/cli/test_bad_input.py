"""Every mistake a user can make ends in one message with the remedy, and exit code 2."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny

Refused = Callable[..., str]


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return name


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text,class_name\na,b\nc,d\n", ["no column 'label'", "class_name"]),
        ("", ["is empty"]),
        ("text,label\na,\nb,x\n", ["1 row (line 2) without a label"]),
        (b"text,label\ncaf\xe9,x\nb,y\n", ["is not utf-8", "data.encoding=cp1252"]),
        ("text,label\na,x\nb,x\n", ["All 2 training examples have the label 'x'"]),
    ],
)
def test_tables_that_do_not_serve(
    refused: Refused, content: str | bytes, expected: list[str]
) -> None:
    message = refused("fit", "--data", write("d.csv", content), "--label", "label", "--out", "r")
    for part in expected:
        assert part in message


def test_an_unknown_label_in_a_test_set_names_rows(refused: Refused, shell) -> None:
    write("odd.csv", "text,label\nx,good\ny,goood\n")
    arguments = shell.fit_arguments()
    message = refused("fit", *arguments, "--test", "odd=odd.csv", "--out", "r")
    assert "1 row with an unknown label: 'goood' (odd.csv:3)" in message
    assert "Did you mean good" in message


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("task.line='Label:{label}'", "names no text column"),
        ("task.label_words.good=' bad'", "' bad' stands for 'bad' and for 'good'"),
        ("task.line='{text} {label}'\n", "should end without a space"),
        ("training.learning_rte=1", "Did you mean training.learning_rate"),
        ("method.name=magic", "input should be 'auto', 'in_context', 'label_words'"),
        ("method.calibration=batch", "is read by in_context, distill, not by label_words"),
        ("model.max_length=12", "even without its text"),
        ("data.num_train=5000", "5000 examples are asked for"),
        ("training.token_budget=16", "the token budget is 16"),
        ("model.device=gpu", "allowed are auto, cpu, cuda"),
    ],
)
def test_settings_that_do_not_serve(refused: Refused, shell, setting: str, expected: str) -> None:
    extra = ["--set", setting.strip()]
    if "{text} {label}" in setting:
        extra += ["--set", "task.label_words.good=good", "--set", "task.label_words.bad=bad"]
    assert expected in refused("fit", *shell.fit_arguments(), "--out", "r", *extra)


def test_models_that_do_not_serve(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ("fit", "--data", "train.csv", "--out", "r", "--model")
    assert "without config.json" in refused(*arguments, "./empty")
    assert "could not be had from the hub" in refused(*arguments, "nobody/nothing")


def test_text_longer_than_the_model_is_shortened_and_counted(shell) -> None:
    long = [
        tiny.Example(e.id, {"text": e.texts["text"] + " The dog was happy." * 80}, e.label)
        for e in tiny.toy_examples(4, offset=200)
    ]
    tiny.write_csv(Path("train.csv"), tiny.toy_examples(30) + long)
    code, out, err = shell.fit("--set", "training.max_steps=1")
    assert code == 0, err
    assert "4 texts shortened" in out or "3 texts shortened" in out


def test_resuming_with_other_settings_or_data_names_them(refused: Refused, shell) -> None:
    module = importlib.import_module("taskfit.report.pages")
    shell.patch.setattr(module, "write_page", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    code, _, _ = shell.fit("--set", "training.max_steps=3", "--set", "training.epochs=1")
    assert code == 130
    shell.patch.undo()
    shell.patch.chdir(shell.folder)
    Path("run/result.json").unlink()
    message = refused("fit", "--resume", "run", "--set", "training.epochs=9")
    assert "training.epochs: 1.0 -> 9.0" in message
    tiny.write_csv(Path("test.csv"), tiny.toy_examples(20, offset=300))
    assert "The data changed since" in refused("fit", "--resume", "run")
    assert "new" in refused("fit", "--resume", "run")


def test_runs_that_are_not_there_or_there_already(refused: Refused, shell) -> None:
    assert "--out FOLDER for a new run" in refused("fit", "--out", "r", "--resume", "r")
    assert "no run to resume" in refused("fit", "--resume", "nowhere")
    assert "holds no finished run" in refused("predict", "nowhere", "test.csv", "-o", "o.csv")
    shell.fit("--set", "training.max_steps=1")
    again = [*shell.fit_arguments(), "--out", "run"]
    assert "holds a run already" in refused("fit", *again)
    assert "is finished" in refused("fit", "--resume", "run")
    assert "predictions are written as" in refused("predict", "run", "test.csv", "-o", "o.xlsx")
    write("other.csv", "sentence\nx\n")
    assert "no column 'text'" in refused("predict", "run", "other.csv", "-o", "o.csv")
    assert not Path("o.csv").exists()


def test_wrong_flags_are_explained(refused: Refused) -> None:
    assert "write it as NAME=FILE" in refused("fit", "--out", "r", "--test", "x.csv")
    assert "No data" in refused("fit", "--out", "r")
    assert "No data" in refused("fit", "--out", "r", "--set", "seed=1")
    assert "is a built-in task: give --task sentiment" in refused("fit", "sentiment")
    assert "no built-in data set" in refused("data", "cool")
    assert "Did you mean sentiment" in refused("fit", "--out", "r", "--task", "sentimental")


def test_after_a_mistake_the_same_folder_may_be_used_again(refused: Refused, shell) -> None:
    arguments = [*shell.fit_arguments(), "--out", "run"]
    refused("fit", *arguments, "--set", "data.num_train=5000")
    code, _, err = shell("fit", *arguments, "--set", "training.max_steps=1")
    assert code == 0, err
