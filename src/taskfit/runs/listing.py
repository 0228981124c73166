"""The run folders below a place and what they hold, from their records alone."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from taskfit.runs.file_names import CHECKPOINTS, RESULT_FILE, SETTINGS_FILE, START

State = Literal["finished", "interrupted", "not started"]


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run folder.

    Attributes:
        folder: Where it is.
        state: finished; interrupted: it can go on where it stopped; not started: it ended before
            its first checkpoint.
        method: Name of the method, weights behind it; empty where nothing tells it.
        model: The model as the user named it.
        num_train: Training examples; None if unknown.
        scores: Evaluation set -> accuracy and MCC, as far as the run has them.
        created: When it was finished, UTC, ISO 8601; empty if it was not.
        num_bytes: Size on disk.
        origin: The run that it went on from; empty for others.
    """

    folder: Path
    state: State
    method: str = ""
    model: str = ""
    num_train: int | None = None
    scores: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    created: str = ""
    num_bytes: int = 0
    origin: str = ""


def find_runs(place: Path) -> list[FoundRun]:
    """Return the runs in a folder and below it, in the order of their names.

    Folders inside a run, such as the trials of its search, are part of it and not listed.
    """
    return [_describe(folder) for folder in _run_folders(place)]


def _run_folders(place: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(place):
        if SETTINGS_FILE in files:
            folders.clear()
            yield Path(path)
        folders.sort()


def _describe(folder: Path) -> FoundRun:
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    result = _read(folder / RESULT_FILE)
    if result is None:
        settings = _settings(folder / SETTINGS_FILE)
        started = any((folder / CHECKPOINTS).glob("step-*"))
        return FoundRun(
            folder,
            "interrupted" if started else "not started",
            method=str(settings.get("method", {}).get("name", "")),
            model=str(settings.get("model", {}).get("name", "")),
            num_bytes=num_bytes,
            origin=str(settings.get(START, {}).get("run") or ""),
        )
    weights = result.get("weights", "none")
    method = str(result.get("method", ""))
    return FoundRun(
        folder,
        "finished",
        method=method if weights in ("none", "") else f"{method}, {weights}",
        model=str(result.get("model", "")),
        num_train=result.get("num_train"),
        scores={
            name: (float(found["accuracy"]), float(found["mcc"]))
            for name, found in result.get("evaluations", {}).items()
            if "accuracy" in found and "mcc" in found
        },
        created=str(result.get("created", "")),
        num_bytes=num_bytes,
        origin=str(result.get("details", {}).get(START, {}).get("run", "")),
    )


def _read(path: Path) -> dict[str, Any] | None:
    """Return a record, or None where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _settings(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
