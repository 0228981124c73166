"""Whether layers are compiled: by the length of training, and by what was compiled before."""

from pathlib import Path

import pytest
import torch

from taskfit.models.compile_cache import VARIABLE, note_compiled
from taskfit.models.load import LoadedModel
from taskfit.settings_file import load_settings
from taskfit.training.compiling import MIN_STEPS, MIN_STEPS_CACHED, compile_key, compile_pays

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache" / "compiled").mkdir(parents=True)
    monkeypatch.setenv("TASKFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/c++")


def decide(steps: int, folder: Path, key: str | None, *overrides: str) -> bool:
    given = ["training.batch_size=1", "training.epochs=1", *overrides]
    settings = load_settings(overrides=given)
    folder.mkdir(exist_ok=True)
    return compile_pays(settings, steps, folder=folder, device=CPU, key=key)


def key_of(loaded: LoadedModel, *overrides: str) -> str | None:
    return compile_key(load_settings(overrides=list(overrides)), loaded.tree)


def test_fewer_steps_pay_where_the_same_layers_were_compiled_before(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    key = key_of(loaded)
    assert key is not None
    assert not decide(MIN_STEPS - 1, tmp_path / "a", key)
    assert decide(MIN_STEPS, tmp_path / "b", key)
    note_compiled(key)
    assert decide(MIN_STEPS_CACHED, tmp_path / "c", key)
    assert not decide(MIN_STEPS_CACHED - 1, tmp_path / "d", key)
    other = key_of(loaded, "adapter.lora_rank=4")
    assert not decide(MIN_STEPS_CACHED, tmp_path / "e", other)
    assert not decide(MIN_STEPS_CACHED, tmp_path / "f", None)


def test_a_resumed_run_does_as_before_whatever_was_compiled_meanwhile(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    key = key_of(loaded)
    assert key is not None
    assert not decide(MIN_STEPS_CACHED, tmp_path / "run", key)
    note_compiled(key)
    assert not decide(MIN_STEPS_CACHED, tmp_path / "run", key)


def test_what_is_asked_for_is_done(loaded: LoadedModel, tmp_path: Path) -> None:
    assert decide(1, tmp_path / "on", None, "model.compile=on")
    assert not decide(10**6, tmp_path / "off", None, "model.compile=off")
