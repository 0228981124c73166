"""Every row comes out: as many as came in, in order, with the other columns; nothing is lost."""

import importlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tiny
from taskfit.data import read_table
from taskfit.runs.fit import fit
from taskfit.settings_file import load_settings
from tiny_locks import held_elsewhere

Refused = Callable[..., str]
TEXTS = [example.texts["text"] for example in tiny.toy_examples(9, offset=100)]
LONG = "The garden was warm and then it was cold again. " * 60
OURS = ["predicted", "p_bad", "p_good", "shortened", "error"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs")
    data = {"train": str(tiny.write_csv(folder / "train.csv", tiny.toy_examples(40)))}
    fit(load_settings(flags={"method": {"name": "tfidf"}, "data": data}), folder / "run")
    return str(folder / "run")


def rows() -> list[dict[str, str]]:
    """Return rows with an id of their own, blank ones among them, and what is awkward to write."""
    texts = [TEXTS[0], "", *TEXTS[1:4], " \n ", *TEXTS[4:], ""]
    found = [
        {
            "ticket": f"0{i}",
            "id": f"x{i}",
            "text": text,
            "note": ["a,b", 'say "c"', "", "é\n🙂"][i % 4],
        }
        for i, text in enumerate(texts)
    ]
    return [*found, dict.fromkeys(found[0], "")]


def write(path: Path, table: list[dict[str, str]]) -> Path:
    frame = pd.DataFrame(table)
    if path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


def read(path: Path) -> pd.DataFrame:
    return read_table(str(path)).reset_index(drop=True)


@pytest.mark.parametrize("given", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("asked", ["csv", "jsonl", "parquet"])
def test_as_many_rows_come_out_as_went_in(shell: Any, run: str, given: str, asked: str) -> None:
    source = write(Path(f"in.{given}"), rows())
    code, out, err = shell("predict", run, str(source), "-o", f"out.{asked}")
    assert code == 0, err
    assert "9 texts labelled" in out
    assert f"out.{asked}: 4 rows without a text, marked in the column error" in out
    before, after = read(source), read(Path(f"out.{asked}"))
    assert list(after.columns) == ["id", "text", "ticket", "note", *OURS]
    for column in before.columns:
        assert after[column].tolist() == before[column].tolist(), column
    is_blank = before["text"].str.strip() == ""
    assert (after["error"] == "the row has no text").equals(is_blank)
    assert (after["predicted"] == "").equals(is_blank)
    assert (after["p_good"] == "").equals(is_blank)
    code, _, err = shell("predict", run, str(source), "-o", f"alone.{asked}", "--only-predictions")
    assert code == 0, err
    alone = read(Path(f"alone.{asked}"))
    assert list(alone.columns) == ["id", "text", "predicted", "p_bad", "p_good"]
    assert alone["id"].str.startswith(f"in.{given}:").all()
    assert alone["predicted"].tolist() == after["predicted"].tolist()


def test_so_they_do_over_standard_input_and_output(shell: Any, run: str) -> None:
    source = write(Path("in.csv"), rows())
    assert shell("predict", run, "in.csv", "-o", "file.csv")[0] == 0
    shell.patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(source.read_bytes())))
    code, out, err = shell("predict", run, "-", "-o", "-", "--format", "csv")
    assert code == 0, err
    assert out == Path("file.csv").read_text(encoding="utf-8")
    assert "standard input: 4 rows without a text" in err
    code, out, err = shell("predict", run, "--text", TEXTS[0], "--text", "")
    assert code == 0, err
    assert out.splitlines()[3].strip() == "no answer"


def test_columns_called_like_ours_are_kept_under_another_name(shell: Any, run: str) -> None:
    given = [{"text": TEXTS[0], "predicted": "p", "p_good": "g", "error": "e", "text_error": "t"}]
    write(Path("in.csv"), given)
    code, out, err = shell("predict", run, "in.csv", "-o", "out.csv")
    assert code == 0, err
    assert "error is called text_text_error" in out
    (row,) = pd.read_csv("out.csv").to_dict("records")
    kept = {name: row[name] for name in ("text_predicted", "text_p_good", "text_error")}
    assert kept == {"text_predicted": "p", "text_p_good": "g", "text_error": "t"}
    assert row["text_text_error"] == "e"
    assert row["predicted"] in ("good", "bad")


def test_a_stopped_command_goes_on_to_the_same_bytes_unless_a_column_changed(
    shell: Any, run: str
) -> None:
    predicting = importlib.import_module("taskfit.runs.predict")
    shell.patch.setattr(predicting, "CHUNK", 2)
    write(Path("in.csv"), rows())
    assert shell("predict", run, "in.csv", "-o", "whole.csv")[0] == 0
    predictor = importlib.import_module("taskfit.runs.predictor")
    original, seen = predictor.prediction_table, []

    def stop_at_the_fourth(*arguments: Any, **options: Any) -> Any:
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    for changed in (False, True):
        seen.clear()
        shell.patch.setattr(predictor, "prediction_table", stop_at_the_fourth)
        assert shell("predict", run, "in.csv", "-o", "out.csv")[0] == 130
        shell.patch.setattr(predictor, "prediction_table", original)
        if changed:
            write(Path("in.csv"), [{**row, "note": "new"} for row in rows()])
        code, out, err = shell("predict", run, "in.csv", "-o", "out.csv")
        assert code == 0, err
        assert ("started anew" in out) == changed
        assert ("3 of 7 parts are finished" in out) != changed
        assert (Path("out.csv").read_bytes() == Path("whole.csv").read_bytes()) != changed
    assert set(pd.read_csv("out.csv")["note"]) == {"new"}


def test_evaluate_keeps_every_row_and_measures_those_with_a_text(shell: Any, run: str) -> None:
    given = [{**row, "label": "good" if row["text"].strip() else ""} for row in rows()]
    copy = Path("run")
    importlib.import_module("shutil").copytree(run, copy)
    write(Path("in.csv"), given)
    code, out, err = shell("evaluate", str(copy), "in.csv", "--name", "new")
    assert code == 0, err
    assert "new: 4 rows without a text, marked in the column error; not measured" in out
    found = pd.read_parquet(copy / "predictions" / "new.parquet")
    assert found["text_id"].tolist() == [row["id"] for row in given]
    assert found["ticket"].tolist() == [row["ticket"] for row in given]
    assert found["error"].notna().tolist() == [not row["text"].strip() for row in given]
    assert json.loads((copy / "result.json").read_text())["evaluations"]["new"]["num_examples"] == 9
    assert shell("report", str(copy))[0] == 0
    write(Path("in.csv"), [{**row, "label": ""} for row in rows()])
    assert "without a label" in shell("evaluate", str(copy), "in.csv")[2]


@pytest.mark.parametrize("method", ["label_words", "probe", "head", "label_text", "in_context"])
def test_shortened_texts_are_counted_in_every_command_and_marked(shell: Any, method: str) -> None:
    examples = tiny.toy_examples(4, offset=100)
    table = [{"text": e.texts["text"], "label": e.label} for e in examples]
    table[1]["text"] = table[3]["text"] = LONG
    write(Path("long.csv"), table)
    said = "2 of 4 texts shortened at their end"
    code, out, err = shell.fit("--method", method, "--test", "long=long.csv")
    assert code == 0, err
    assert f"long: {said}" in " ".join(out.split())
    for command in (("evaluate", "run", "long.csv"), ("predict", "run", "long.csv", "-o", "p.csv")):
        code, out, err = shell(*command)
        assert code == 0, err
        assert said in " ".join(out.split())
    marks = [False, True, False, True]
    assert pd.read_csv("p.csv")["shortened"].tolist() == marks
    kept = pd.read_parquet("run/predictions/long.parquet")
    assert kept["shortened"].tolist() == marks
    assert "shortened at their end" in Path("run/report.html").read_text(encoding="utf-8")


def test_the_input_is_not_written_over_unless_it_is_asked_for(
    shell: Any, run: str, refused: Refused
) -> None:
    source = write(Path("in.csv"), rows())
    before = source.read_bytes()
    Path("link.csv").symlink_to("in.csv")
    for out in ("in.csv", "./in.csv", "link.csv", str(source.resolve())):
        assert "would be written over" in refused("predict", run, "in.csv", "-o", out)
    assert "would be written over" in refused("predict", run, "link.csv", "-o", "in.csv")
    assert source.read_bytes() == before
    code, _, err = shell("predict", run, "in.csv", "-o", "in.csv", "--overwrite")
    assert code == 0, err
    assert read(source)["note"].tolist() == [row["note"] for row in rows()]


def test_a_second_command_is_refused_before_any_work(
    shell: Any, run: str, refused: Refused
) -> None:
    write(Path("in.csv"), rows())
    with held_elsewhere(Path("out.csv"), beside=True):
        message = refused("predict", run, "in.csv", "-o", "out.csv")
        assert "Another command is at work in out.csv: process" in message
        assert shell("predict", run, "in.csv", "-o", "other.csv")[0] == 0
    with held_elsewhere(Path(run)):
        assert "at work in" in refused("evaluate", run, "in.csv")
    with held_elsewhere(Path("new")):
        assert "at work in" in refused("fit", "train.csv", "--method", "tfidf", "--out", "new")
        assert "at work in" in refused("fit", "--resume", "new")
        assert "at work in" in refused("compare", "train.csv", "--out", "new")
        assert sorted(path.name for path in Path("new").iterdir()) == [".lock"]
    assert not Path("new").exists()
    assert not list(Path().glob(".*lock"))


def test_a_run_without_a_page_is_whole_and_says_how_to_make_it(shell: Any) -> None:
    pages = importlib.import_module("taskfit.report.pages")
    original = pages.write_page

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    shell.patch.setattr(pages, "write_page", full)
    code, out, err = shell.fit("--method", "tfidf")
    assert code == 0, err
    assert "The disk is full" in out
    assert "`taskfit report run`" in out
    assert "report: none yet" in out
    shell.patch.setattr(pages, "write_page", original)
    assert shell("report", "run")[0] == 0
    assert Path("run/report.html").is_file()


def test_what_cannot_be_written_is_one_message(shell: Any, run: str, refused: Refused) -> None:
    Path("file").touch()
    Path("folder.csv").mkdir()
    write(Path("in.csv"), rows())
    train = ("fit", "train.csv", "--method", "tfidf", "--out")
    for place in ("file/x", "/proc/x", "n" * 300):
        message = refused("predict", run, "in.csv", "-o", f"{place}.csv")
        assert "could not be written" in message
        assert "--resume" in message
        assert "could not be written" in refused(*train, place)
        assert "could not be written" in refused("compare", "train.csv", "--out", place)
    assert "is a folder" in refused("predict", run, "in.csv", "-o", "folder.csv")
    assert "could not be written" in refused(*train, "file")


def test_a_cache_that_cannot_be_written_is_told_before_the_work(
    shell: Any, refused: Refused
) -> None:
    assert shell.fit("--method", "probe")[0] == 0
    Path("file").touch()
    shell.patch.setattr("taskfit.methods.features.cache_folder", lambda: Path("file"))
    message = refused("fit", *shell.fit_arguments("probe"), "--out", "new")
    assert "needs a folder where there is a file" in message
    assert "TASKFIT_CACHE=FOLDER" in message
    # A run that is used needs no place to write.
    assert shell("predict", "run", "test.csv", "-o", "out.csv")[0] == 0
