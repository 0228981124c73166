"""What makes two runs the same: settings, data and task version, as a digest.

A run that is finished is never done again, so the digest must change with everything that changes
results, and with nothing else: a setting that a later version adds enters only where it is used.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from taskfit.data import BUILTIN_NAMES
from taskfit.runs.file_names import RESULT_FILE
from taskfit.runs.rows import fingerprint
from taskfit.runs.sources import read_builtin, read_source
from taskfit.settings import REST, RunSettings
from taskfit.tasks import load_task

# Where a run is done, what is shown of it, and how often it is saved. What was measured where
# stands in the run's record (`machine`). `data.folder` is where built-in sets are looked for; their
# contents are hashed.
EXCLUDED_FROM_HASH: dict[str, Any] = {
    "data": {"folder"},
    "model": {"device"},
    "remote": {"api_key_variable", "timeout_seconds", "max_retries", "budget", "max_requests"},
    "training": {"tensorboard", "trackers", "save_every_steps"},
}
# A method that reads no language model is the same under every name of one.
MODEL_NAME = {"name", "revision"}


def identity(settings: RunSettings, *, defaults: bool = False) -> dict[str, Any]:
    """Return the settings that decide what comes out of a run.

    Args:
        settings: Resolved settings.
        defaults: Whether to include those that have their default value.
    """
    left_out = dict(EXCLUDED_FROM_HASH)
    if not settings.method.reads_model:
        left_out["model"] = EXCLUDED_FROM_HASH["model"] | MODEL_NAME
    return settings.model_dump(mode="json", exclude=left_out, exclude_defaults=not defaults)


class Fingerprints:
    """Digests of runs; every source is read and hashed once, however many runs share it."""

    def __init__(self) -> None:
        self._digests: dict[tuple[str, ...], str] = {}

    def of(self, settings: RunSettings, unread: Mapping[str, Any] | None = None) -> str:
        """Return the digest of a run, ten hexadecimal digits.

        Args:
            settings: Resolved settings.
            unread: Settings of section `method` that the grid gives and the method does not read.
                Earlier versions kept them, and their runs are to be found again.

        Raises:
            TaskfitError: If its task or data cannot be read.
        """
        plain = identity(settings)
        plain["method"] |= unread or {}
        parts = [plain, self._data(settings), self._task(settings.task.name)]
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def _data(self, settings: RunSettings) -> dict[str, str]:
        data = settings.data
        found = {
            f"tests.{name}": self._source(source, data.encoding, "test")
            for name, source in data.tests.items()
        }
        if data.validation is not None:
            found["validation"] = self._source(data.validation, data.encoding, "test")
        if data.unlabeled not in (None, REST):
            found["unlabeled"] = self._source(data.unlabeled, data.encoding, "train")
        if data.train is not None:
            found["train"] = self._source(data.train, data.encoding, "train")
        elif settings.task.name in BUILTIN_NAMES:
            found["builtin"] = self._builtin(str(settings.task.name), data.folder)
        if settings.start.run is not None:
            record = Path(settings.start.run) / RESULT_FILE
            found["start"] = hashlib.sha256(record.read_bytes()).hexdigest()
        return found

    def _source(self, source: str, encoding: str, split: str) -> str:
        def digest() -> str:
            path = Path(source).expanduser()
            if path.is_file():
                with path.open("rb") as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
            text = read_source(source, encoding=encoding, split=split).to_csv(index=False)
            return hashlib.sha256(text.encode()).hexdigest()

        return self._once(("source", source, encoding, split), digest)

    def _builtin(self, name: str, folder: str | None) -> str:
        def digest() -> str:
            builtin = read_builtin(name, folder=folder)
            sets = {"train": builtin.train, **builtin.evaluations}
            return json.dumps({part: fingerprint(examples) for part, examples in sets.items()})

        return self._once(("builtin", name, folder or ""), digest)

    def _task(self, name: str | None) -> str:
        """Return the version of a task; of a task file also a hash, as versions are forgotten."""
        if name is None:
            return ""

        def digest() -> str:
            version, path = str(load_task(name).version), Path(name).expanduser()
            if name not in BUILTIN_NAMES and path.is_file():
                version += " " + hashlib.sha256(path.read_bytes()).hexdigest()
            return version

        return self._once(("task", name), digest)

    def _once(self, key: tuple[str, ...], digest: Callable[[], str]) -> str:
        if key not in self._digests:
            self._digests[key] = digest()
        return self._digests[key]
