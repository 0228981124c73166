"""Runs of questions: learned together, back from disk, resumed bitwise, asked over new options."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

import tiny
from taskfit.cli.flags import parse_options
from taskfit.data import Example
from taskfit.errors import CheckpointError, DataError, SettingsError, TaskfitError
from taskfit.files import write_json_atomic
from taskfit.report.pages import write_page
from taskfit.runs.asked import AskedQuestion, Calibration
from taskfit.runs.classifier import Classifier
from taskfit.runs.evaluate import evaluate_file
from taskfit.runs.fit import FittedRun, fit
from taskfit.runs.load import load_run
from taskfit.runs.predict import predict_file
from taskfit.runs.prepare import prepare_data
from taskfit.runs.records import RunResult
from taskfit.runs.rows import labelled_examples
from taskfit.screen import SilentScreen
from taskfit.settings import DataSettings, RunSettings
from taskfit.tasks.questions import Option, Question, Questionnaire
from tiny_screens import Killed, NotingScreen
from tiny_settings import settings_for

FILE = """
name: toy
text: text
questions:
  - {name: mood, ask: "Mood?", kind: choice, options: [good, bad]}
  - {name: park, ask: "Is it so?", kind: yes_no, label: outside}
  - {name: stars, ask: "How many?", kind: score, options: [0, 1, 2]}
"""
TOY = tiny.toy_examples(8)
TEXTS = [Example(e.id, e.texts) for e in TOY]
HEADER = ("text", "mood", "outside", "stars")
Make = Callable[..., RunSettings]


def rows(count: int, *, offset: int = 0) -> list[list[str]]:
    return [
        [e.texts["text"], str(e.label), ("yes", "no")[i // 2 % 2], str(i % 3)]
        for i, e in enumerate(tiny.toy_examples(count, offset=offset))
    ]


def write(path: Path, found: Sequence[Sequence[str]], *, header: Sequence[str] = HEADER) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *found])
    return path


@pytest.fixture
def make(tmp_path: Path, model_folder: Path) -> Make:
    (tmp_path / "questions.yaml").write_text(FILE)
    write(tmp_path / "train.csv", rows(8))
    write(tmp_path / "new.csv", rows(6, offset=200))

    def settings(*extra: str) -> RunSettings:
        return settings_for(
            [
                f"task.name={tmp_path / 'questions.yaml'}",
                f"data.train={tmp_path / 'train.csv'}",
                f"data.tests.new={tmp_path / 'new.csv'}",
                "data.validation_fraction=0",
                f"model.name={model_folder}",
                "model.dtype=float32",
                "model.device=cpu",
                "training.epochs=40",
                "training.batch_size=8",
                "training.learning_rate=0.02",
                "training.tensorboard=false",
            ],
            extra,
        )

    return settings


def gold_of(run: FittedRun, examples: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    columns = dict(zip(HEADER[1:], zip(*[r[1:] for r in examples], strict=True), strict=True))
    return {q.name: list(columns[q.label_column]) for q in run.fitted.asked.questions}


def shares_of(classifier: Classifier, texts: Sequence[Example]) -> dict[str, NDArray[np.float64]]:
    found = classifier.probabilities(texts)
    return {name: found[:, asked.columns] for name, asked in classifier.questions.items()}


@pytest.mark.parametrize(
    "extra", [[], ["adapter.weights=full", "training.learning_rate=0.003"]], ids=["lora", "full"]
)
def test_eight_examples_are_learned_in_all_questions_and_the_run_comes_back_from_disk(
    make: Make, tmp_path: Path, extra: list[str]
) -> None:
    run = fit(make(*extra), tmp_path / "run")
    found = shares_of(run.fitted, TEXTS)
    for question in run.fitted.asked.questions:
        answers = [question.option_names[i] for i in found[question.name].argmax(axis=1)]
        assert answers == gold_of(run, rows(8))[question.name]
    # The file of questions is not needed any more.
    (tmp_path / "questions.yaml").unlink()
    (tmp_path / "run" / "settings.yaml").unlink()
    again = Classifier.load(tmp_path / "run", device="cpu")
    assert again.asked == run.fitted.asked
    for name, shares in shares_of(again, TEXTS).items():
        np.testing.assert_allclose(shares, found[name], atol=1e-5)


def test_the_run_folder_holds_every_set_and_question(make: Make, tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows(40))
    settings = make("data.validation_fraction=0.2", "training.max_steps=3")
    run = fit(settings, tmp_path / "run", name="together")
    folder = tmp_path / "run"
    assert isinstance(load_run(folder), Classifier)
    result = RunResult.load(folder)
    assert result.name == "together"
    assert list(result.evaluations) == ["new/mood", "new/park", "new/stars"]
    assert result.num_train == 32
    assert 0 < result.tokens["unique"] < result.tokens["padded"]
    assert list(result.details["levels"]) == ["new/stars"]
    table = pd.read_parquet(folder / "predictions" / "new.parquet")
    shares = table[["p_stars_0", "p_stars_1", "p_stars_2"]].to_numpy()
    np.testing.assert_allclose(table["expected_stars"], shares @ [0, 1, 2])
    assert table["gold_park"].tolist() == [row[2] for row in rows(6, offset=200)]
    predicted = np.array(["0", "1", "2"])[shares.argmax(axis=1)]
    assert table["predicted_stars"].tolist() == predicted.tolist()
    right = (table["gold_stars"] == table["predicted_stars"]).mean()
    assert result.evaluations["new/stars"].accuracy == pytest.approx(right)
    error = (table["expected_stars"] - table["gold_stars"].astype(int)).abs().mean()
    assert result.details["levels"]["new/stars"]["mean_absolute_error"] == pytest.approx(error)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validations = [record for record in records if record["kind"] == "validation"]
    for record in validations:
        own = [record[f"{name}/accuracy"] for name in ("mood", "park", "stars")]
        assert record["accuracy"] == pytest.approx(np.mean(own))
    assert min(record["loss"] for record in validations) == next(
        record["loss"] for record in validations if record["step"] == run.result.best_step
    )


def test_the_report_shows_every_question(make: Make, tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows(40))
    settings = make("training.max_steps=2", "data.validation_fraction=0.25")
    fit(settings, tmp_path / "run", report=write_page)
    page = (tmp_path / "run" / "report.html").read_text()
    for part in ("new/mood", "new/park", "new/stars", "quadratic weighted kappa", "Training"):
        assert part in page


def test_calibration_and_slices_are_those_of_each_question(make: Make, tmp_path: Path) -> None:
    header = (*HEADER, "place")
    places = ("north", "south")
    table = [[*row, places[i % 2]] for i, row in enumerate(rows(120))]
    write(tmp_path / "train.csv", table, header=header)
    table = [[*row, places[i % 2]] for i, row in enumerate(rows(24, offset=200))]
    table[0][3] = ""
    write(tmp_path / "new.csv", table, header=header)
    settings = make(
        "data.validation_fraction=0.5",
        "data.slices=[place]",
        "calibration.temperature=true",
        "calibration.prediction_sets=true",
        "training.max_steps=3",
    )
    run = fit(settings, tmp_path / "run")
    folder, asked = tmp_path / "run", run.fitted.questions
    record = run.result.details["calibration"]
    assert list(record) == ["mood", "park", "stars"]
    temperatures = [record[name]["temperature"] for name in record]
    assert temperatures == [asked[name].calibration.temperature for name in record]
    assert len(set(temperatures)) == 3
    again = Classifier.load(folder, device="cpu")
    np.testing.assert_allclose(again.probabilities(TEXTS), run.fitted.probabilities(TEXTS))
    for name, question in again.questions.items():
        assert question.calibration.temperature == record[name]["temperature"]
        np.testing.assert_array_equal(question.calibration.scores, asked[name].calibration.scores)
    assert set(run.result.details["coverage"]) == {"new/mood", "new/park", "new/stars"}
    slices = pd.read_csv(folder / "slices.csv")
    counts = slices.set_index(["evaluation", "value"])["num_examples"]
    assert counts["new/mood", "north"] == 12
    assert counts["new/stars", "north"] == 11
    found = predict_file(
        folder,
        str(tmp_path / "new.csv"),
        tmp_path / "out.csv",
        coverage=0.8,
        encoding="utf-8",
        device="cpu",
        screen=SilentScreen(),
    )
    out = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    for name, question in again.questions.items():
        sizes = out[f"prediction_set_size_{name}"].value_counts().to_dict()
        assert found.set_sizes[f"prediction_set_size_{name}"] == dict(sorted(sizes.items()))
        shares = out[[f"p_{name}_{label}" for label in question.task.label_names]].to_numpy()
        size = out[f"prediction_set_size_{name}"].to_numpy()
        np.testing.assert_array_equal(question.prediction_sets(shares, 0.8).sum(axis=1), size)


def test_new_options_are_asked_without_the_correction_of_the_old_ones(
    zero_shot: FittedRun,
) -> None:
    classifier = zero_shot.fitted
    classifier.questions["mood"].calibration = Calibration(7.0)
    classifier.questions["park"].calibration = Calibration(3.0)
    changed = classifier.with_options({"mood": ["lovely", "bad"]})
    temperatures = [q.calibration.temperature for q in changed.questions.values()]
    assert temperatures == [1.0, 3.0, 1.0]


def test_a_small_table_is_cross_validated_beside_baselines(make: Make, tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows(24))
    settings = make("training.max_steps=2")
    alone = settings.data.model_copy(update={"tests": {}})
    run = fit(settings.model_copy(update={"data": alone}), tmp_path / "run")
    names = [f"cross-validation/{name}" for name in ("mood", "park", "stars")]
    assert list(run.result.evaluations) == names
    table = pd.read_parquet(tmp_path / "run" / "predictions" / "cross-validation.parquet")
    assert len(table) == 24
    assert table["gold_park"].tolist() == [row[2] for row in rows(24)]
    for name in names:
        beside = [row["name"] for row in run.result.details["baselines"][name]]
        assert beside == ["majority", "tfidf", "this run"]


def test_a_killed_run_ends_bitwise_equal(make: Make, tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [[*row[:1], *(row[1:3]), ""] for row in rows(4)] + rows(8)[4:])
    settings = make(
        "training.epochs=4",
        "training.batch_size=4",
        "training.save_every_steps=3",
        "adapter.lora_dropout=0.1",
    )
    whole = fit(settings, tmp_path / "whole").fitted.probabilities(TEXTS)
    with pytest.raises(Killed):
        fit(settings, tmp_path / "broken", screen=NotingScreen(5))
    with pytest.raises(CheckpointError, match="interrupted, continue with"):
        Classifier.load(tmp_path / "broken")
    with pytest.raises(CheckpointError, match="holds a run already"):
        fit(settings, tmp_path / "broken")
    write_json_atomic(tmp_path / "broken" / "clock.json", {"seconds": 900.0, "cpu_seconds": 700.0})
    resumed = fit(settings, tmp_path / "broken", resume=True)
    assert 900 < resumed.result.duration_seconds < 1000
    assert 700 < resumed.result.cpu_seconds < 900
    assert np.array_equal(resumed.fitted.probabilities(TEXTS), whole)


def test_a_run_is_not_resumed_with_other_questions_or_data(make: Make, tmp_path: Path) -> None:
    settings = make("training.max_steps=4", "training.save_every_steps=1")
    with pytest.raises(Killed):
        fit(settings, tmp_path / "run", screen=NotingScreen(2))
    (tmp_path / "questions.yaml").write_text(FILE.replace("Mood?", "How is it?"))
    with pytest.raises(CheckpointError, match=r"data changed.*: questions\. Put"):
        fit(settings, tmp_path / "run", resume=True)
    (tmp_path / "questions.yaml").write_text(FILE)
    write(tmp_path / "new.csv", rows(5, offset=200))
    with pytest.raises(CheckpointError, match=r"data changed.*: new"):
        fit(settings, tmp_path / "run", resume=True)


@pytest.fixture
def zero_shot(make: Make, tmp_path: Path) -> FittedRun:
    settings = make("method.name=in_context", "data.train=null")
    return fit(settings, tmp_path / "run")


def test_zero_shot_trains_nothing_and_comes_back_from_disk(
    zero_shot: FittedRun, tmp_path: Path
) -> None:
    assert zero_shot.result.num_train == zero_shot.result.num_trainable == 0
    assert not (tmp_path / "run" / "adapter").exists()
    found = zero_shot.fitted.probabilities(TEXTS)
    again = Classifier.load(tmp_path / "run", device="cpu").probabilities(TEXTS)
    np.testing.assert_allclose(again, found, atol=1e-6)


def test_predict_answers_as_evaluate_and_takes_new_options(
    zero_shot: FittedRun, tmp_path: Path
) -> None:
    def predict(**options: list[str]) -> pd.DataFrame:
        predict_file(
            tmp_path / "run",
            str(tmp_path / "new.csv"),
            tmp_path / "out.parquet",
            options=options,
            encoding="utf-8",
            device="cpu",
            screen=SilentScreen(),
        )
        return pd.read_parquet(tmp_path / "out.parquet")

    table = predict()
    kept = pd.read_parquet(tmp_path / "run" / "predictions" / "new.parquet")
    assert not [column for column in table.columns if column.startswith("gold")]
    for column in kept.columns.drop(["id", "text", "error"]).intersection(table.columns):
        same = table[column].to_list() == pytest.approx(kept[column].to_list(), abs=1e-6)
        assert same, column
    changed = predict(mood=["lovely", "cold and rude", "good"], stars=["1", "5"])
    own = [f"p_mood_{name}" for name in ("lovely", "cold and rude", "good")]
    np.testing.assert_allclose(changed[own].sum(axis=1), 1)
    assert changed["expected_stars"].between(1, 5).all()
    np.testing.assert_allclose(changed["p_park_yes"], table["p_park_yes"], atol=1e-5)
    with pytest.raises(TaskfitError, match=r"no question .mod.; .* Did you mean mood"):
        predict(mod=["a", "b"])


def test_evaluate_measures_the_questions_that_have_a_column(
    zero_shot: FittedRun, tmp_path: Path
) -> None:
    table = [[row[0], row[3]] for row in rows(10, offset=100)]
    table[0][1] = ""
    write(tmp_path / "more.csv", table, header=("text", "stars"))
    found = evaluate_file(
        tmp_path / "run",
        str(tmp_path / "more.csv"),
        name="more",
        encoding="utf-8",
        device="cpu",
        screen=SilentScreen(),
    )
    assert list(found) == ["more/stars"]
    assert found["more/stars"].num_examples == 9
    result = RunResult.load(tmp_path / "run")
    assert list(result.evaluations) == [
        *(f"new/{name}" for name in ("mood", "park", "stars")),
        "more/stars",
    ]
    assert list(result.details["levels"]) == ["new/stars", "more/stars"]
    assert len(pd.read_parquet(tmp_path / "run" / "predictions" / "more.parquet")) == 10


def test_held_out_texts_never_stand_in_training(make: Make, tmp_path: Path) -> None:
    table = rows(30)
    write(tmp_path / "train.csv", [*table, *table[:6], ["Nobody asked.", "", "", ""]])
    write(tmp_path / "new.csv", [[f" {table[3][0].upper()}", *table[3][1:]]])
    data = prepare_data(make("data.validation_fraction=0.3"), several=True)
    held = {e.texts["text"] for e in data.validation}
    trained = {e.texts["text"] for e in data.train}
    assert held
    assert not held & trained
    assert table[3][0] not in held | trained
    assert "Nobody asked." not in held | trained
    assert any("without any label" in note for note in data.notes)


@pytest.mark.parametrize(
    ("table", "header", "parts"),
    [
        (rows(4), ("text", "mod", "outside", "stars"), ["no column 'mood'", "Did you mean mod"]),
        (rows(4), ("body", "mood", "outside", "stars"), ["no text column 'text'", "body"]),
        (
            [["A", "goood", "yes", "1"], ["B", "bad", "maybe", "1"], ["C", "bad", "no", "9"]],
            HEADER,
            [
                "Question mood, column 'mood': 1 row with an unknown label: 'goood'",
                "train.csv:2",
                "Did you mean good?",
                "column 'outside'",
                "'maybe'",
                "train.csv:3",
                "Question stars",
                "train.csv:4",
            ],
        ),
        (
            [[text, mood, "", stars] for text, mood, _, stars in rows(6)],
            HEADER,
            ["Question park has no label in training: column 'outside' is empty in all 6"],
        ),
        (
            [[text, mood, park, "1"] for text, mood, park, _ in rows(6)],
            HEADER,
            ["Question stars: All 6 training examples have the label '1'"],
        ),
    ],
)
def test_tables_that_do_not_fit_the_questions_are_refused(
    make: Make, tmp_path: Path, table: Any, header: tuple[str, ...], parts: list[str]
) -> None:
    write(tmp_path / "train.csv", table, header=header)
    with pytest.raises(DataError) as caught:
        fit(make(), tmp_path / "run")
    for part in parts:
        assert part in str(caught.value)


def test_an_option_without_examples_is_noted(make: Make, tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [row for row in rows(8) if row[3] != "2"])
    screen = NotingScreen()
    fit(make("training.max_steps=1"), tmp_path / "run", screen=screen)
    assert "question stars: no training example of '2'" in screen.notes


def test_settings_without_meaning_for_questions_are_refused_at_once(
    make: Make, tmp_path: Path
) -> None:
    wrong = ["method.name=head", "method.num_demonstrations=2", "data.label=mood"]
    with pytest.raises(SettingsError) as caught:
        fit(make(*wrong, "data.text=[body]"), tmp_path / "run")
    for part in ("method.name=head", "num_demonstrations=2", "data.label=mood", "--text names"):
        assert part in str(caught.value)


def test_no_data_at_all_is_refused(make: Make, tmp_path: Path) -> None:
    settings = make("data.train=null")
    with pytest.raises(DataError, match="label_words needs training examples"):
        fit(settings, tmp_path / "a")
    nothing = settings.data.model_copy(update={"tests": {}})
    with pytest.raises(SettingsError, match="No data"):
        fit(settings.model_copy(update={"data": nothing}), tmp_path / "b")


def test_values_of_a_table_stand_for_yes_and_no(
    make: Make, zero_shot: FittedRun, tmp_path: Path
) -> None:
    table = [["A", "good", value, "1"] for value in ("1", "true", "No", "FALSE", "")]
    path = write(tmp_path / "values.csv", table)
    found = labelled_examples(
        pd.read_csv(path, dtype=str, keep_default_na=False),
        zero_shot.fitted.asked,
        DataSettings(),
        source=str(path),
    )
    assert [e.of("park").label for e in found] == ["yes", "yes", "no", "no", None]


def test_options_are_read_from_the_command_line() -> None:
    assert parse_options(["mood=a, b c", "stars=1,2"]) == {
        "mood": ["a", "b c"],
        "stars": ["1", "2"],
    }
    for wrong in (["mood"], ["=a,b"], ["mood=a,,b"], ["mood=a,b", "mood=c,d"]):
        with pytest.raises(SettingsError, match="--options"):
            parse_options(wrong)


def test_a_score_is_measured_by_distance() -> None:
    options = tuple(Option(str(n), (f" {n}",), number=float(n)) for n in (1, 2, 5))
    asked = Questionnaire("q", 1, ("text",), (Question("s", "?", "score", "s", options),))
    score = AskedQuestion("s", asked.tasks["s"], slice(0, 3), Calibration())
    known = [Example("x", {}, name) for name in ("1", "5", "5")]
    probabilities = np.array([[1.0, 0, 0], [0, 0.5, 0.5], [0.2, 0.8, 0]])
    found = score.level_metrics(known, probabilities)
    assert found["mean_absolute_error"] == pytest.approx((0 + 1.5 + 3.2) / 3)
    observed = sum((p - g) ** 2 for p, g in zip((0, 1, 1), (0, 2, 2), strict=True)) / 3
    chance = sum((p - g) ** 2 for p in (0, 1, 1) for g in (0, 2, 2)) / 9
    assert found["quadratic_kappa"] == pytest.approx(1 - observed / chance)
    same = score.level_metrics(known[:1], np.array([[1.0, 0, 0]]))
    assert same == {"mean_absolute_error": 0.0, "quadratic_kappa": 0.0}
