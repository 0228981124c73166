"""Runs of earlier versions still predict, evaluate, report and export.

The fixture was made by commit 4c6323a: a tiny random Llama, a run of `head` and one of
`label_words` on 40 made-up sentences, with a temperature, and what that version predicted of
others. The run of several questions beside it was made by commit e87278b, on the same model.
"""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from taskfit.export.export import export_run
from taskfit.report.pages import write_page
from taskfit.runs.predict import evaluate_file, predict_file
from taskfit.runs.records import RunResult
from taskfit.screen import SilentScreen

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run-4c6323a"
SEVERAL = FIXTURE.with_name("run-e87278b")
OPTIONS = {"encoding": "utf-8", "device": "cpu", "screen": SilentScreen()}


@pytest.fixture(params=["head", "label_words"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)  # the model is named relative to where the run was made
    return Path(str(request.param))


@pytest.fixture
def several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in (FIXTURE, SEVERAL):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("questions")


def test_several_questions_predict_what_they_predicted(several: Path) -> None:
    found = predict_file(several, "asked-test.csv", Path("out.csv"), **OPTIONS)
    before, after = pd.read_csv("questions.csv"), pd.read_csv("out.csv")
    assert list(after.columns) == list(before.columns)
    assert list(found.counts) == ["predicted_mood", "predicted_park", "predicted_stars"]
    for column in before.columns.drop("id"):
        same = after[column].to_list()
        if before[column].dtype.kind == "f":
            same = pytest.approx(same, abs=1e-5)
        assert before[column].to_list() == same, column


def test_several_questions_are_evaluated_and_reported(several: Path) -> None:
    before = RunResult.load(several)
    again = evaluate_file(several, "asked-test.csv", name="again", **OPTIONS)
    for question in ("mood", "park", "stars"):
        earlier = before.evaluations[f"new/{question}"]
        assert again[f"again/{question}"].num_examples == earlier.num_examples
        assert again[f"again/{question}"].log_loss == pytest.approx(earlier.log_loss, abs=1e-5)
    levels = RunResult.load(several).details["levels"]
    assert levels["again/stars"] == pytest.approx(levels["new/stars"], abs=1e-5)
    write_page(several)
    page = (several / "report.html").read_text(encoding="utf-8")
    assert "again/stars" in page


def test_it_predicts_what_it_predicted(run: Path) -> None:
    found = predict_file(run, "test.csv", Path("out.csv"), **OPTIONS)
    before, after = pd.read_csv(f"{run}.csv"), pd.read_csv("out.csv")
    assert list(after.columns) == list(before.columns)
    assert after["predicted"].tolist() == before["predicted"].tolist()
    np.testing.assert_allclose(after["p_good"], before["p_good"], atol=1e-5)
    assert sum(found.counts["predicted"].values()) == 20


def test_it_is_evaluated_reported_and_exported(run: Path, tmp_path: Path) -> None:
    before = RunResult.load(run).evaluations["new"]
    again = evaluate_file(run, "test.csv", name="again", **OPTIONS)["again"]
    assert again.accuracy == before.accuracy
    assert again.log_loss == pytest.approx(before.log_loss, abs=1e-5)
    write_page(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "again" in page
    export_run(run, tmp_path / "out", form="merged", device="cpu")
    assert (tmp_path / "out" / "model.safetensors").is_file()
