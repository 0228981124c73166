"""Models that runs share in memory: one a content, number format and device."""

from pathlib import Path

import pytest

from taskfit.errors import TaskfitError
from taskfit.runs.shared_bases import SharedBases
from taskfit.settings import ModelSettings, RunSettings


def settings(name: str | Path, dtype: str) -> RunSettings:
    return RunSettings(model=ModelSettings(name=str(name), dtype=dtype, device="cpu"))


def test_what_is_equal_is_shared_and_nothing_else(model_folder: Path) -> None:
    bases = SharedBases()
    first = bases.lend(settings(model_folder, "float32"))
    again = bases.lend(settings(model_folder, "float32"))
    any_format = bases.lend(settings(model_folder, "auto"))
    assert first.tree is not again.tree
    assert first.tree.model is again.tree.model is any_format.tree.model
    other = bases.lend(settings(model_folder, "bfloat16"))
    assert other.tree.model is not first.tree.model
    assert bases.num_bases == 2


def test_a_base_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(TaskfitError, match="missing"):
        SharedBases().lend(settings(tmp_path / "missing", "float32"))
