"""Predictions on a Ray cluster: workers that hold the run each write windows of their own.

What goes through Ray are the places of windows. A worker reads its windows from the file, which all
machines reach, and writes them where a single process would, so that a worker that dies costs only
the window that it had in hand, and the same command goes on from what is finished.
"""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskfit.errors import DataError, SettingsError, TaskfitError, first_line
from taskfit.files import explain_failed_write
from taskfit.runs.cluster import RayCluster, connect, start_worker, worker_environment
from taskfit.runs.load import saved_asked
from taskfit.runs.partial import PartialPredictions, write_part
from taskfit.runs.predictor import Asking, Predictor
from taskfit.runs.table_texts import GivenTable
from taskfit.screen import Screen

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Order:
    """What all workers are to do.

    Attributes:
        folder: A finished run.
        given: Where the texts come from.
        columns: Column of the task -> column of the table, where it has another name.
        asking: What is asked of the run.
        chunk: Rows of a window.
    """

    folder: Path
    given: GivenTable
    columns: dict[str, str]
    asking: Asking
    chunk: int


class PredictWorker:
    """What an actor does: one window after the other, in the order in which they come."""

    def __init__(
        self, order: Order, content: str, home: str, environment: dict[str, str], num_threads: int
    ) -> None:
        """Load the run and open the table.

        Args:
            order: What to do.
            content: The hash of the table that the command read.
            home: The folder that the command was started in.
            environment: Variables to set.
            num_threads: Threads of PyTorch.
        """
        self._order, self._error = order, ""
        try:
            start_worker(home, environment, num_threads)
            self._predictor = Predictor(order.folder, **order.asking)
            if order.given.content() != content:
                raise DataError(
                    f"{order.given.name} is another file on a machine of the Ray cluster. Data "
                    "must lie on a file system that all machines share."
                )
            self._texts = order.given.texts(
                saved_asked(order.folder),
                order.columns,
                only_predictions=order.asking.get("only_predictions", False),
            )
        except TaskfitError as error:
            # Ray would start an actor that cannot begin again and again.
            self._error = str(error)
        self._windows: Iterator[Any] = iter(())
        self._next = -1

    def __call__(self, row: Row) -> Row:
        """Predict a window, unless it was; return how many rows it has, and what went wrong."""
        place, path = int(row["place"]), Path(str(row["path"]))
        told = {"place": place, "count": 0, "error": self._error}
        if self._error:
            return told
        try:
            if not path.is_file():
                table = self._predictor.answer(self._make(place)(), _no_advance)
                with explain_failed_write(path):
                    write_part(path, table)
                told["count"] = len(table)
        except TaskfitError as error:
            told["error"] = str(error)
        return told

    def _make(self, place: int) -> Any:  # noqa: ANN401 - what makes a window
        """Read on to a window, from the beginning where it lies behind."""
        if place < self._next or self._next < 0:
            self._windows, self._next = self._texts.windows(self._order.chunk), 0
        while True:
            make = next(self._windows)
            self._next += 1
            if self._next == place + 1:
                return make


def fill_on_cluster(
    partial: PartialPredictions,
    order: Order,
    cluster: RayCluster,
    *,
    workers: int | None,
    label: str,
    screen: Screen,
) -> None:
    """Make the windows that are missing on a Ray cluster.

    Args:
        partial: Where windows belong.
        order: What to do.
        cluster: Where, and what a worker asks of it.
        workers: Copies of the run; None: as many as the cluster holds.
        label: What progress shows.
        screen: Where it is shown.

    Raises:
        TaskfitError: If the cluster cannot be had or used, or a worker refuses its work.
    """
    missing = partial.missing()
    if not missing:
        return
    ray, is_ours = connect(cluster, instead="leave out --ray, which one machine does not need")
    try:
        holds = _holds(ray, cluster)
        if not holds:
            raise SettingsError(
                f"The Ray cluster has no room for a worker of {cluster.cpus_per_run:g} CPUs and "
                f"{cluster.gpus_per_run:g} GPUs. Lower --cpus-per-run or --gpus-per-run."
            )
        count = min(workers or holds, holds, len(missing))
        screen.note(f"Ray: {count} workers, {len(missing):,} windows of {order.chunk:,} rows")
        with screen.progress(label, partial.num_rows) as advance:
            advance(partial.num_rows - partial.num_missing_rows)
            for row in _results(ray, order, cluster, missing, count=count):
                if row["error"]:
                    raise TaskfitError(str(row["error"]))
                advance(int(row["count"]))
    finally:
        if is_ours:
            ray.shutdown()


def _results(
    ray: Any,  # noqa: ANN401 - a module that may be absent
    order: Order,
    cluster: RayCluster,
    missing: dict[int, Path],
    *,
    count: int,
) -> Iterator[Row]:
    """Yield what workers say of each window, as they finish."""
    data = importlib.import_module("ray.data")
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    rows = [{"place": place, "path": str(path.absolute())} for place, path in missing.items()]
    windows = data.from_items(rows, override_num_blocks=len(rows)).map(
        PredictWorker,
        fn_constructor_args=(
            order,
            order.given.content(),
            str(Path.cwd()),
            worker_environment(),
            max(1, int(cluster.cpus_per_run)),
        ),
        compute=data.ActorPoolStrategy(size=count),
        num_cpus=cluster.cpus_per_run,
        num_gpus=cluster.gpus_per_run or None,
    )
    try:
        yield from windows.iter_rows()
    except ray.exceptions.RayError as error:
        raise TaskfitError(
            f"The Ray cluster gave up: {first_line(error)}. The same command goes on from the "
            "windows that are finished."
        ) from error


def _holds(ray: Any, cluster: RayCluster) -> int:  # noqa: ANN401 - see `_results`
    """Return how many workers the machines of a cluster hold."""
    asked = {"CPU": cluster.cpus_per_run, "GPU": cluster.gpus_per_run}
    asked = {kind: amount for kind, amount in asked.items() if amount}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(
        int(min(machine.get(kind, 0.0) // amount for kind, amount in asked.items()))
        for machine in machines
    )


def _no_advance(_: int) -> None:
    """Count nothing: the window is counted when it is written."""
