"""Try a finished run: ask it texts here, start `taskfit serve` with its page, take it away."""

import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskfit.data import Example
from taskfit.errors import ModelError, PromptError
from taskfit.files import file_atomic
from taskfit.runs.classifier import Classifier
from taskfit.runs.load import load_classifier

SERVE_SECONDS = 120.0
# What a run folder holds that a model does not need.
LEFT_OUT = ("checkpoints", "tensorboard", ".lock")
MOST_CHARACTERS = 20_000


@dataclass(slots=True)
class Tried:
    """The run that was asked last, which stays in memory, and the server that was started last."""

    folder: Path | None = None
    classifier: Classifier | None = None
    server: "subprocess.Popen[bytes] | None" = None
    served: Path | None = None
    address: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, run: Path, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Return the labels of a run with their probabilities, the most probable first.

        Args:
            run: Folder of a finished run.
            texts: One for each text column.

        Raises:
            PromptError: If they are not as many as the columns, empty, or too long.
            TaskfitError: If the run cannot be loaded.
        """
        with self.lock:
            if self.folder != run or self.classifier is None:
                self.folder, self.classifier = None, None  # before the next one is loaded
                self.classifier = load_classifier(run)
                self.folder = run
            task = self.classifier.task
            if len(texts) != len(task.text) or not any(text.strip() for text in texts):
                raise PromptError(f"Type a text for each of: {', '.join(task.text)}.")
            if (longest := max(map(len, texts))) > MOST_CHARACTERS:
                raise PromptError(
                    f"The text has {longest:,} characters; here at most {MOST_CHARACTERS:,} are "
                    "read. Use `taskfit predict` for longer ones."
                )
            example = Example("typed", dict(zip(task.text, texts, strict=True)))
            (row,) = self.classifier.probabilities([example])
            pairs = zip(task.label_names, map(float, row), strict=True)
            found = [{"label": name, "probability": value} for name, value in pairs]
            return sorted(found, key=lambda one: -float(str(one["probability"])))

    def serve(self, run: Path, log: Path) -> str:
        """Start `taskfit serve` for a run, or find it started; return the address of its page.

        Args:
            run: Folder of a finished run.
            log: Gets what the server prints.

        Raises:
            ModelError: If it does not start.
        """
        with self.lock:
            if self.server is not None and self.server.poll() is None and self.served == run:
                return self.address
            self._end_server()
            port = free_port()
            command = ["serve", str(run), "--host", "127.0.0.1", "--port", str(port)]
            with log.open("wb") as file:
                self.server = subprocess.Popen(
                    [sys.executable, "-m", "taskfit", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                )
            self.served, self.address = run, f"http://127.0.0.1:{port}/"
            self._wait(log)
            return self.address

    def _wait(self, log: Path) -> None:
        assert self.server is not None
        deadline = time.monotonic() + SERVE_SECONDS
        while time.monotonic() < deadline and self.server.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.address}health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        self._end_server()
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said = lines[-1] if lines else "it said nothing"
        raise ModelError(f"The server of this run did not start: {said}")

    def _end_server(self) -> None:
        if self.server is not None and self.server.poll() is None:
            self.server.terminate()
            try:
                self.server.wait(10)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait()
        self.server, self.served = None, None

    def close(self) -> None:
        """End the server that was started."""
        with self.lock:
            self._end_server()


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pack(run: Path, target: Path) -> Path:
    """Write a run's folder as a zip file, without its checkpoints; return the file."""
    with file_atomic(target) as scratch, zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as out:
        for path in sorted(run.rglob("*")):
            inside = path.relative_to(run)
            if path.is_file() and inside.parts[0] not in LEFT_OUT:
                out.write(path, Path(run.name) / inside)
    return target
