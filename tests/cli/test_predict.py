"""Predictions of texts at hand: the command line, standard input and output, and Python."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import taskfit
import tiny
from taskfit.cli.given import texts_table
from taskfit.errors import DataError
from taskfit.runs.fit import fit
from taskfit.settings_file import load_settings

Refused = Callable[..., str]
TEXTS = [example.texts["text"] for example in tiny.toy_examples(6, offset=100)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the folders of a run of one text column, called body, and of one of two columns."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"body": e.texts["text"], "label": e.label} for e in tiny.toy_examples(40)]
    table = pd.DataFrame(rows)
    table.to_csv(folder / "one.csv", index=False)
    table.rename(columns={"body": "premise"}).assign(hypothesis="So it was.").to_csv(
        folder / "two.csv", index=False
    )
    for name, columns in (("one", ["body"]), ("two", ["premise", "hypothesis"])):
        data = {"train": str(folder / f"{name}.csv"), "text": columns, "test_fraction": 0.0}
        fit(load_settings(flags={"method": {"name": "tfidf"}, "data": data}), folder / name)
    return {name: str(folder / name) for name in ("one", "two")}


def feed(shell: Any, content: str | bytes) -> None:
    raw = content.encode() if isinstance(content, str) else content
    shell.patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))


def test_a_text_is_answered_on_the_screen(shell: Any, runs: dict[str, str]) -> None:
    code, out, err = shell("predict", runs["one"], "--text", TEXTS[0])
    assert code == 0, err
    expected = taskfit.load(runs["one"]).predict_proba(TEXTS)
    label, _, rest = out.partition("   ")
    best, other = ("good", "bad") if expected[0, 1] > expected[0, 0] else ("bad", "good")
    assert label == best
    assert rest == f"{best} {expected[0].max():.3f}, {other} {expected[0].min():.3f}\n"
    code, out, err = shell("predict", runs["one"], "--text", TEXTS[0], "--text", "x=[y]")
    assert code == 0, err
    assert out.splitlines()[0] == TEXTS[0]
    assert out.splitlines()[2] == "x=[y]"


def test_a_row_of_several_columns(shell: Any, runs: dict[str, str], refused: Refused) -> None:
    row = ("--text", f"premise={TEXTS[0]}", "--text", "hypothesis=So it was.")
    code, out, err = shell("predict", runs["two"], *row)
    assert code == 0, err
    assert len(out.splitlines()) == 1
    assert '--text "premise=..."' in refused("predict", runs["two"], "--text", "A text")
    assert "every row needs each column" in refused("predict", runs["two"], *row[:2])
    table = texts_table(["b=1", "a=2", "a=3", "b=4"], ("a", "b"))
    assert table.to_dict("list") == {"a": ["2", "3"], "b": ["1", "4"]}


def test_standard_input_and_output(shell: Any, runs: dict[str, str]) -> None:
    pd.DataFrame({"body": TEXTS}).to_csv("new.csv", index=False)
    assert shell("predict", runs["one"], "new.csv", "-o", "file.csv")[0] == 0
    file = pd.read_csv("file.csv")
    feed(shell, "\n".join(TEXTS[:3]) + "\n\n" + "\n".join(TEXTS[3:]))
    code, out, err = shell("predict", runs["one"], "-", "-o", "-")
    assert code == 0, err
    lines = [line.split("\t") for line in out.splitlines()]
    assert lines.pop(3) == ["", "", ""]  # a line in, a line out
    assert "1 row without a text" in err
    assert [line[0] for line in lines] == file["predicted"].tolist()
    assert [line[2] for line in lines] == TEXTS
    for form in ("csv", "jsonl"):
        table = pd.DataFrame({"body": TEXTS})
        text = table.to_json(orient="records", lines=True) if form == "jsonl" else table.to_csv()
        feed(shell, text)
        code, out, err = shell("predict", runs["one"], "-", "-o", "-", "--format", form)
        assert code == 0, err
        found = (
            pd.read_csv(io.StringIO(out))
            if form == "csv"
            else pd.DataFrame([json.loads(line) for line in out.splitlines()])
        )
        np.testing.assert_allclose(found["p_good"], file["p_good"])
    feed(shell, "\n".join(TEXTS))
    assert shell("predict", runs["one"], "-", "-o", "piped.parquet")[0] == 0
    np.testing.assert_allclose(pd.read_parquet("piped.parquet")["p_good"], file["p_good"])
    code, out, err = shell("predict", runs["one"], "new.csv", "-o", "-")
    assert code == 0, err
    assert pd.read_csv(io.StringIO(out)).drop(columns="id").equals(file.drop(columns="id"))


def test_what_is_wrong_is_said(shell: Any, runs: dict[str, str], refused: Refused) -> None:
    run = runs["one"]
    assert '--text "a text"' in refused("predict", run)
    assert '--text "a text"' in refused("predict", run, "new.csv", "--text", "a")
    assert "Where to?" in refused("predict", run, "new.csv")
    assert "--format is about" in refused("predict", run, "a.csv", "-o", "b.csv", "--format", "csv")
    assert "--format xml" in refused("predict", run, "-", "-o", "-", "--format", "xml")
    assert "written as" in refused("predict", run, "-", "-o", "b.xlsx")
    for content, form, message in (
        ("", "text", "holds no text"),
        ("", "csv", "is empty"),
        (b"caf\xe9", "text", "is not utf-8: byte 0xe9"),
        ("text\nx\n", "csv", "no column 'body'"),
    ):
        feed(shell, content)
        assert message in refused("predict", run, "-", "-o", "-", "--format", form)
    feed(shell, "a\n")
    assert "--format csv" in refused("predict", runs["two"], "-", "-o", "-")


def test_a_loaded_run_takes_texts_of_every_kind(runs: dict[str, str], tmp_path: Path) -> None:
    loaded = taskfit.load(runs["one"])
    expected = loaded.predict_proba(TEXTS)
    assert expected.shape == (len(TEXTS), 2)
    frame = pd.DataFrame({"other": 1, "body": TEXTS}, index=range(9, 9 + len(TEXTS)))
    for texts in (pd.Series(TEXTS), np.array(TEXTS), frame, [{"body": text} for text in TEXTS]):
        np.testing.assert_array_equal(loaded.predict_proba(texts), expected)
    assert loaded.predict(TEXTS[0]) == loaded.predict(TEXTS)[0]
    assert isinstance(loaded.predict(TEXTS[0]), str)
    named = loaded(TEXTS)
    assert [list(one) for one in named] == [sorted(one, key=lambda n: -one[n]) for one in named]
    columns = [[one[name] for one in named] for name in loaded.classes_]
    np.testing.assert_array_equal(np.transpose(columns), expected)
    assert loaded(TEXTS[0]) == loaded({"body": TEXTS[0]}) == named[0]
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS[0]), expected[0])
    with pytest.raises(DataError, match=r"no column 'body'.*it has: bodi\. Did you mean bodi"):
        loaded.predict(frame[["body"]].rename(columns={"body": "bodi"}))
    with pytest.raises(DataError, match=r"texts\[1\] is a float"):
        loaded.predict(pd.Series(["a", float("nan")]))
    with pytest.raises(DataError, match="reads the columns premise, hypothesis"):
        taskfit.load(runs["two"]).predict("a")
    loaded.save(tmp_path / "copy")
    again = taskfit.load(tmp_path / "copy")
    np.testing.assert_array_equal(again.predict_proba(frame), expected)


def test_an_estimator_learns_from_a_table_and_shows_progress_when_asked(
    runs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(f"{runs['two']}.csv")
    for verbose in (False, True):
        estimator = taskfit.TextClassifier(method="tfidf", verbose=verbose)
        estimator.fit(table[["premise", "hypothesis"]], table["label"])
        assert len(estimator.predict(table)) == 40
        out = capsys.readouterr().out
        assert ("predicting: 40" in out) == verbose
        assert bool(out) == verbose
    assert taskfit.TextClassifier(verbose=True).get_params()["verbose"] is True


def test_a_text_of_the_command_line_gets_its_answer_and_nothing_else(shell) -> None:
    shell.fit("--method", "tfidf")
    code, out, err = shell("predict", "run", "--text", "a lovely day")
    assert code == 0
    assert len(out.splitlines()) == 1
    assert err == ""


def test_who_has_read_enough_of_standard_output_ends_the_command_well(
    shell: Any, runs: dict[str, str]
) -> None:
    pd.DataFrame({"body": TEXTS}).to_csv("new.csv", index=False)
    for form in ("csv", "jsonl", "text"):
        reads, writes = os.pipe()
        os.close(reads)
        with shell.patch.context() as patch, open(writes, "w") as closed:
            patch.setattr("sys.stdout", closed)
            code, _, err = shell("predict", runs["one"], "new.csv", "-o", "-", "--format", form)
        assert (code, err.count("Error")) == (0, 0), err


def test_answers_that_are_not_sure_are_left_out_and_counted(
    shell: Any, runs: dict[str, str], refused: Refused
) -> None:
    pd.DataFrame({"body": [TEXTS[0], "x", ""]}).to_csv("new.csv", index=False)
    run = runs["one"]
    code, out, err = shell("predict", run, "new.csv", "-o", "out.csv", "--abstain-below", "0.7")
    assert code == 0, err
    assert "1 answer left out, as the probability is below 0.7" in out
    assert pd.read_csv("out.csv")["predicted"].notna().tolist() == [True, False, False]
    code, out, err = shell("predict", run, "--text", "x", "--abstain-below", "0.7")
    assert code == 0, err
    assert out.startswith("abstained   ")
    assert "at most 1" in refused("predict", run, "new.csv", "-o", "o.csv", "--abstain-below", "80")
    for flags in (("--workers", "2"), ("--cpus-per-run", "2")):
        assert "are for --ray" in refused("predict", run, "new.csv", "-o", "o.csv", *flags)
    assert "--ray is for files" in refused("predict", run, "-", "-o", "o.csv", "--ray")


def test_thresholds_of_labels_are_given_on_the_command_line(
    shell: Any, runs: dict[str, str], refused: Refused, tmp_path: Path
) -> None:
    names = ["good|long=x" if i % 2 else "long=x" if i % 3 else "" for i in range(40)]
    table = pd.DataFrame({"text": [e.texts["text"] for e in tiny.toy_examples(40)], "label": names})
    table.to_csv("several.csv", index=False)
    flags = ("--method", "tfidf", "--set", "task.multi_label=true")
    code, _, err = shell("fit", "several.csv", *flags, "--out", "several")
    assert code == 0, err
    table.drop(columns="label").to_csv("new.csv", index=False)
    given = ("--threshold", "0.05", "--threshold", "long=x=0.999")
    code, out, err = shell("predict", "several", "new.csv", "-o", "out.csv", *given)
    assert code == 0, err
    found = pd.read_csv("out.csv")
    assert found["predicted"].fillna("").tolist() == [
        "good" if p >= 0.05 else "" for p in found["p_good"]
    ]
    code, out, err = shell("predict", "several", "--text", "x", "--threshold", "1")
    assert code == 0, err
    assert out.startswith("none of them   ")
    for wrong, told in (("x", "write it as 0.3, or as LABEL=0.3"), ("bad=0.3", "no label 'bad'")):
        assert told in refused("predict", "several", "new.csv", "-o", "o.csv", "--threshold", wrong)
    twice = ("--threshold", "0.3", "--threshold", "0.4")
    assert "names all labels twice" in refused(
        "predict", "several", "new.csv", "-o", "o.csv", *twice
    )
    one = refused(
        "predict",
        runs["one"],
        "new.csv",
        "-o",
        "o.csv",
        "--threshold",
        "0.3",
        "--column",
        "body=text",
    )
    assert "several labels" in one
