"""Trackers repeat the run's record, send nothing anywhere unasked, and can lose nothing."""

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import tiny
from taskfit.errors import SettingsError
from taskfit.files import read_jsonl
from taskfit.report.pages import write_page
from taskfit.runs.fit import fit
from taskfit.runs.records import RunResult
from taskfit.settings import RunSettings
from taskfit.settings_file import load_settings
from taskfit.training.trackers import Tracker, Trackers, flat_settings, numbers, open_trackers
from tiny_screens import NotingScreen


@dataclass
class Server:
    """What a fake MLflow was told."""

    uris: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    parameters: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, float, int]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    status: list[str] = field(default_factory=list)
    is_down: bool = False


@dataclass
class Local:
    """What a fake trackio was told."""

    opened: list[dict[str, Any]] = field(default_factory=list)
    logged: list[tuple[dict[str, float], int | None]] = field(default_factory=list)
    finished: int = 0


class Client:
    """A fake of `MlflowClient` that tells a server."""

    def __init__(self, found: Server, tracking_uri: str) -> None:
        if found.is_down:
            raise ConnectionError("refused")
        self.found = found
        found.uris.append(tracking_uri)

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        return "1"

    def create_run(self, experiment: str, run_name: str) -> SimpleNamespace:
        self.found.runs.append(run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id=f"id{len(self.found.runs)}"))

    def update_run(self, run: str, status: str) -> None:
        self.found.status.append(status)

    def log_batch(self, run: str, metrics: Sequence[Any] = (), params: Sequence[Any] = ()) -> None:
        if self.found.is_down:
            raise ConnectionError("refused")
        assert len(params) <= 100
        self.found.parameters.update(params)
        self.found.metrics += [(key, value, step) for key, value, _, step in metrics]

    def log_artifact(self, run: str, path: str) -> None:
        self.found.files.append(Path(path).name)

    def set_terminated(self, run: str, status: str) -> None:
        self.found.status.append(status)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """Put a fake of MLflow in place of the package; a real one is not asked."""
    found = Server()

    mlflow, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    mlflow.MlflowClient = partial(Client, found)  # type: ignore[attr-defined]
    entities.Metric = lambda *parts: parts  # type: ignore[attr-defined]
    entities.Param = lambda *parts: parts  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    _pretend(monkeypatch, "mlflow", "sqlalchemy", "alembic")
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.chdir(tmp_path)
    return found


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Local:
    """Put a fake of trackio in place of the package."""
    found = Local()
    trackio = ModuleType("trackio")

    def finish() -> None:
        found.finished += 1

    trackio.init = lambda **given: found.opened.append(given)  # type: ignore[attr-defined]
    trackio.log = lambda metrics, step=None: found.logged.append((metrics, step))  # type: ignore[attr-defined]
    trackio.finish = finish  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    _pretend(monkeypatch, "trackio")
    return found


def _pretend(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: True if name in names else find(name)
    )


@pytest.fixture
def settings(tmp_path: Path, model_folder: Path) -> RunSettings:
    train = tiny.write_csv(tmp_path / "train.csv", tiny.toy_examples(16))
    test = tiny.write_csv(tmp_path / "test.csv", tiny.toy_examples(6, offset=100))
    return load_settings(
        overrides=[
            f"data.train={train}",
            f"data.tests.new={test}",
            f"model.name={model_folder}",
            "model.dtype=float32",
            "method.name=label_words",
            "method.num_demonstrations=0",
            "data.validation_fraction=0.1",
            "training.batch_size=4",
            "training.epochs=1",
            "training.tensorboard=false",
            "training.trackers=[mlflow, trackio]",
        ]
    )


def test_a_run_is_repeated_with_settings_steps_results_and_report(
    settings: RunSettings, server: Server, local: Local, tmp_path: Path
) -> None:
    result = fit(settings, tmp_path / "run", report=write_page).result
    history = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    steps = [record["loss"] for record in history if record["kind"] == "step"]
    assert len(steps) > 1
    assert [v for key, v, _ in server.metrics if key == "step/loss"] == steps
    assert [m["step/loss"] for m, _ in local.logged if "step/loss" in m] == steps
    for seen in ({key: v for key, v, _ in server.metrics}, local.logged[-1][0]):
        assert seen["new/accuracy"] == result.evaluations["new"].accuracy
    assert server.parameters["training.batch_size"] == "4"
    assert local.opened[0]["config"]["training.batch_size"] == 4
    assert server.files == ["settings.yaml", "result.json", "report.html"]
    assert server.status == ["FINISHED"]
    assert local.finished == 1
    # Nothing leaves the machine unasked.
    assert server.uris == [f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}"]
    assert not {"space_id", "server_url", "dataset_id"} & local.opened[0].keys()


@pytest.mark.parametrize("wanted", [True, False])
def test_tensorboard_files_are_written_where_they_are_wanted(
    settings: RunSettings, tmp_path: Path, wanted: bool
) -> None:
    pytest.importorskip("tensorboard")
    training = settings.training.model_copy(update={"trackers": [], "tensorboard": wanted})
    one = settings.model_copy(update={"training": training})
    with open_trackers(one, tmp_path, name="words", note=print) as trackers:
        trackers.record({"kind": "start"})
        assert not (tmp_path / "tensorboard").exists()
        trackers.record({"kind": "step", "step": 1, "loss": 0.5})
    assert bool(list(tmp_path.glob("tensorboard/events*"))) == wanted


def test_a_server_that_is_named_gets_the_run(
    settings: RunSettings, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    training = settings.training.model_copy(update={"trackers": ["mlflow"]})
    one = settings.model_copy(update={"training": training})
    with open_trackers(one, tmp_path, name="words", note=print):
        pass
    assert server.uris == ["http://tracking.example:5000"]
    assert not (tmp_path / "mlruns").exists()
    # A resumed run goes on in the same run of the server.
    with pytest.raises(KeyError), open_trackers(one, tmp_path, name="words", note=print):
        raise KeyError
    assert len(server.runs) == 1
    assert server.status == ["FINISHED", "RUNNING", "FAILED"]


@pytest.mark.parametrize("when", ["from the start", "in the middle"])
def test_a_server_that_is_down_costs_one_note_and_no_run(
    settings: RunSettings, server: Server, local: Local, tmp_path: Path, when: str
) -> None:
    class Screen(NotingScreen):
        def record(self, record: Mapping[str, Any]) -> None:
            server.is_down = True

    server.is_down = when == "from the start"
    screen = Screen()
    fit(settings, tmp_path / "run", screen=screen, baselines=False)
    assert RunResult.load(tmp_path / "run").evaluations["new"].num_examples == 6
    told = [note for note in screen.notes if "mlflow" in note]
    assert len(told) == 1
    assert "ConnectionError: refused" in told[0]
    assert local.finished == 1  # the other tracker is not touched


@pytest.mark.parametrize("name", ["mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_told_before_anything_runs(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda one: None if one == name else find(one))
    training = settings.training.model_copy(update={"trackers": [name]})
    with pytest.raises(SettingsError, match=rf"{name} is not installed.*taskfit\[{name}\]"):
        fit(settings.model_copy(update={"training": training}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tracker_is_not_asked_again_once_it_has_failed() -> None:
    calls: list[str] = []
    notes: list[str] = []

    class Bad(Tracker):
        name = "bad"

        def record(self, record: Mapping[str, Any]) -> None:
            calls.append("record")
            raise ValueError("full\nmore")

        def finish(self, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
            calls.append("finish")

        def close(self, *, has_failed: bool) -> None:
            calls.append("close")

    with Trackers({"bad": Bad}, note=notes.append) as trackers:
        trackers.record({"kind": "note", "text": "hello"})
        for step in (1, 2):
            trackers.record({"kind": "step", "step": step})
        trackers.finish({}, [])
    assert calls == ["record"]
    assert len(notes) == 1
    assert notes[0].endswith("(ValueError: full)")


def test_only_finite_numbers_and_plain_settings_are_passed_on(settings: RunSettings) -> None:
    record = {"kind": "step", "step": 3, "loss": float("nan"), "seconds": 2.0, "text": "x"}
    assert numbers({**record, "grad_norm": None}) == {"step/seconds": 2.0}
    flat = flat_settings(settings)
    assert flat["seed"] == 0
    assert json.loads(flat["training.trackers"]) == ["mlflow", "trackio"]
    assert all(v is None or isinstance(v, (bool, int, float, str)) for v in flat.values())


def test_the_real_mlflow_and_trackio_keep_the_run_on_this_machine(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("trackio", reason="trackio is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = fit(settings, tmp_path / "run", baselines=False).result
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("taskfit")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["new/accuracy"] == result.evaluations["new"].accuracy
    assert run.data.params["training.batch_size"] == "4"
    assert len(client.get_metric_history(run.info.run_id, "step/loss")) > 1
    assert {f.path for f in client.list_artifacts(run.info.run_id)} >= {"result.json"}
    assert list((tmp_path / "trackio").iterdir())
