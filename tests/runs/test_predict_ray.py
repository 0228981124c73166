"""Predictions on a Ray cluster: the same rows in the same order, though a worker is killed."""

import importlib.util
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

import tiny
from taskfit.errors import SettingsError, TaskfitError
from taskfit.runs import predict as predict_module
from taskfit.runs.cluster import RayCluster
from taskfit.runs.fit import fit
from taskfit.runs.predict import predict_file
from taskfit.settings_file import load_settings
from tiny_screens import NotingScreen

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or "TASKFIT_LONG" not in os.environ,
    reason="starting Ray takes long: set TASKFIT_LONG=1, and have the extra `ray`",
)
NUM_ROWS = 400


@pytest.fixture
def run(tmp_path: Path) -> Path:
    data = {"train": str(tiny.write_csv(tmp_path / "train.csv", tiny.toy_examples(40)))}
    fit(load_settings(flags={"method": {"name": "tfidf"}, "data": data}), tmp_path / "run")
    return tmp_path / "run"


def kill_one_worker(parts: Path, killed: list[int]) -> None:
    """Kill one of two workers once there is something finished and much is not."""
    while not killed:
        workers = [
            process
            for process in psutil.Process().children(recursive=True)
            if "PredictWorker" in process.name()
        ]
        if len(workers) > 1 and len(list(parts.glob("part-*.parquet"))) > 1:
            os.kill(workers[0].pid, signal.SIGKILL)
            killed.append(len(list(parts.glob("part-*.parquet"))))
        time.sleep(0.01)


@needs_ray
@pytest.mark.filterwarnings("default")  # Ray's own are no matter of ours
def test_a_cluster_with_a_killed_worker_writes_what_one_process_writes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray writes the cluster's token
    monkeypatch.setattr(predict_module, "CHUNK", 2)
    texts = [example.texts["text"] for example in tiny.toy_examples(NUM_ROWS, offset=100)]
    rows = [f"T{place},{text}\n" for place, text in enumerate(texts)]
    rows[7], rows[200] = "T7,\n", "T200,a text, of more fields\n"
    source = tmp_path / "in.csv"
    source.write_text("".join(["ticket,text\n", *rows]))
    options = {"encoding": "utf-8", "device": "cpu"}
    alone = predict_file(run, str(source), tmp_path / "alone.csv", screen=NotingScreen(), **options)
    target, screen, killed = tmp_path / "spread.csv", NotingScreen(), list[int]()
    cluster = RayCluster(cpus_per_run=1)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 * 2**20,
    )
    killer = threading.Thread(
        target=kill_one_worker, args=(target.with_name("spread.csv.partial"), killed), daemon=True
    )
    try:
        killer.start()
        spread = predict_file(
            run, str(source), target, screen=screen, cluster=cluster, workers=2, **options
        )
        assert ray.is_initialized()  # who started it shuts it down
        with pytest.raises(TaskfitError, match=r"calibration\.prediction_sets=true"):
            predict_file(
                run,
                str(source),
                tmp_path / "sets.csv",
                screen=screen,
                cluster=cluster,
                workers=2,
                coverage=0.9,
                **options,
            )
        with pytest.raises(SettingsError, match="has no room for a worker of 9 CPUs"):
            predict_file(
                run,
                str(source),
                tmp_path / "big.csv",
                screen=screen,
                cluster=RayCluster(cpus_per_run=9),
                **options,
            )
    finally:
        killed.append(0)
        ray.shutdown()
    assert 0 < killed[0] < NUM_ROWS / 2
    assert "Ray: 2 workers, 200 windows of 2 rows" in screen.notes
    assert target.read_bytes() == (tmp_path / "alone.csv").read_bytes()
    assert spread == alone
    assert spread.num_errors == 2


def test_without_ray_one_message_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "ray" else original(name, *a)
    )
    source = tmp_path / "in.csv"
    source.write_text("text\na\n")
    with pytest.raises(SettingsError, match=r"pip install 'taskfit\[ray\]'`, or leave out --ray"):
        predict_file(
            run,
            str(source),
            tmp_path / "out.csv",
            encoding="utf-8",
            screen=NotingScreen(),
            cluster=RayCluster(),
        )
