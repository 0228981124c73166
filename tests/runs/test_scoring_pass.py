"""Runs are measured with the pass that loaded ones predict with."""

from pathlib import Path

import numpy as np
import pytest

import tiny
from taskfit.data import Example
from taskfit.models.load import load_model
from taskfit.runs.classifier import Classifier
from taskfit.runs.fit import fit
from taskfit.settings import RunSettings


@pytest.mark.parametrize("method", ["in_context", "label_words"])
def test_a_fitted_run_and_the_loaded_one_score_with_the_lean_pass_and_say_the_same(
    model_folder: Path, tmp_path: Path, method: str
) -> None:
    examples = tiny.toy_examples(16)
    train = tiny.write_csv(tmp_path / "train.csv", examples)
    settings = RunSettings.model_validate(
        {
            "data": {"train": str(train), "test": {"own": str(train)}},
            "model": {"name": str(model_folder), "dtype": "bfloat16", "device": "cpu"},
            "method": {"name": method},
            "training": {"epochs": 1, "batch_size": 8} if method == "label_words" else {},
        }
    )
    base = load_model(settings.model)
    fitted = fit(settings, tmp_path / "run", model=base, baselines=False).fitted
    texts = [Example(str(i), one.texts) for i, one in enumerate(examples)]
    loaded = Classifier.load(tmp_path / "run", device="cpu")
    for classifier in (fitted, loaded):
        tree = classifier.method.context.need_model().tree
        assert tree.lean.scores
        assert tree.lean.refusal is None
    found = loaded.probabilities(texts)
    assert np.array_equal(fitted.probabilities(texts), found)
    alone = np.concatenate([loaded.probabilities([text]) for text in texts])
    np.testing.assert_allclose(alone, found, atol=0.02)
