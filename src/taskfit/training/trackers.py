"""Views of a run in experiment trackers: TensorBoard, MLflow, trackio.

The run folder is the record and trackers only repeat it, so one that fails is dropped with a note
and the run goes on. Nothing leaves the machine unless the tracker's own environment variables name
a server (MLFLOW_TRACKING_URI, TRACKIO_SERVER_URL, TRACKIO_SPACE_ID).
"""

import contextlib
import importlib.util
import json
import math
import os
import re
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from taskfit.errors import SettingsError
from taskfit.files import write_json_atomic
from taskfit.settings import RunSettings
from taskfit.training.distributed import is_main

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Record = Mapping[str, Any]
PROJECT = "taskfit"
# A server gets steps in parcels, so that training does not wait for it at every one.
STEPS_PER_PARCEL = 20
# What is not set already: without it a server that is down holds a run up for minutes.
MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
MLFLOW_PARAMETER_LIMIT = 500  # characters; older servers refuse more
MLFLOW_BATCH = 100  # parameters in one request
PACKAGES = {
    "tensorboard": ("tensorboard",),
    # Without a server MLflow keeps a database, for which its small package lacks these.
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "trackio": ("trackio",),
}


class Tracker(ABC):
    """One view of a run; may raise anything at any time.

    Attributes:
        name: As in `training.trackers`.
    """

    name: ClassVar[str]

    @abstractmethod
    def record(self, record: Record) -> None:
        """Take a record of the training log that has a step."""

    def finish(self, metrics: Mapping[str, float], files: Sequence[Path]) -> None:  # noqa: B027
        """Take the final metrics by `set/metric`, and files of the run folder; or nothing."""

    @abstractmethod
    def close(self, *, has_failed: bool) -> None:
        """Write what is left and say how the run ended."""


class Trackers:
    """Several trackers that cannot hurt the run."""

    def __init__(
        self,
        factories: Mapping[str, Callable[[], Tracker]],
        *,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Open trackers.

        Args:
            factories: Name -> makes the tracker.
            note: Shows a line where one fails.
        """
        self._note = note
        self._live: dict[str, Tracker] = {}
        for name, factory in factories.items():
            with self._guarded(name):
                self._live[name] = factory()

    def record(self, record: Record) -> None:
        """Pass a record of the training log on; notes and starts have no numbers to draw."""
        if record["kind"] in ("step", "validation"):
            self._each(lambda tracker: tracker.record(record))

    def finish(self, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Pass the final metrics and files on."""
        self._each(lambda tracker: tracker.finish(metrics, files))

    def __enter__(self) -> Self:
        """Return the trackers, to be closed at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the trackers; a run that ends in an exception has failed."""
        self._each(lambda tracker: tracker.close(has_failed=kind is not None))
        self._live.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._live.items()):
            with self._guarded(name):
                call(tracker)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Turn what a tracker raises into a note; it is not asked again."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except Exception as error:
            self._live.pop(name, None)
            lines = str(error).strip().splitlines() or [""]
            self._note(
                f"{name} failed and is left out; the run goes on, and its folder has everything "
                f"({type(error).__name__}: {lines[0][:200]})"
            )


def open_trackers(
    settings: RunSettings, folder: Path, *, name: str, note: Callable[[str], None]
) -> Trackers:
    """Open the trackers that the settings name, and give them the settings.

    Args:
        settings: All settings of the run.
        folder: The run's folder.
        name: How the run is called there, beside the folder's name.
        note: Shows a line where one fails.

    Raises:
        SettingsError: If one is asked for and its package is not installed.
    """
    check_trackers(settings)
    if not is_main():
        return Trackers({})
    names = list(dict.fromkeys(settings.training.trackers))
    automatic = settings.training.tensorboard and importlib.util.find_spec("tensorboard")
    if automatic and "tensorboard" not in names:
        names.insert(0, "tensorboard")
    parameters = flat_settings(settings)
    title = f"{folder.name} {name}"
    factories: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoardTracker(folder / "tensorboard"),
        "mlflow": lambda: MlflowTracker(folder, title, parameters),
        "trackio": lambda: TrackioTracker(folder, title, parameters),
    }
    return Trackers({one: factories[one] for one in names}, note=note)


def check_trackers(settings: RunSettings) -> None:
    """Raise `SettingsError` if a tracker is asked for whose package is not installed."""
    for one in settings.training.trackers:
        missing = [p for p in PACKAGES[one] if importlib.util.find_spec(p) is None]
        if missing:
            raise SettingsError(
                f"training.trackers names {one}, but {' and '.join(missing)} is not installed. "
                f"Install it with `pip install 'taskfit[{one}]'`, or leave {one} out."
            )


class TensorBoardTracker(Tracker):
    """Event files in the run folder; the final metrics are no curves and stay out of them."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        """Write into a folder, which is made with the first record."""
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def record(self, record: Record) -> None:
        """Write every number of the record."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        for key, value in numbers(record).items():
            self._writer.add_scalar(key, value, record["step"])

    def close(self, *, has_failed: bool) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class MlflowTracker(Tracker):
    """A run of MLflow, in the folder `mlruns` or on the server of MLFLOW_TRACKING_URI.

    The run's id is kept in the run folder, so a resumed run goes on in the same one.
    """

    name = "mlflow"

    def __init__(self, folder: Path, title: str, parameters: Mapping[str, Any]) -> None:
        """Open a run, or the one of this folder, and write its parameters."""
        for variable, value in MLFLOW_PATIENCE.items():
            os.environ.setdefault(variable, value)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not uri:
            root = Path("mlruns").resolve()
            root.mkdir(exist_ok=True)
            # Its folder of plain files is given up; a database is what it recommends.
            uri, artifacts = f"sqlite:///{root / 'mlflow.db'}", (root / "artifacts").as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        saved = folder / "mlflow.json"
        before = json.loads(saved.read_text(encoding="utf-8")) if saved.is_file() else {}
        if before.get("uri") == uri:
            self._run: str = before["run_id"]
            self._client.update_run(self._run, status="RUNNING")
        else:
            called = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self._client.get_experiment_by_name(called)
            experiment = (
                self._client.create_experiment(called, artifact_location=artifacts)
                if found is None
                else found.experiment_id
            )
            self._run = self._client.create_run(experiment, run_name=title).info.run_id
            write_json_atomic(saved, {"uri": uri, "run_id": self._run})
        pairs = [Param(k, str(v)[:MLFLOW_PARAMETER_LIMIT]) for k, v in parameters.items()]
        for start in range(0, len(pairs), MLFLOW_BATCH):
            self._client.log_batch(self._run, params=pairs[start : start + MLFLOW_BATCH])
        self._waiting: list[Any] = []
        self._num_steps = 0

    def record(self, record: Record) -> None:
        """Keep the numbers, and send them now and then."""
        self._add(numbers(record), record["step"])
        self._num_steps += 1
        if record["kind"] == "validation" or self._num_steps % STEPS_PER_PARCEL == 0:
            self._send()

    def finish(self, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Send final metrics and files."""
        self._add(metrics, 0)
        self._send()
        for path in filter(Path.is_file, files):
            self._client.log_artifact(self._run, str(path))

    def close(self, *, has_failed: bool) -> None:
        """Send what is left and end the run."""
        self._send()
        self._client.set_terminated(self._run, status="FAILED" if has_failed else "FINISHED")

    def _add(self, metrics: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        for key, value in metrics.items():
            # MLflow allows no other characters in names.
            self._waiting.append(self._metric(re.sub(r"[^\w\-./ ]", "_", key), value, now, step))

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._client.log_batch(self._run, metrics=waiting)


class TrackioTracker(Tracker):
    """A run of trackio in its local folder, which `trackio show` opens."""

    name = "trackio"

    def __init__(self, folder: Path, title: str, parameters: Mapping[str, Any]) -> None:
        """Open a run, or the one of this folder, with its settings."""
        import trackio

        saved = folder / "trackio.json"
        if not saved.is_file():
            # Names of runs must differ within a project, and folders of other places may not.
            write_json_atomic(saved, {"run": f"{title} {time.strftime('%Y-%m-%d %H:%M:%S')}"})
        self._trackio = trackio
        self._last_step = 0
        trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=json.loads(saved.read_text(encoding="utf-8"))["run"],
            config=dict(parameters),
            resume="allow",
            embed=False,
        )

    def record(self, record: Record) -> None:
        """Write every number of the record."""
        self._last_step = int(record["step"])
        self._trackio.log(numbers(record), step=self._last_step)

    def finish(self, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
        """Write final metrics; trackio shows no files."""
        self._trackio.log(dict(metrics), step=self._last_step)

    def close(self, *, has_failed: bool) -> None:
        """End the run."""
        self._trackio.finish()


def numbers(record: Record) -> dict[str, float]:
    """Return the finite numbers of a record as `kind/name`, the step left out."""
    return {
        f"{record['kind']}/{name}": value
        for name, value in record.items()
        if isinstance(value, (int, float)) and name != "step" and math.isfinite(value)
    }


def flat_settings(settings: RunSettings) -> dict[str, Any]:
    """Return every setting as `section.key`; what is no plain value as JSON."""
    flat: dict[str, Any] = {}
    for section, value in settings.model_dump().items():
        if not isinstance(value, dict):
            flat[section] = value
            continue
        for key, one in value.items():
            is_plain = one is None or isinstance(one, (bool, int, float, str))
            flat[f"{section}.{key}"] = one if is_plain else json.dumps(one, ensure_ascii=False)
    return flat
