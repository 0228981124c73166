"""Processes of tests: forked from a server that imports PyTorch once for all of them."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import IO, Any

import pytest

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["taskfit.cli.main", "taskfit.search.search_and_fit", "taskfit.compare.worker", "tiny"]
)


def run_command(arguments: Sequence[str]) -> None:
    """Do what `taskfit` with these arguments does, and show nothing."""
    from taskfit.cli.main import main

    sys.argv = ["taskfit", *arguments]
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        main()


def fork_workers(patch: pytest.MonkeyPatch) -> None:
    """Let grids fork their workers instead of starting an interpreter, which imports PyTorch."""
    # The name in that module alone: others start programs too.
    stands_for = SimpleNamespace(
        Popen=ForkedWorker, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
    )
    patch.setattr("taskfit.compare.processes.subprocess", stands_for)


class ForkedWorker:
    """Stands for `subprocess.Popen` of a grid's worker: the same pipes, no import of PyTorch."""

    alive: list["ForkedWorker"] = []  # noqa: RUF012 - of this test process

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        assert list(command[1:]) == ["-m", "taskfit.compare.worker"]  # what `_be_worker` does
        reads, to_worker = SERVER.Pipe(duplex=False)
        from_worker, writes = SERVER.Pipe(duplex=False)
        self._process = SERVER.Process(
            target=_be_worker, args=(reads, writes, options["stderr"].name, options["env"])
        )
        self._process.start()
        reads.close()
        writes.close()
        self.stdin = _file(to_worker, "w")
        self.stdout = _file(from_worker, "r")
        self.alive.append(self)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("worker", timeout or 0)
        if self in self.alive:
            self.alive.remove(self)
        return self._process.exitcode


def _file(connection: Connection, mode: str) -> IO[str]:
    with connection:
        return os.fdopen(os.dup(connection.fileno()), mode, encoding="utf-8")


def _be_worker(
    reads: Connection, writes: Connection, log: str, environment: Mapping[str, str]
) -> None:
    os.setsid()
    os.environ.update(environment)
    os.dup2(reads.fileno(), 0)
    os.dup2(writes.fileno(), 1)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 2)
    reads.close()
    writes.close()
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(place, "w", closefd=False) for place in (1, 2))
    from taskfit.compare.worker import main

    main()
