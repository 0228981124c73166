"""Runs are measured with the pass that loaded ones predict with."""

from pathlib import Path

import numpy as np
import pytest

import tiny
from taskfit.data import Example
from taskfit.runs.classifier import Classifier
from taskfit.runs.fit import fit
from tiny_screens import NotingScreen
from tiny_settings import settings_for


@pytest.mark.parametrize("method", ["in_context", "label_words"])
def test_a_fitted_run_and_the_loaded_one_score_with_the_lean_pass_and_say_the_same(
    model_folder: Path, tmp_path: Path, method: str
) -> None:
    examples = tiny.toy_examples(16)
    tiny.write_csv(tmp_path / "train.csv", examples)
    tiny.write_csv(tmp_path / "own.csv", tiny.toy_examples(8, offset=100))
    settings = settings_for(
        [
            f"data.train={tmp_path / 'train.csv'}",
            f"data.tests.own={tmp_path / 'own.csv'}",
            f"model.name={model_folder}",
            "model.dtype=bfloat16",
            f"method.name={method}",
            "training.epochs=1",
            "training.tensorboard=false",
        ]
    )
    fitted = fit(settings, tmp_path / "run", baselines=False).fitted
    texts = [Example(str(i), one.texts) for i, one in enumerate(examples)]
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
    tiny.write_csv(tmp_path / "train.csv", tiny.toy_examples(8))
    tiny.write_csv(tmp_path / "own.csv", tiny.toy_examples(4, offset=100))
    settings = settings_for(
        [
            f"data.train={tmp_path / 'train.csv'}",
            f"data.tests.own={tmp_path / 'own.csv'}",
            f"model.name={model_folder}",
            "method.name=label_words",
            "training.epochs=1",
            "training.tensorboard=false",
        ]
    )
    if not knows:
        monkeypatch.setattr("taskfit.models.lean.free_bytes", lambda: 1000)
    screen = NotingScreen()
    fit(settings, tmp_path / "run", baselines=False, screen=screen)
    told = [note for note in screen.notes if "transformers' own layers" in note]
    assert len(told) == (0 if knows else 2), screen.notes
    assert all("GB free" in note for note in told)
