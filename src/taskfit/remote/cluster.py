"""The connection to a Ray cluster, and what its workers are given of this process."""

import importlib.util
import logging
import os
import socket
from types import ModuleType

from taskfit.errors import CheckpointError, SettingsError

# Seconds in which a cluster must answer.
CONNECT_SECONDS = 10.0
# Where the hub's files lie, and whether it may be asked; no key is sent around.
HUB_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE")


def connect_ray(address: str | None, *, instead: str) -> tuple[ModuleType, bool]:
    """Connect to a Ray cluster, or start one on this machine.

    Args:
        address: Of the cluster; None: this machine, or whatever is connected already.
        instead: What does without Ray, for a message.

    Returns:
        The module, and whether the connection was made here.

    Raises:
        SettingsError: If Ray is absent, or does not answer.
    """
    if importlib.util.find_spec("ray") is None:
        raise SettingsError(
            f"Ray is not installed. Install it with `pip install 'taskfit[ray]'`, or {instead}."
        )
    import ray

    if ray.is_initialized():
        return ray, False
    try:
        check_reachable(address)
        ray.init(
            address=address,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise SettingsError(
            f"No Ray cluster could be had at {address or 'this machine'}: {error}. Start "
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
    """Return the variables of this process that its workers need."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("TASKFIT_") or name in HUB_VARIABLES
    }


def enter_worker(folder: str, environment: dict[str, str]) -> None:
    """Let a worker stand where the command was started, as paths may be relative to it.

    Raises:
        CheckpointError: If its machine cannot reach the folder.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise CheckpointError(
            f"The folder {folder} cannot be reached from a machine of the Ray cluster: {error}."
            " Data and results must lie on a file system that all machines share."
        ) from error
    os.environ.update(environment)
