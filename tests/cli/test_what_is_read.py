"""Every command reads what was written, or says in one message what it found and where."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from taskfit.data import read_table
from taskfit.estimator import TextClassifier

Refused = Callable[..., str]
LABELS = ("010", "12:30", "yes", "null", "NA", "None", "²", "true", "1.0", "1")
ODD = (
    '"',
    'say "a", "b"\nc',
    "\ttab",
    " space ",
    "é\u2028\ufeff",
    "שלום\u202e",
    "\U0001f600\r\n",
    "'",
)


def table(labels: tuple[str, ...] = LABELS, copies: int = 3) -> pd.DataFrame:
    rows = [
        (f"{ODD[(i + j) % len(ODD)]} word{i} {j}", label)
        for j in range(copies)
        for i, label in enumerate(labels)
    ]
    return pd.DataFrame(rows, columns=["text", "label"])


def labels_of(run: str) -> set[str]:
    task = json.loads(Path(run, "classifier.json").read_text())["task"]
    return {label["name"] for label in task["labels"]}


def test_texts_and_labels_are_the_same_for_fit_predict_and_evaluate_in_every_format(shell) -> None:
    rows = table()
    rows.to_csv("t.csv", index=False)
    rows.to_json("t.json", orient="records")
    rows.to_parquet("t.parquet")
    Path("packed.csv").write_bytes(gzip.compress(rows.to_csv(index=False).encode()))
    rows.to_csv("utf16.csv", index=False, encoding="utf-16")
    rows.to_csv("t.tsv", index=False, sep="\t")
    for source in ("t.csv", "t.json"):
        code, _, err = shell("fit", source, "--method", "majority", "--out", f"run-{source}")
        assert code == 0, err
        assert labels_of(f"run-{source}") == set(LABELS)
    for source, target in (("t.tsv", "p.tsv"), ("p.tsv", "p.jsonl"), ("p.jsonl", "q.csv")):
        code, _, err = shell("predict", "run-t.csv", source, "-o", target)
        assert code == 0, err
    found = pd.read_csv("q.csv", keep_default_na=False, dtype=str, lineterminator="\n")
    assert found["text"].tolist() == rows["text"].tolist()
    for source in ("t.tsv", "t.parquet", "packed.csv", "utf16.csv"):
        code, out, err = shell("evaluate", "run-t.csv", source, "--name", source.replace(".", "_"))
        assert code == 0, err
        assert " 30 " in out


def test_lists_are_several_labels_or_told(shell, refused: Refused) -> None:
    lists = [["news"], ["news", "sport"], ["sport"]] * 7
    rows = pd.DataFrame({"text": [f"w{i % 3} {i}" for i in range(21)], "label": lists})
    rows.to_json("l.jsonl", orient="records", lines=True)
    rows.to_csv("l.csv", index=False)
    rows.to_parquet("l.parquet")
    rows.assign(label=[np.array(names) for names in lists]).to_csv("numpy.csv", index=False)
    several = ("--method", "tfidf", "--set", "task.multi_label=true")
    code, _, err = shell("fit", "l.jsonl", *several, "--out", "run")
    assert code == 0, err
    assert labels_of("run") == {"news", "sport"}
    for source in ("l.jsonl", "l.csv", "l.parquet", "numpy.csv"):
        code, out, err = shell("evaluate", "run", source)
        assert code == 0, err
        assert "1.000" in out
        message = refused("fit", source, "--method", "tfidf", "--out", "r")
        assert "task.multi_label=true" in message
        assert "news" in message


@pytest.mark.parametrize("command", ["fit", "evaluate", "predict", "inspect", "compare"])
def test_lists_and_objects_are_no_texts_in_any_command(
    shell, refused: Refused, command: str
) -> None:
    rows = table(("a", "b"))
    rows.to_csv("t.csv", index=False)
    if command in ("evaluate", "predict"):
        code, _, err = shell("fit", "t.csv", "--method", "majority", "--out", "run")
        assert code == 0, err
    rows = rows.astype(object)
    rows.at[1, "text"] = {"body": "x"}
    rows.to_json("odd.jsonl", orient="records", lines=True)
    arguments = {
        "fit": ["odd.jsonl", "--method", "majority", "--out", "r"],
        "evaluate": ["run", "odd.jsonl"],
        "predict": ["run", "odd.jsonl", "-o", "p.csv"],
        "inspect": ["odd.jsonl", "--model", str(shell.model)],
        "compare": ["odd.jsonl", "--methods", "majority", "--out", "grid"],
    }[command]
    if command == "predict":
        code, out, err = shell(command, *arguments)
        assert code == 0, err
        assert "1 row that could not be read or scored, marked in the column error" in out
        errors = read_table("p.csv")["error"].tolist()
        assert 'odd.jsonl:2: column \'text\' holds an object: {"body": "x"}' in errors.pop(1)
        assert set(errors) == {""}
        return
    message = refused(command, *arguments)
    assert "odd.jsonl: column 'text' holds an object in 1 row (line 2)" in message
    assert '{"body":"x"}'.replace(":", ": ") in message


def test_an_object_is_no_label(refused: Refused) -> None:
    Path("o.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": {"x": 1}}\n')
    message = refused("fit", "o.jsonl", "--method", "majority", "--out", "r")
    assert "o.jsonl:2: the label in column 'label' is an object" in message


def test_labels_that_look_the_same_are_told_with_what_cannot_be_seen(shell) -> None:
    names = (
        "pos",
        "Pos",
        "pos\u200b",
        "ｐｏｓ",
        "caf\u00e9",
        "cafe\u0301",
        "neg",
        "neg ",
        "2",
        "²",
    )
    table(names).to_csv("t.csv", index=False)
    code, out, err = shell("fit", "t.csv", "--method", "majority", "--out", "run")
    assert code == 0, err
    told = " ".join((out + err).split())
    assert r"'Pos' and 'pos' and 'pos\u200b' and '\uff50\uff4f\uff53'" in told
    assert r"'cafe\u0301' and 'café'" in told
    assert "spaces around them are read as one: 'neg' and 'neg '" in told
    assert "'2'" not in told
    code, out, err = shell("inspect", "t.csv", "--model", str(shell.model))
    assert code == 0, err
    assert r"'pos\u200b'" in " ".join(out.split())


def test_a_label_that_training_does_not_know_is_shown_with_what_cannot_be_seen(
    shell, refused: Refused
) -> None:
    table(("a", "b")).to_csv("t.csv", index=False)
    table(("a", "b\u200b")).to_csv("e.csv", index=False)
    code, _, err = shell("fit", "t.csv", "--method", "majority", "--out", "run")
    assert code == 0, err
    for arguments in (
        ("evaluate", "run", "e.csv"),
        ("fit", "t.csv", "--test", "e=e.csv", "--method", "majority", "--out", "r"),
    ):
        message = refused(*arguments)
        assert r"3 rows with an unknown label: 'b\u200b' (e.csv:" in message


def test_columns_of_other_names_are_named_for_predict_and_evaluate(shell, refused: Refused) -> None:
    table(("a", "b")).to_csv("t.csv", index=False)
    table(("a", "b")).rename(columns={"text": "body", "label": "class"}).to_csv(
        "o.csv", index=False
    )
    code, _, err = shell("fit", "t.csv", "--method", "majority", "--out", "run")
    assert code == 0, err
    message = refused("predict", "run", "o.csv", "-o", "p.csv")
    assert "no column 'text'; it has: body, class" in message
    assert "--column text=COLUMN" in message
    assert "--text" not in message
    assert "--column" in refused("evaluate", "run", "o.csv", "--column", "text=body")
    for command in (("predict", "run", "o.csv", "-o", "p.csv"), ("evaluate", "run", "o.csv")):
        assert "no column 'txet'" in refused(*command, "--column", "txet=body")
        assert "has no column 'boby'" in refused(*command, "--column", "text=boby")
        columns = [
            "--column",
            "text=body",
            *(["--column", "label=class"] * (command[0] != "predict")),
        ]
        code, _, err = shell(*command, *columns)
        assert code == 0, err
    assert "give auto, marks or text" in refused(*command, "--quotes", "none")


def test_quotes_of_a_tsv_file_can_be_forced_in_every_command(shell) -> None:
    lines = [f"{t}\t{label}\n" for label in "ab" for t in ('"Hello."', f"plain {label}")]
    Path("t.tsv").write_text("text\tlabel\n" + "".join(lines))
    code, out, err = shell("fit", "t.tsv", "--method", "majority", "--out", "run")
    assert code == 0, err
    assert "quotes are read as characters of the texts" in " ".join((out + err).split())
    marks = ("--set", "data.quotes=marks")
    code, out, err = shell("fit", "t.tsv", "--method", "majority", "--out", "run2", *marks)
    assert code == 0, err
    assert "quotes are read" not in out + err
    for quotes, first in (("auto", '"Hello."'), ("marks", "Hello."), ("text", '"Hello."')):
        arguments = ("predict", "run", "t.tsv", "-o", "p.jsonl", "--quotes", quotes)
        code, out, err = shell(*arguments)
        assert code == 0, err
        assert json.loads(Path("p.jsonl").read_text().splitlines()[0])["text"] == first
        assert ("--quotes" in out + err) == (quotes == "auto")


def test_rows_with_neither_text_nor_label_are_left_out_and_counted_in_every_format(shell) -> None:
    rows = pd.concat([table(("a", "b")), pd.DataFrame({"text": ["", " "], "label": ["", ""]})])
    rows.to_csv("t.csv", index=False)
    rows.assign(text=[f"{text} other" if text.strip() else text for text in rows["text"]]).to_json(
        "t.jsonl", orient="records", lines=True
    )
    told = "2 rows with neither text nor label left out"
    tests = ("--test", "other=t.jsonl")
    code, out, err = shell("fit", "t.csv", *tests, "--method", "majority", "--out", "run")
    assert code == 0, err
    assert f"t.csv: {told}" in out + err
    assert f"t.jsonl: {told}" in out + err
    for source in ("t.csv", "t.jsonl"):
        code, out, err = shell("evaluate", "run", source, "--name", "more")
        assert code == 0, err
        assert "2 rows without a text, marked in the column error; not measured" in out + err


def test_standard_input_is_read_as_files_are(
    shell, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import sys

    table(("a", "b")).to_csv("t.csv", index=False)
    code, _, err = shell("fit", "t.csv", "--method", "majority", "--out", "run")
    assert code == 0, err

    def given(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    given('text\n"a ""b"" c"\n'.encode("utf-16"))
    code, out, _ = shell("predict", "run", "-", "-o", "-", "--format", "csv")
    assert code == 0
    assert '"a ""b"" c"' in out
    given(b"  two spaces\n")
    shell("predict", "run", "-", "-o", "p.jsonl")
    assert json.loads(Path("p.jsonl").read_text())["text"] == "  two spaces"
    given(b"%PDF-1.7")
    assert "standard input is a PDF" in refused("predict", "run", "-", "-o", "-")
    given(b"PAR1")
    assert "standard input is a .parquet file" in refused("predict", "run", "-", "-o", "-")
    given(b"text\ncaf\xe9\n")
    assert "is not utf-8" in refused("predict", "run", "-", "-o", "-", "--format", "csv")


def test_half_a_surrogate_pair_is_refused_where_a_text_is_given(shell, refused: Refused) -> None:
    table(("a", "b")).to_csv("t.csv", index=False)
    code, _, err = shell("fit", "t.csv", "--method", "majority", "--out", "run")
    assert code == 0, err
    message = refused("predict", "run", "--text", "fine", "--text", "odd \udcff")
    assert "--text 2 holds half of a surrogate pair" in message


def test_labels_in_python_stay_what_they_are() -> None:
    rows = table()
    found = TextClassifier(method="majority").fit(rows["text"], rows["label"])
    assert set(found.classes_) == set(LABELS)
    numbers = TextClassifier(method="majority").fit(["a", "b", "c"], [1, 10, 10])
    assert numbers.classes_.tolist() == [1, 10]
    assert numbers.predict(["x"]).tolist() == [10]
