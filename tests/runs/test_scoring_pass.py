"""Runs are measured with the pass that loaded ones predict with."""

from pathlib import Path

import numpy as np
import pytest

import tiny
from taskfit.data import Example
from taskfit.runs.classifier import Classifier
from taskfit.runs.fit import fit
from taskfit.runs.predict import predict_file
from taskfit.settings import RunSettings
from tiny_screens import NotingScreen
from tiny_settings import settings_for


def run_settings(
    folder: Path, model: Path, method: str, *more: str, tested: bool = True
) -> RunSettings:
    """Settings over tables that are written into the folder, one of them to measure on if asked."""
    tiny.write_csv(folder / "train.csv", tiny.toy_examples(16))
    tiny.write_csv(folder / "own.csv", tiny.toy_examples(8, offset=100))
    return settings_for(
        [
            f"data.train={folder / 'train.csv'}",
            *([f"data.tests.own={folder / 'own.csv'}"] if tested else ()),
            f"model.name={model}",
            f"method.name={method}",
            "training.epochs=1",
            "training.tensorboard=false",
            *more,
        ]
    )


@pytest.mark.parametrize("method", ["in_context", "label_words"])
def test_a_fitted_run_and_the_loaded_one_score_with_the_lean_pass_and_say_the_same(
    model_folder: Path, tmp_path: Path, method: str
) -> None:
    settings = run_settings(tmp_path, model_folder, method, "model.dtype=bfloat16")
    fitted = fit(settings, tmp_path / "run", baselines=False).fitted
    texts = [Example(str(i), one.texts) for i, one in enumerate(tiny.toy_examples(16))]
    loaded = Classifier.load(tmp_path / "run", device="cpu")
    found = [one.probabilities(texts) for one in (fitted, loaded)]
    for classifier in (fitted, loaded):
        lean = classifier.method.context.need_model().tree.lean
        assert lean.scores
        assert lean.refusal is None
    assert np.array_equal(*found)
    alone = np.concatenate([loaded.probabilities([text]) for text in texts])
    np.testing.assert_allclose(alone, found[1], atol=0.02)


@pytest.mark.parametrize("knows", [True, False])
def test_a_run_says_that_transformers_own_layers_train_and_read(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, knows: bool
) -> None:
    settings = run_settings(tmp_path, model_folder, "label_words")
    if not knows:
        monkeypatch.setattr("taskfit.models.lean.free_bytes", lambda: 1000)
    screen = NotingScreen()
    fit(settings, tmp_path / "run", baselines=False, screen=screen)
    assert len(told(screen)) == (0 if knows else 2), screen.notes

    screen = NotingScreen()
    source = str(tmp_path / "own.csv")
    predict_file(tmp_path / "run", source, tmp_path / "p.csv", encoding="utf-8", screen=screen)
    assert len(told(screen)) == (0 if knows else 1), screen.notes


def test_a_cross_validated_run_reads_its_folds_with_the_lean_pass_or_says_why_not(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = run_settings(tmp_path, model_folder, "label_words", tested=False)
    for knows in (True, False):
        screen = NotingScreen()
        fit(settings, tmp_path / f"run-{knows}", baselines=False, screen=screen)
        assert any("cross-validation" in note for note in screen.notes)
        read = [note for note in told(screen) if note.startswith("texts are read")]
        assert len(read) == (0 if knows else 1), screen.notes
        monkeypatch.setattr("taskfit.models.lean.free_bytes", lambda: 1000)


def told(screen: NotingScreen) -> list[str]:
    """Return what was said of transformers' own layers."""
    found = [note for note in screen.notes if "transformers' own layers" in note]
    assert all("GB free" in note for note in found)
    return found
