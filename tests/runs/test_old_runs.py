"""Runs of earlier versions still predict, evaluate, report and export.

The fixture was made by commit 4c6323a: a tiny random Llama, a run of `head` and one of
`label_words` on 40 made-up sentences, with a temperature, and what that version predicted of
others.
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
OPTIONS = {"encoding": "utf-8", "device": "cpu", "screen": SilentScreen()}


@pytest.fixture(params=["head", "label_words"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)  # the model is named relative to where the run was made
    return Path(str(request.param))


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
