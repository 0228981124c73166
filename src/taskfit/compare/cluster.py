"""Runs on a Ray cluster, whose machines share the file system on which the results are written.

Each worker is a Ray actor that keeps its base model. An actor that dies takes only its run with
it, which is tried again by a new one, on whatever machine Ray finds.
"""

import importlib.util
import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskfit.compare.grid import GridRun
from taskfit.compare.messages import Message, SendingScreen
from taskfit.compare.pool import RayCluster, Show, Worker, WorkerPool
from taskfit.compare.runner import Ended, Runner
from taskfit.errors import CheckpointError, SettingsError
from taskfit.runs.sources import share_sources
from taskfit.screen import Screen
from taskfit.settings import RunSettings

# Seconds between two looks at what the actors say.
POLL_SECONDS = 1.0
# Seconds in which a cluster must answer.
CONNECT_SECONDS = 10.0
KINDS = ("CPU", "GPU", "memory")
# Where the hub's files lie, and whether it may be asked; no key is sent around.
HUB_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE")


class RayWorker:
    """What an actor does; `poll` is answered while a run is under way."""

    def __init__(self, folder: str, environment: dict[str, str], num_threads: int) -> None:
        """Work in the folder that the command was started in, as paths may be relative to it."""
        try:
            os.chdir(folder)
        except OSError as error:
            raise CheckpointError(
                f"The folder {folder} cannot be reached from a machine of the Ray cluster: {error}."
                " Data and results must lie on a file system that all machines share."
            ) from error
        os.environ.update(environment)
        import torch

        torch.set_num_threads(num_threads)
        self._messages: list[Message] = []
        self._runner = Runner(SendingScreen(self._messages.append))

    def run(self, name: str, settings: dict[str, Any], folder: str) -> tuple[str | None, str]:
        """Do a run; return its error, if there was one, and the traceback."""
        with share_sources():
            ended = self._runner.run(name, RunSettings.model_validate(settings), Path(folder))
        return ended.error, ended.trace

    def poll(self) -> list[Message]:
        """Return what was said since the last call."""
        said = list(self._messages)
        del self._messages[: len(said)]
        return said


@dataclass(slots=True, eq=False)
class _Actor(Worker):
    handle: Any
    result: Any = None  # the reference to what `run` will return
    said: Any = None  # the reference to what `poll` will return


class RayPool(WorkerPool[_Actor]):
    """Actors on a Ray cluster."""

    def __init__(
        self,
        cluster: RayCluster,
        *,
        num_workers: int | None,
        num_runs: int,
        show: Show,
        screen: Screen,
    ) -> None:
        """Connect to the cluster, or start one on this machine.

        Args:
            cluster: Where it is, and what a run asks of it.
            num_workers: Actors at the same time; None: as many as the cluster holds now.
            num_runs: Runs to do, and so most actors of use.
            show: Shows what they do.
            screen: Where is said how many there are.

        Raises:
            SettingsError: If Ray is absent, cannot be reached, or is too small for a run.
        """
        super().__init__(0, show)
        self._cluster = cluster
        self._ray, self._is_ours = _connect(cluster)
        holds = self._capacity()
        memory = f", {cluster.memory_per_run:,} bytes" if cluster.memory_per_run else ""
        asked = f"{cluster.cpus_per_run:g} CPUs, {cluster.gpus_per_run:g} GPUs{memory}"
        # A cluster that grows by itself may hold nothing yet; then the number must be given.
        count = min(num_workers or holds, num_runs)
        if count == 0 or (holds == 0 and cluster.address is None):
            resources = self._ray.cluster_resources()
            has = ", ".join(f"{kind} {resources.get(kind, 0):g}" for kind in KINDS)
            self.close()
            raise SettingsError(
                f"No machine of the Ray cluster has what a run asks for ({asked}); all "
                f"together they have {has}. Lower --cpus-per-run, --gpus-per-run or "
                "--memory-per-run."
            )
        self._workers = [None] * count
        screen.note(
            f"Ray: {count} workers, {asked} each; results are written to the shared file system"
        )

    def wait(self) -> list[Ended]:
        """Wait for runs to end, or for their actors to die."""
        while True:
            busy = {
                actor.result: (place, actor)
                for place, actor in enumerate(self._workers)
                if actor is not None and actor.run is not None
            }
            ready, _ = self._ray.wait(list(busy), num_returns=1, timeout=POLL_SECONDS)
            if ready:
                return [self._ended(*busy[reference]) for reference in ready]
            for _, actor in busy.values():
                self._listen(actor)

    def close(self) -> None:
        """Stop all actors, and the connection to the cluster if it was made here."""
        for actor in self._workers:
            if actor is not None:
                self._ray.kill(actor.handle)
        self._workers = []
        if self._is_ours:
            self._ray.shutdown()

    def _ended(self, place: int, actor: _Actor) -> Ended:
        assert actor.run is not None
        folder = actor.run.folder
        try:
            error, trace = self._ray.get(actor.result)
        except self._ray.exceptions.RayError as lost:
            self._end(place, keep=False)
            lines = str(lost).strip().splitlines()
            return Ended(folder, f"the Ray worker died: {' '.join(lines[:4])}", died=True)
        # An unexpected error may leave memory or a GPU in a state that harms others.
        self._end(place, keep=not trace)
        if trace:
            self._ray.kill(actor.handle)
        return Ended(folder, error, trace)

    def _listen(self, actor: _Actor) -> None:
        """Show what an actor said; ask again only once it has answered."""
        if actor.said is not None and self._ray.wait([actor.said], timeout=0)[0]:
            try:
                for message in self._ray.get(actor.said):
                    self._tell(actor, message)
            except self._ray.exceptions.RayError:
                return  # `wait` finds out by the run's own result
            actor.said = None
        if actor.said is None:
            actor.said = actor.handle.poll.remote()

    def _give(self, worker: _Actor, run: GridRun, target: Path) -> None:
        settings = run.settings.model_dump(mode="json")
        worker.result = worker.handle.run.remote(run.name, settings, str(target))
        worker.said = None

    def _launch(self, place: int) -> _Actor:
        cluster = self._cluster
        options = {
            "num_cpus": cluster.cpus_per_run,
            "num_gpus": cluster.gpus_per_run,
            "max_restarts": 0,  # a run is tried again by us, and counted
            "max_concurrency": 2,  # the run, and `poll` beside it
        }
        if cluster.memory_per_run is not None:
            options["memory"] = cluster.memory_per_run
        environment = {
            name: value
            for name, value in os.environ.items()
            if name.startswith("TASKFIT_") or name in HUB_VARIABLES
        }
        threads = max(1, int(cluster.cpus_per_run))
        remote = self._ray.remote(RayWorker).options(**options)
        return _Actor(remote.remote(str(Path.cwd()), environment, threads))

    def _capacity(self) -> int:
        """Return how many runs the cluster holds at the same time now."""
        cluster = self._cluster
        amounts = (cluster.cpus_per_run, cluster.gpus_per_run, cluster.memory_per_run or 0)
        asked = {kind: amount for kind, amount in zip(KINDS, amounts, strict=True) if amount}
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return sum(
            int(min(machine.get(kind, 0.0) // amount for kind, amount in asked.items()))
            for machine in machines
        )


def _connect(cluster: RayCluster) -> tuple[Any, bool]:
    """Return the module, and whether the connection was made here."""
    if importlib.util.find_spec("ray") is None:
        raise SettingsError(
            "Ray is not installed. Install it with `pip install 'taskfit[ray]'`, or use --workers "
            "N, which needs nothing."
        )
    import ray

    if ray.is_initialized():
        return ray, False
    try:
        check_reachable(cluster.address)
        ray.init(
            address=cluster.address,
            include_dashboard=None if cluster.address else False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise SettingsError(
            f"No Ray cluster could be had at {cluster.address or 'this machine'}: {error}. Start "
            "one with `ray start --head`, or leave out --ray-address."
        ) from error
    return ray, True


def check_reachable(address: str | None) -> None:
    """Try to reach a cluster's port, as Ray itself tries for minutes.

    Raises:
        OSError: If nothing answers.
    """
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
