"""A run over weights in pytorch_model.bin knows its base by the user's folder and its content."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import tiny
from taskfit.errors import CheckpointError
from taskfit.models.bin_weights import BIN_WEIGHTS, WEIGHTS
from taskfit.runs.bases import read_bases
from taskfit.runs.fit import fit
from taskfit.runs.inspection import inspect_task
from taskfit.runs.predict import predict_file
from taskfit.screen import SilentScreen
from taskfit.settings_file import load_settings

OPTIONS: dict[str, Any] = {"encoding": "utf-8", "device": "cpu", "screen": SilentScreen()}


@pytest.mark.parametrize("weights", ["lora", "qlora"])
def test_it_is_fitted_found_again_and_refused_when_it_changed(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    if weights == "qlora":
        pytest.importorskip("bitsandbytes")
    monkeypatch.setenv("TASKFIT_CACHE", str(tmp_path / "cache"))
    base = Path(shutil.copytree(model_folder, tmp_path / "base"))
    numbers = load_file(base / WEIGHTS)
    (base / WEIGHTS).unlink()
    torch.save(numbers, base / BIN_WEIGHTS)
    train = tiny.write_csv(tmp_path / "train.csv", tiny.toy_examples(8))
    given = [f"data.train={train}", "data.validation_fraction=0", f"model.name={base}"]
    given += ["model.dtype=float32", "model.device=cpu", "training.tensorboard=false"]
    given += ["method.name=label_words", "training.max_steps=1", f"adapter.weights={weights}"]
    settings = load_settings(overrides=given)
    assert inspect_task(settings).model == str(base)
    run = tmp_path / "run"
    fit(settings, run, baselines=False)
    assert read_bases(run)["model"].place == str(base)
    predict_file(run, str(train), tmp_path / "one.csv", **OPTIONS)
    shutil.rmtree(tmp_path / "cache")
    predict_file(run, str(train), tmp_path / "two.csv", **OPTIONS)
    one, two = pd.read_csv(tmp_path / "one.csv"), pd.read_csv(tmp_path / "two.csv")
    pd.testing.assert_frame_equal(one, two)
    torch.save({key: value * 2 for key, value in numbers.items()}, base / BIN_WEIGHTS)
    with pytest.raises(CheckpointError, match=r"holds other weights"):
        predict_file(run, str(train), tmp_path / "three.csv", **OPTIONS)
