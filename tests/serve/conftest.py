"""Runs of many kinds in one engine, fitted once."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from taskfit.serve.engine import RunsEngine


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, Path]:
    from tiny_runs import fit_runs

    return fit_runs(tmp_path_factory.mktemp("runs"), model_folder)


@pytest.fixture(scope="session")
def engine(runs: dict[str, Path], model_folder: Path) -> "RunsEngine":
    from taskfit.serve.engine import load_engine

    return load_engine(runs, base=str(model_folder), device="cpu")
