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
import yaml

import tiny
from taskfit.compare.grid import expand_grid
from taskfit.compare.run import run_grid
from taskfit.export.export import export_run
from taskfit.method_settings import METHOD_SETTINGS
from taskfit.report.pages import write_page
from taskfit.runs.evaluate import evaluate_file
from taskfit.runs.fit import fit
from taskfit.runs.predict import predict_file
from taskfit.runs.records import RunResult
from taskfit.screen import SilentScreen
from taskfit.settings_file import load_settings
from tiny_screens import Killed, NotingScreen

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
    found = predict_file(
        several, "asked-test.csv", Path("out.csv"), only_predictions=True, **OPTIONS
    )
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
    found = predict_file(run, "test.csv", Path("out.csv"), only_predictions=True, **OPTIONS)
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


def as_before(path: Path, **unread: object) -> None:
    """Turn a settings file into what was written when every method had every setting."""
    settings = yaml.safe_load(path.read_text())
    every = {
        key: field.default
        for kind in METHOD_SETTINGS.values()
        for key, field in kind.model_fields.items()
    }
    settings["method"] = {**every, **unread, **settings["method"]}
    path.write_text(yaml.safe_dump(settings))


def test_a_run_that_an_earlier_version_began_goes_on(model_folder: Path, tmp_path: Path) -> None:
    table = tiny.write_csv(tmp_path / "train.csv", tiny.toy_examples(24))
    given = [f"data.train={table}", "data.validation_fraction=0.25", "method.name=label_words"]
    given += [f"model.name={model_folder}", "model.dtype=float32", "training.epochs=2"]
    given += ["training.batch_size=6", "training.save_every_steps=1", "training.tensorboard=false"]
    settings = load_settings(overrides=given)
    whole = fit(settings, tmp_path / "whole", baselines=False).fitted
    with pytest.raises(Killed):
        fit(settings, tmp_path / "run", baselines=False, screen=NotingScreen(3))
    as_before(tmp_path / "run" / "settings.yaml", temperature=2.0, num_neighbors=3)
    again = load_settings(tmp_path / "run" / "settings.yaml", lenient_file=True)
    found = fit(again, tmp_path / "run", resume=True, baselines=False).fitted
    texts = tiny.toy_examples(6, offset=200)
    assert np.array_equal(found.probabilities(texts), whole.probabilities(texts))


def test_a_grid_of_an_earlier_version_is_gone_on_with(tmp_path: Path) -> None:
    train = tiny.write_csv(tmp_path / "train.csv", tiny.toy_examples(24))
    test = tiny.write_csv(tmp_path / "test.csv", tiny.toy_examples(12, offset=100))
    grid = {
        "base": {
            "data": {"train": str(train), "tests": {"new": str(test)}},
            "method": {"num_demonstrations": 2},
            "training": {"tensorboard": False},
        },
        "methods": {name: {"method": {"name": name}} for name in ("tfidf", "majority")},
    }
    grid["methods"]["few-shot"] = {"method": {"name": "in_context"}, "data": {"num_train": 999}}

    def run() -> dict[Path, float]:
        run_grid(expand_grid(grid), tmp_path / "out", screen=SilentScreen())
        return {path: path.stat().st_mtime for path in tmp_path.glob("out/runs/*/result.json")}

    before = run()
    for path in before:
        as_before(path.parent / "settings.yaml", num_demonstrations=2)
    assert len(before) == 2
    assert run() == before
