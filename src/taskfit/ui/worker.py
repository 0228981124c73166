"""The process of a comparison: `python -m taskfit.ui.worker PROJECT`, in a session of its own.

It runs `taskfit compare` on the project's grid, then finds the winner among what is finished. The
server of the page only starts it, asks it to stop and reads its files, so that neither a page that
is closed nor a server that ends or is killed has a part in it. SIGTERM stops the comparison the way
Ctrl-C does, and what is finished is judged.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskfit.errors import SettingsError, TaskfitError
from taskfit.files import write_json_atomic
from taskfit.lock import only_one_at_a_time, process_at_work
from taskfit.ui.project import Project
from taskfit.ui.verdict import write_verdict

STATUS = "status.json"
LOG = "log.txt"
# A process that was just started has not written anything yet.
START_SECONDS = 60.0


def start(project: Project) -> int:
    """Start the process of a comparison, or go on with one that was stopped; return its number.

    Raises:
        SettingsError: If one is at work.
    """
    if (found := at_work(project)) is not None:
        raise SettingsError(f"A comparison is at work already: process {found}.")
    write_json_atomic(project.folder / STATUS, {"phase": "comparing", "started": time.time()})
    with (project.folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "taskfit.ui.worker", str(project.folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C and the end of a terminal reach the server of the page only.
            start_new_session=True,
        )
    write_json_atomic(
        project.folder / STATUS,
        {"phase": "comparing", "started": time.time(), "process": process.pid},
    )
    return process.pid


def stop(project: Project) -> None:
    """Ask a comparison to stop; what is finished is kept and judged.

    Raises:
        SettingsError: If none is at work.
    """
    found = process_at_work(project.folder)
    if found is not None:
        os.kill(found, signal.SIGTERM)
        return
    # Its own process was killed, and left the comparison alone.
    orphan = process_at_work(project.comparison)
    if orphan is None:
        raise SettingsError("No comparison is at work.")
    os.kill(orphan, signal.SIGINT)


def at_work(project: Project) -> int | None:
    """Return the process at work for a project; None if there is none."""
    return process_at_work(project.folder) or process_at_work(project.comparison)


@dataclass(slots=True)
class _Work:
    project: Project
    started: float = field(default_factory=time.time)
    stopped: bool = False
    child: "subprocess.Popen[bytes] | None" = None

    def ask_to_stop(self, *_: object) -> None:
        self.stopped = True
        if self.child is not None:
            self.child.send_signal(signal.SIGINT)

    def tell(self, phase: str, **more: Any) -> None:  # noqa: ANN401 - JSON values
        write_json_atomic(
            self.project.folder / STATUS,
            {"phase": phase, "started": self.started, "stopped": self.stopped, **more},
        )

    def compare(self) -> int:
        """Run the comparison; return its exit code."""
        folder = self.project.folder
        command = ["compare", "--config", str(folder / "grid.yaml")]
        self.child = subprocess.Popen(
            [sys.executable, "-m", "taskfit", *command, "--out", str(self.project.comparison)],
            stdin=subprocess.DEVNULL,
        )
        if self.stopped:  # asked in between
            self.ask_to_stop()
        return self.child.wait()

    def do(self) -> None:
        (self.project.folder / "verdict.json").unlink(missing_ok=True)
        log = self.project.folder / LOG
        before = log.stat().st_size if log.is_file() else 0
        self.tell("comparing")
        code = self.compare()
        if not any(self.project.comparison.glob("runs/*/result.json")):
            nothing = "It was stopped before any method was finished."
            self.tell("failed", error=nothing if self.stopped else _said(log, before, code))
            return
        self.tell("judging")
        try:
            write_verdict(self.project)
        except TaskfitError as error:
            self.tell("failed", error=self.project.in_words(str(error)))
            return
        self.tell("done", finished=time.time())


def _said(log: Path, before: int, code: int) -> str:
    """Return the last that a comparison said after a place of its log."""
    with log.open("rb") as file:
        file.seek(before)
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    told = [number for number, line in enumerate(lines) if line.startswith("taskfit: ")]
    if told:
        return "\n".join(lines[told[-1] :]).removeprefix("taskfit: ")
    last = lines[-1] if lines else "it said nothing"
    return f"The comparison ended with exit code {code}: {last}"


def main() -> None:
    """Compare, and judge."""
    project = Project(Path(sys.argv[1]))
    # A shell that starts the server in its background may have it ignore interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    work = _Work(project)
    signal.signal(signal.SIGTERM, work.ask_to_stop)
    with only_one_at_a_time(project.folder):
        work.do()


if __name__ == "__main__":
    main()
