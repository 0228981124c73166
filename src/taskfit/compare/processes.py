"""Runs in several processes of this machine; a process that dies takes only its run with it."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from taskfit.compare.grid import GridRun
from taskfit.compare.messages import Message
from taskfit.compare.pool import Show, Worker, WorkerPool
from taskfit.compare.runner import Ended

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Seconds that a worker has to leave by itself.
STOP_SECONDS = 10.0


def threads_per_worker(num_workers: int) -> int:
    """Return the share of this machine's cores; fewer where OMP_NUM_THREADS allows fewer."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    share = max(1, cores // num_workers)
    given = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(given)) if given.isdigit() and int(given) else share


@dataclass(slots=True, eq=False)
class _Process(Worker):
    process: subprocess.Popen[str]

    def stop(self) -> int:
        """End the process, politely and then not; return its exit code."""
        self.process.terminate()
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # of a job that it did not live to read
            self.process.stdin.close()
        return code


class ProcessPool(WorkerPool[_Process]):
    """A fixed number of worker processes."""

    def __init__(self, num_workers: int, *, logs: Path, show: Show) -> None:
        """Plan so many workers.

        Args:
            num_workers: Processes at the same time.
            logs: Gets what each worker prints, such as warnings of libraries.
            show: Shows what they do.
        """
        super().__init__(num_workers, show)
        self._logs = logs
        self._listeners: list[threading.Thread] = []
        self._messages: queue.Queue[tuple[int, _Process, Message | None]] = queue.Queue()

    def wait(self) -> list[Ended]:
        """Wait for a run to end, or for its worker to die."""
        while True:
            place, worker, message = self._messages.get()
            if worker is not self._workers[place]:
                continue  # last words of one that was replaced
            run = worker.run
            if message is None:
                self._end(place, keep=False)
                code = worker.stop()
                if run is not None:
                    return [Ended(run.folder, self._why(place, code), died=True)]
            elif message["kind"] == "ended":
                assert run is not None
                ended = Ended(run.folder, message["error"], message["trace"])
                # An unexpected error may leave memory or a GPU in a state that harms others.
                self._end(place, keep=not ended.trace)
                if ended.trace:
                    worker.stop()
                return [ended]
            else:
                self._tell(worker, message)

    def close(self) -> None:
        """Stop all workers; what they were doing can be resumed."""
        workers = [worker for worker in self._workers if worker is not None]
        self._workers = [None] * len(self._workers)
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.stop()
        for listener in self._listeners:
            listener.join(STOP_SECONDS)

    def _give(self, worker: _Process, run: GridRun, target: Path) -> None:
        settings = run.settings.model_dump(mode="json")
        job = {"name": run.name, "settings": settings, "folder": str(target)}
        assert worker.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died; the end of its output tells so
            worker.process.stdin.write(json.dumps(job) + "\n")
            worker.process.stdin.flush()

    def _launch(self, place: int) -> _Process:
        threads = str(threads_per_worker(len(self._workers)))
        self._logs.mkdir(parents=True, exist_ok=True)
        with self._log(place).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "taskfit.compare.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, threads)},
                # Ctrl-C reaches this process only, which then stops the workers in order.
                start_new_session=True,
            )
        worker = _Process(process)
        assert process.stdout is not None
        listener = threading.Thread(
            target=self._listen, args=(place, worker, process.stdout), daemon=True
        )
        listener.start()
        self._listeners.append(listener)
        return worker

    def _listen(self, place: int, worker: _Process, output: IO[str]) -> None:
        with output:
            for line in output:
                try:
                    message = json.loads(line)
                except json.JSONDecodeError:
                    break  # killed in the middle of a line
                self._messages.put((place, worker, message))
        self._messages.put((place, worker, None))

    def _log(self, place: int) -> Path:
        return self._logs / f"worker-{place + 1}.log"

    def _why(self, place: int, code: int) -> str:
        how = f"ended with exit code {code}"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += ", as the system does when memory runs out"
        return f"the worker process {how}; its output is in {self._log(place)}"
