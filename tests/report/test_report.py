"""The report is one file that needs nothing else, and shows the users' texts as they are."""

import base64
import json
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from html_reader import Page
from taskfit.errors import CheckpointError
from taskfit.files import append_jsonl
from taskfit.report.finished_run import FinishedRun, Predictions
from taskfit.report.html_page import Picture
from taskfit.report.pages import (
    SHOWN_CHARACTERS,
    comparison_picture,
    hardest,
    report_run,
    write_report,
)
from taskfit.report.run_summary import first_sentence
from taskfit.runs.records import RunResult, write_results_csv
from taskfit.stats import evaluate_multi_label, evaluate_probabilities
from taskfit.stats.per_class import class_rows
from tiny_records import evaluation, run_result

NASTY = "<b>&\"'</b><script>alert(1)</script>"


def assert_self_contained(source: str) -> None:
    """No address, no script, no file beside it."""
    assert not re.search(r"(?:https?:)?//\w", re.sub(r"base64,[\w+/=]*", "", source))
    page = Page(source)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert "href" not in attributes
        if "src" in attributes:
            assert tag == "img"
            kind, _, data = str(attributes["src"]).partition(",")
            assert kind == "data:image/png;base64"
            assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    assert "url(" not in source
    assert "@import" not in source


def predictions_of(
    probabilities: np.ndarray, gold: list[int], labels: list[str], text: str = "A text."
) -> Predictions:
    unanswered = np.isnan(probabilities[:, 0])
    return Predictions(
        ids=[f"t.csv:{i}" for i, _ in enumerate(gold, 2)],
        texts=[text] * len(gold),
        classes=labels,
        gold=np.array(gold),
        predicted=np.where(unanswered, -1, np.nan_to_num(probabilities).argmax(axis=1)),
        probabilities=probabilities,
    )


def finished_run(
    folder: Path,
    labels: list[str],
    *,
    num_examples: int = 30,
    names: tuple[str, ...] = ("new",),
    text: str = "A text.",
) -> tuple[RunResult, list[dict[str, Any]]]:
    """A run's folder as it is before the report is written."""
    result, hard = run_result(), []
    (folder / "predictions").mkdir(parents=True)
    (folder / "classifier.json").write_text(json.dumps({"task": {"text": ["p_text"]}}))
    for seed, name in enumerate(names):
        generator = np.random.default_rng(seed)
        probabilities = generator.dirichlet(np.ones(len(labels)), num_examples)
        gold = generator.integers(0, len(labels), num_examples)
        found = predictions_of(probabilities, gold.tolist(), labels, text)
        table = pd.DataFrame({"id": found.ids, "p_text": text})
        table["gold"] = [labels[i] for i in gold]
        table["predicted"] = [labels[i] for i in probabilities.argmax(axis=1)]
        columns = {f"p_{label}": probabilities[:, i] for i, label in enumerate(labels)}
        table = pd.concat([table, pd.DataFrame(columns)], axis=1)
        table.to_parquet(folder / "predictions" / f"{name}.parquet")
        result.evaluations[name] = evaluate_probabilities(probabilities, gold, labels=labels)
        hard += hardest(found)
    return result, hard


def test_a_runs_report_is_one_file_with_n_of_every_set(tmp_path: Path) -> None:
    for step in range(1, 4):
        append_jsonl(tmp_path / "metrics.jsonl", {"kind": "step", "step": step, "loss": 1.0})
    result, _ = finished_run(
        tmp_path, ["bad", "good"], num_examples=1234, names=("new", "v1.0", "v1.1")
    )
    report_run(tmp_path, result)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert_self_contained(source)
    rows = Page(source).rows
    for name, measured in result.evaluations.items():
        (row,) = [row for row in rows if row[:2] == ["tuned", name]]
        assert row[2] == "1,234"
        low, high = measured.intervals["accuracy"]
        assert row[3] == f"{measured.accuracy:.3f} {low:.3f}–{high:.3f}"
        assert row[-2:] == [f"{measured.log_loss:.3f}", f"{measured.ece:.3f}"]
        assert (tmp_path / "plots" / f"confusion_{name}.png").is_file()
    shown = [attributes for tag, attributes in Page(source).tags if tag == "img"]
    # A matrix of each set and all sets side by side, calibration, training and memory.
    assert len(shown) == len({str(attributes["src"]) for attributes in shown}) == 7
    assert shown[0]["alt"] == "Confusion matrix: new"
    assert all(attributes["alt"] for attributes in shown)
    for part in ("4,884,480", "12.3 s", "123 MB", "1,000", "7,654", "toy v1", "numpy"):
        assert part in source


def test_texts_and_labels_are_shown_as_they_are(tmp_path: Path) -> None:
    result, hard = finished_run(tmp_path, [NASTY, "$good$"], text=NASTY)
    report_run(tmp_path, result)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert NASTY not in source
    assert_self_contained(source)
    rows = [row for row in Page(source).rows if row and row[0].startswith("t.csv:")]
    assert [row[:2] for row in rows] == [[e["id"], NASTY] for e in hard]
    assert {cell for row in rows for cell in row[2:4]} == {NASTY, "$good$"}


def test_whatever_comes_from_the_user_is_escaped(tmp_path: Path) -> None:
    path = write_report(
        tmp_path,
        [run_result(NASTY, **{NASTY: evaluation()})],
        title=NASTY,
        notes=[NASTY, f"`taskfit {NASTY}` is one thing, ` another."],
        pictures=[Picture(NASTY, base64.b64encode(b"\x89PNG").decode(), 1, 1, NASTY)],
    )
    source = path.read_text(encoding="utf-8")
    assert NASTY not in source
    # Title twice, notes, run twice, set, caption and alternative text.
    assert source.count(escape(NASTY).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")) == 9
    assert "<code>taskfit &lt;b&gt;" in source
    assert "</code> is one thing, ` another." in source
    assert_self_contained(source)


def test_a_run_that_measured_nothing_and_trained_nothing_has_a_report(tmp_path: Path) -> None:
    report_run(tmp_path, run_result("idle"))
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert_self_contained(source)
    assert "Most confidently wrong" not in source
    assert [a["alt"] for tag, a in Page(source).tags if tag == "img"] == ["Memory"]
    assert ["run", "idle"] in Page(source).rows
    assert "Nothing was measured" in source


@pytest.mark.parametrize("num_labels", [1, 77])
def test_one_label_and_77_are_reported(tmp_path: Path, num_labels: int) -> None:
    labels = [f"label_{i}" for i in range(num_labels)]
    found = evaluation(200, (*labels, "none"))  # log loss wants two
    result = run_result(new=found)
    result.evaluations["new"].labels[:] = labels
    result.evaluations["new"].confusion_matrix[:] = [
        row[:num_labels] for row in found.confusion_matrix[:num_labels]
    ]
    table = pd.DataFrame({"id": range(200), "text": "A text."})
    table["gold"] = [labels[i % num_labels] for i in range(200)]
    table["predicted"] = labels[0]
    table[[f"p_{label}" for label in labels]] = 1 / num_labels
    (tmp_path / "predictions").mkdir()
    (tmp_path / "classifier.json").write_text(json.dumps({"task": {"text": ["text"]}}))
    table.to_parquet(tmp_path / "predictions" / "new.parquet")
    report_run(tmp_path, result)
    assert_self_contained((tmp_path / "report.html").read_text(encoding="utf-8"))
    svg = (tmp_path / "plots" / "confusion_new.svg").read_text(encoding="utf-8")
    assert all(svg.count(f">{label}</text>") == 2 for label in labels)


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    results = [
        run_result("zero-shot", new=evaluation(40)),
        run_result("idle"),
        run_result("tuned", new=evaluation(40, seed=1), old=evaluation(1500, seed=2)),
    ]
    picture = comparison_picture(tmp_path, results)
    assert base64.b64decode(picture.data) == (tmp_path / "plots" / "comparison.png").read_bytes()
    path = write_report(tmp_path, results, title="All", notes=["A note."], pictures=[picture])
    source = path.read_text(encoding="utf-8")
    assert_self_contained(source)
    measured = [row[:3] for row in Page(source).rows if row[1] in ("new", "old")]
    assert measured == [
        ["zero-shot", "new", "40"],
        ["tuned", "new", "40"],
        ["tuned", "old", "1,500"],
    ]
    assert ["run", "zero-shot", "idle", "tuned"] in Page(source).rows
    # The same numbers as in the table beside it.
    write_results_csv(tmp_path / "results.csv", results)
    for row in pd.read_csv(tmp_path / "results.csv").itertuples():
        assert f"{row.accuracy:.3f}" in source


def test_runs_that_measured_nothing_are_compared_without_complaint(tmp_path: Path) -> None:
    assert comparison_picture(tmp_path, [run_result("a"), run_result("b")]).data


def test_the_hardest_are_wrong_and_the_surest_come_first() -> None:
    generator = np.random.default_rng(0)
    labels = ["a", "b", "c"]
    probabilities = generator.dirichlet(np.ones(3), 60)
    gold = generator.integers(0, 3, 60)
    found = hardest(predictions_of(probabilities, gold.tolist(), labels))
    wrong = probabilities.argmax(axis=1) != gold
    surest = np.sort(probabilities.max(axis=1)[wrong])[::-1][: len(found)]
    assert len(found) == 5
    assert [h["probability"] for h in found] == surest.tolist()
    for h in found:
        row = int(h["id"].removeprefix("t.csv:")) - 2
        assert h["gold"] == labels[gold[row]] != h["predicted"]
        assert h["predicted"] == labels[probabilities[row].argmax()]


def test_nothing_is_hard_where_all_is_right() -> None:
    assert hardest(predictions_of(np.eye(2), [0, 1], ["a", "b"])) == []


def test_where_no_answer_was_given_none_is_confidently_wrong() -> None:
    probabilities = np.array([[np.nan, np.nan], [0.4, 0.6]])
    (found,) = hardest(predictions_of(probabilities, [1, 0], ["a", "b"]))
    assert (found["id"], found["probability"]) == ("t.csv:3", 0.6)


def test_long_texts_are_shortened() -> None:
    wrong = np.array([[0.0, 1.0]])
    for length in (SHOWN_CHARACTERS, SHOWN_CHARACTERS + 1, 100_000):
        (found,) = hardest(predictions_of(wrong, [0], ["a", "b"], "é" * length))
        assert len(found["text"]) == SHOWN_CHARACTERS
        assert found["text"].endswith("…") == (length > SHOWN_CHARACTERS)


def test_a_run_without_its_classifier_is_named(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path, run_result(new=evaluation(2)))
    with pytest.raises(CheckpointError, match=r"a result but no classifier\.json.*run it again"):
        _ = run.task


def test_all_text_columns_are_shown(tmp_path: Path) -> None:
    table = pd.DataFrame({"premise": ["It rains."], "hypothesis": ["It is wet."], "id": ["x"]})
    table["gold"], table["predicted"] = "bad", "good"
    table[["p_bad", "p_good"]] = [[0.0, 1.0]]
    (tmp_path / "predictions").mkdir()
    table.to_parquet(tmp_path / "predictions" / "new.parquet")
    task = {"text": ["premise", "hypothesis"]}
    (tmp_path / "classifier.json").write_text(json.dumps({"task": task}))
    run = FinishedRun(tmp_path, run_result(new=evaluation(2)))
    assert hardest(run.predictions("new"))[0]["text"] == "It rains. / It is wet."


def test_hard_texts_are_the_tasks_columns_and_nothing_beside_them(tmp_path: Path) -> None:
    result = run_result(new=evaluation(2))
    table = pd.DataFrame({"id": ["a", "b"], "gold_price": ["12", "7"], "place": "north"})
    table["gold"], table["predicted"] = ["bad", "good"], ["good", "good"]
    table[["p_bad", "p_good"]] = [[0.1, 0.9], [0.2, 0.8]]
    (tmp_path / "predictions").mkdir()
    table.to_parquet(tmp_path / "predictions" / "new.parquet")
    (tmp_path / "classifier.json").write_text(json.dumps({"task": {"text": ["gold_price"]}}))
    report_run(tmp_path, result)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ["a", "12", "bad", "good", "0.900"] in Page(source).rows
    assert "north" not in source


def test_questions_without_a_label_in_a_set_are_no_text_of_it(tmp_path: Path) -> None:
    result = run_result(**{"new/mood": evaluation(2)})
    result.details["questions"] = ["park", "mood"]
    table = pd.DataFrame({"id": ["a", "b"], "text": ["A dog.", "A cat."]})
    table["predicted_park"], table["p_park_yes"] = "yes", 1.0
    table["gold_mood"], table["predicted_mood"] = ["bad", None], ["good", "good"]
    table[["p_mood_bad", "p_mood_good"]] = [[0.1, 0.9], [0.2, 0.8]]
    (tmp_path / "predictions").mkdir()
    table.to_parquet(tmp_path / "predictions" / "new.parquet")
    (tmp_path / "questions.json").write_text(json.dumps({"questions": {"text": ["text"]}}))
    report_run(tmp_path, result)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ["a", "A dog.", "bad", "good", "0.900"] in Page(source).rows


BASELINES = [
    {"name": name, "accuracy": value, "mcc": value, "macro_f1": value, "log_loss": 1.0}
    for name, value in (("majority", 0.2), ("tfidf", 0.99), ("probe on x", 0.7), ("head alone", 0))
]


def test_the_first_sentence_says_what_the_run_beats_and_where_it_is_weak(tmp_path: Path) -> None:
    gold = np.repeat([0, 1, 2], [40, 40, 20])
    answers = np.concatenate([np.zeros(38, int), [1, 1], np.ones(25, int), np.zeros(15, int)])
    answers = np.concatenate([answers, np.full(20, 2)])
    found = evaluate_probabilities(np.eye(3)[answers], gold, labels=["a", "b", "c"])
    rows = class_rows(found)
    assert [row.name for row in rows] == ["b", "a", "c"]
    assert (rows[0].num_gold, rows[0].recall, rows[0].precision) == (40, 25 / 40, 25 / 27)
    assert [row.f1 for row in rows] == pytest.approx(
        f1_score(gold, answers, average=None)[[1, 0, 2]]
    )
    said = first_sentence("new", found, rows, [*BASELINES, {}], "accuracy")
    low, high = found.intervals["accuracy"]
    assert low < 0.83 < high
    assert said.startswith(
        "Better than guessing (0.20) and the probe on x (0.70) and worse than TF"
    )
    assert f"accuracy 0.83 (95 % interval {low:.2f} to {high:.2f}) on 100 texts of new" in said
    assert said.endswith("; weak on b (it finds 0.62 of them).")
    # Without baselines guessing is known from the texts alone.
    assert first_sentence("new", found, rows, (), "accuracy").startswith(
        "Better than guessing (0.40)"
    )


def test_where_nearly_all_is_one_class_the_sentence_is_about_the_mcc() -> None:
    gold = np.repeat([0, 1], [95, 5])
    found = evaluate_probabilities(np.eye(2)[np.zeros(100, int)], gold, labels=["a", "b"])
    said = first_sentence("new", found, class_rows(found), (), "accuracy")
    assert said.startswith("Level with guessing (0.00): MCC 0.00")
    assert "weak on b (it finds 0.00 of them)" in said


def test_texts_without_an_answer_are_not_found() -> None:
    probabilities = np.array([[1.0, 0.0], [np.nan, np.nan], [0.0, 1.0]])
    found = evaluate_probabilities(probabilities, np.array([0, 0, 1]), labels=["a", "b"])
    assert {row.name: row.recall for row in class_rows(found, num_gold=[2, 1])} == {
        "a": 0.5,
        "b": 1.0,
    }


def test_several_labels_have_precision_and_recall_each() -> None:
    present = np.array([[1, 0], [1, 1], [0, 0]], bool)
    probabilities = np.array([[0.9, 0.1], [0.2, 0.9], [0.8, 0.1]])
    found = evaluate_multi_label(probabilities, present, labels=["a", "b"])
    rows = {row.name: row for row in class_rows(found)}
    assert (rows["a"].num_gold, rows["a"].precision, rows["a"].recall) == (2, 0.5, 0.5)
    assert (rows["b"].num_gold, rows["b"].precision, rows["b"].recall) == (1, 1.0, 1.0)
    said = first_sentence("new", found, class_rows(found), (), "macro_f1")
    assert said.startswith("Macro F1 0.75")


def test_the_page_starts_with_sentence_picture_and_table_and_hides_the_rest(tmp_path: Path) -> None:
    result, _ = finished_run(tmp_path, ["bad", "good"])
    result.details["baselines"] = {"new": [*BASELINES, {**BASELINES[0], "name": "this run"}]}
    report_run(tmp_path, result)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    first, _, behind = source.partition("<details")
    assert 'class="lead"' in first
    assert first.count("<img") == 1
    rows = Page(first).rows
    assert rows[0] == ["class", "n", "precision", "recall", "F1"]
    assert {row[0] for row in rows[1:3]} == {"bad", "good"}
    assert [row[0] for row in rows[4:]] == [*(row["name"] for row in BASELINES), "this run"]
    for part in ("Most confidently wrong", "Calibration", "Memory", "Settings"):
        assert part not in first
        assert part in behind
    # A bar of one set says nothing.
    assert not (tmp_path / "plots" / "evaluations.png").exists()
