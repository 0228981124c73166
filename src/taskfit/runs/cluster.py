"""A Ray cluster whose machines share the file system on which data and results lie."""

import importlib.util
import logging
import os
import socket
from dataclasses import dataclass
from typing import Any

from taskfit.errors import CheckpointError, SettingsError

# Seconds in which a cluster must answer.
CONNECT_SECONDS = 10.0
# Where the hub's files lie, and whether it may be asked; no key is sent around.
HUB_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE")


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A Ray cluster and what each run asks of it.

    Attributes:
        address: Of the cluster, or None for a new one on this machine.
        cpus_per_run: Processor cores of a run.
        gpus_per_run: GPUs of a run; a fraction shares one.
        memory_per_run: Main memory to reserve for a run (bytes), or None.
    """

    address: str | None = None
    cpus_per_run: float = 1.0
    gpus_per_run: float = 0.0
    memory_per_run: int | None = None


def connect(
    cluster: RayCluster, *, instead: str = "use --workers N, which needs nothing"
) -> tuple[Any, bool]:
    """Return Ray's module, and whether the connection was made here.

    Args:
        cluster: Where it is.
        instead: What to do without Ray.

    Raises:
        SettingsError: If Ray is absent or the cluster cannot be reached.
    """
    if importlib.util.find_spec("ray") is None:
        raise SettingsError(
            f"Ray is not installed. Install it with `pip install 'taskfit[ray]'`, or {instead}."
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


def worker_environment() -> dict[str, str]:
    """Return the environment variables that workers need."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("TASKFIT_") or name in HUB_VARIABLES
    }


def start_worker(folder: str, environment: dict[str, str], num_threads: int) -> None:
    """Let a worker work in the folder that the command was started in, as paths may be relative.

    Raises:
        CheckpointError: If its machine does not have the folder.
    """
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
