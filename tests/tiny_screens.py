"""Screens of tests: one that remembers what it is told, and may end the process at a step."""

from collections.abc import Mapping
from typing import Any

from taskfit.screen import SilentScreen


class Killed(BaseException):
    """Stands for SIGKILL: nothing gets a chance to clean up."""


class NotingScreen(SilentScreen):
    """Keeps the notes it is shown; ends the run at a step if wanted."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.kill_at = kill_at
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def record(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "step" and record["step"] == self.kill_at:
            raise Killed
