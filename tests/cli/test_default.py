"""The command with no settings, on the packaged models."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

import tiny
from taskfit import TextClassifier
from taskfit.cli.main import main
from taskfit.data import load_builtin

pytestmark = pytest.mark.model


def test_the_first_command_explains_itself_and_beats_a_bag_of_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = load_builtin("sentiment", folder=None)
    # The set is sorted by its ratings.
    movies = found.evaluations["movies"]
    test = movies[:: len(movies) // 80][:80]
    tiny.write_csv(Path("mine.csv"), found.train[:: len(found.train) // 48][:48])
    tiny.write_csv(Path("new.csv"), test)
    # Fewer steps than the rule takes, for the sake of the suite's time alone.
    command = ["taskfit", "fit", "--data", "mine.csv", "--test", "new=new.csv", "--out", "run"]
    monkeypatch.setattr(sys, "argv", [*command, "--set", "training.max_steps=12"])
    with pytest.raises(SystemExit, match="0"):
        main()
    out = " ".join(capsys.readouterr().out.split())
    assert "method auto: a classification head" in out
    assert "steps of 8 texts" in out
    assert "blend: 33% the tuned model, 33% the probe on the model, 33% the probe on minilm" in out
    rows = json.loads(Path("run/result.json").read_text())["details"]["baselines"]["new"]
    by_name = {row["name"]: row["mcc"] for row in rows}
    assert by_name["this run"] > by_name["tfidf"]
    loaded = TextClassifier.load("run", device="cpu")
    measured = pd.read_parquet("run/predictions/new.parquet")
    names = [f"p_{label}" for label in loaded.classes_]
    texts = [example.texts["text"] for example in test[:8]]
    ours = loaded.predict_proba(texts)
    # Other batch mates are other trees, and bfloat16 rounds.
    assert abs(ours - measured[names].to_numpy()[:8]).max() < 0.1
