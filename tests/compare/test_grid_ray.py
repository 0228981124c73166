"""Grids on a Ray cluster: the same results, though a worker is killed; without Ray, one message."""

import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from taskfit.compare.grid import expand_grid
from taskfit.compare.pool import Execution
from taskfit.compare.run import run_grid
from taskfit.errors import SettingsError
from taskfit.runs.cluster import RayCluster
from taskfit.screen import SilentScreen
from tiny_grid import ActingView, tiny_grid

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra `ray`)"
)


@pytest.fixture
def grid(tmp_path: Path, model_folder: Path) -> dict[str, Any]:
    return tiny_grid(tmp_path, model_folder)


def kill_actors() -> None:
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith("ray::RayWorker"):
            os.kill(process.pid, signal.SIGKILL)


@needs_ray
@pytest.mark.filterwarnings("default")  # Ray's own are no matter of ours
def test_a_cluster_with_a_killed_worker_gives_the_results_of_one_process(
    grid: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray writes the cluster's token

    runs = expand_grid(grid)
    alone = run_grid(runs, tmp_path / "alone", screen=SilentScreen())
    view = ActingView(tmp_path / "ray", kill_actors)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        outcome = run_grid(
            runs,
            tmp_path / "ray",
            screen=view,
            show=view.update,
            execution=Execution(workers=1, ray=RayCluster(cpus_per_run=1)),
        )
        assert ray.is_initialized()  # who started it shuts it down
        with pytest.raises(SettingsError, match="No machine of the Ray cluster has what a run"):
            run_grid(
                runs,
                tmp_path / "big",
                screen=SilentScreen(),
                execution=Execution(ray=RayCluster(cpus_per_run=9)),
            )
    finally:
        ray.shutdown()
    assert 0 < view.acted_at < 80
    assert any("the Ray worker died" in note and "tried again" in note for note in view.notes)
    assert outcome.failures == alone.failures
    for one, other in zip(alone.results, outcome.results, strict=True):
        assert one.name == other.name
        assert one.evaluations == other.evaluations


def test_without_ray_one_message_says_what_to_install(
    grid: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "ray" else original(name, *a)
    )
    with pytest.raises(SettingsError, match=r"pip install 'taskfit\[ray\]'.*--workers"):
        run_grid(
            expand_grid(grid),
            tmp_path / "out",
            screen=SilentScreen(),
            execution=Execution(ray=RayCluster()),
        )


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_is_told_at_once(
    grid: dict[str, Any], tmp_path: Path, address: str
) -> None:
    with pytest.raises(SettingsError, match=f"No Ray cluster could be had at {address}: .*refused"):
        run_grid(
            expand_grid(grid),
            tmp_path / "out",
            screen=SilentScreen(),
            execution=Execution(ray=RayCluster(address)),
        )
