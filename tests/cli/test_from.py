"""`taskfit fit more.csv --from RUN`: what is typed, said, listed and refused."""

import json
from collections.abc import Callable

import tiny


def test_more_labels_go_on_from_a_run_and_it_is_said_listed_and_reported(shell) -> None:
    assert shell.fit("--method", "head", "--set", "method.prompt=false", out="runs/mine")[0] == 0
    tiny.write_csv(shell.folder / "more.csv", tiny.toy_examples(12, offset=200))
    code, out, err = shell("fit", "more.csv", "--from", "runs/mine", "--epochs", "1")
    assert code == 0, err
    assert "goes on from runs/mine: training starts from its adapter and head" in out
    assert "new to runs/mine: 12 of the 12 rows of more.csv" in out
    assert "training rows of runs/mine (train.csv) join those of more.csv" in out
    settings = (shell.folder / "runs" / "more" / "settings.yaml").read_text()
    assert "prompt: false" in settings
    record = json.loads((shell.folder / "runs" / "more" / "result.json").read_text())
    assert record["details"]["start"]["run"] == str(shell.folder / "runs" / "mine")
    page = (shell.folder / "runs" / "more" / "report.html").read_text()
    assert "Went on from the run in" in page
    code, out, _ = shell("runs")
    header, *rows = out.splitlines()
    assert "from" in header
    assert "mine" in next(row for row in rows if row.startswith("more"))
    code, _, err = shell("predict", "runs/more", "test.csv", "-o", "labelled.csv")
    assert code == 0, err


def test_what_contradicts_from_is_refused_and_leaves_nothing(
    shell, refused: Callable[..., str]
) -> None:
    assert shell.fit("--method", "tfidf", out="runs/mine")[0] == 0
    go_on = ("fit", "train.csv", "--from", "runs/mine")
    assert "Give one of the two" in refused(*go_on, "--resume", "runs/mine")
    assert "Give one of the two" in refused(*go_on, "--config", "cola")
    assert "method.name is knn, and was tfidf" in refused(*go_on, "--method", "knn")
    assert "nowhere is not there: give the folder" in refused("fit", "--from", "nowhere")
    assert "train.csv is a file: give the folder" in refused("fit", "--from", "train.csv")
    (shell.folder / "empty").mkdir()
    assert "holds no finished run" in refused("fit", "train.csv", "--from", "empty")
    assert "Leave --search or --from out" in refused(*go_on, "--search", "2")
    (shell.folder / "test.csv").rename(shell.folder / "moved.csv")
    message = refused(*go_on)
    assert "test.csv (data.tests.new)" in message
    assert [path.name for path in (shell.folder / "runs").iterdir()] == ["mine"]
    code, _, err = shell(*go_on, "--test", "new=moved.csv")
    assert code == 0, err


def test_other_columns_and_unknown_labels_are_told(shell, refused: Callable[..., str]) -> None:
    assert shell.fit("--method", "tfidf", out="runs/mine")[0] == 0
    (shell.folder / "more.csv").write_text("body,label\nThe dog was warm.,good\n")
    message = refused("fit", "more.csv", "--from", "runs/mine")
    assert "more.csv has no column 'text', where runs/mine reads texts" in message
    message = refused("fit", "more.csv", "--from", "runs/mine", "--text", "body")
    assert "data.text is body, and was text (rename the columns of the table)" in message
    (shell.folder / "more.csv").write_text("text,mood\nThe dog was warm.,good\n")
    assert "has no column 'label'" in refused("fit", "more.csv", "--from", "runs/mine")
    assert [path.name for path in (shell.folder / "runs").iterdir()] == ["mine"]
    (shell.folder / "more.csv").write_text("text,mood\nThe dog was warm.,1\n")
    code, out, err = shell("fit", "more.csv", "--from", "runs/mine", "--label", "mood")
    assert code == 0, err
    assert "are its labels written otherwise?" in out
