"""A worker process: `python -m taskfit.compare.worker`, started by `ProcessPool`.

Reads one JSON object a line from standard input: `name`, `settings` and `folder` of a run; writes
messages, one a line, to standard output. Everything that libraries print goes to standard error.
It ends when its input is closed, so that no worker outlives the program that started it.
"""

import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from taskfit.compare.messages import Message, SendingScreen
from taskfit.compare.runner import Runner
from taskfit.runs.sources import share_sources
from taskfit.screen import show_what_can_be_shown
from taskfit.settings import RunSettings


def main() -> None:
    """Do runs until the input ends."""
    # Asked to stop, it leaves through its `finally` clauses, which remove half-written files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    show_what_can_be_shown()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)

        def send(message: Message) -> None:
            channel.write(json.dumps(message) + "\n")
            channel.flush()

        jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
        runner = Runner(SendingScreen(send))
        with share_sources():
            while True:
                job = jobs.get()
                ended = runner.run(
                    job["name"], RunSettings.model_validate(job["settings"]), Path(job["folder"])
                )
                send({"kind": "ended", "error": ended.error, "trace": ended.trace})


def _listen(jobs: "queue.Queue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        jobs.put(json.loads(line))
    os._exit(0)  # whoever started this process is gone


if __name__ == "__main__":
    main()
