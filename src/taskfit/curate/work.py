"""The work folder: what each finished step left, so that a killed run goes on from there."""

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from taskfit.curate.items import (
    ItemFile,
    Verdict,
    dump_line,
    item_to_json,
    removal_to_json,
)
from taskfit.curate.tokens import Histogram
from taskfit.files import folder_atomic, write_json_atomic

# A change in what steps do or write makes older folders useless.
VERSION = 1
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did.

    Attributes:
        name: The step; `read` is the reading of all files.
        settings: Its settings.
        before: Rows that it was given.
        kept: Rows that it left.
        reasons: Rows removed for each reason.
        histogram: Of the rows that it left (`Histogram.to_json`).
        facts: What else it found out.
        examples: The first rows that it removed, with the reason.
        seconds: How long it took.
        resumed: Whether it was finished by an earlier run.
    """

    name: str
    settings: dict[str, Any]
    before: int
    kept: int
    reasons: dict[str, int]
    histogram: dict[str, Any]
    facts: dict[str, Any]
    examples: list[dict[str, Any]]
    seconds: float
    resumed: bool = False

    @property
    def removed(self) -> int:
        """Return how many rows it removed."""
        return self.before - self.kept


class WorkFolder:
    """Finished steps on disk, each valid only behind the very steps it was made behind."""

    def __init__(self, path: Path) -> None:
        """Open or make the folder; what a killed step left half done is removed."""
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        for left in path.glob(".[0-9]*"):
            shutil.rmtree(left, ignore_errors=True)

    def folder(self, number: int, name: str) -> Path:
        """Return the folder of a step."""
        return self.path / f"{number:02d}-{name}"

    def finished(self, number: int, name: str, key: str) -> StepResult | None:
        """Return the result of a step if it was finished under this key."""
        state = self.folder(number, name) / "step.json"
        if not state.is_file():
            return None
        data = json.loads(state.read_text(encoding="utf-8"))
        if data["key"] != key:
            return None
        return replace(StepResult(**data["result"]), resumed=True)

    def kept(self, number: int, name: str, count: int) -> ItemFile:
        """Return the rows that a step left."""
        return ItemFile(self.folder(number, name) / "kept.jsonl", count)

    def removed(self, number: int, name: str) -> Path:
        """Return the file of rows that a step removed."""
        return self.folder(number, name) / "removed.jsonl"

    def drop_after(self, number: int) -> None:
        """Remove the folders of steps behind a number: they belong to other steps."""
        for folder in self.path.iterdir():
            head = folder.name.split("-")[0]
            if folder.is_dir() and head.isdigit() and int(head) > number:
                shutil.rmtree(folder)


def write_step(
    folder: Path,
    verdicts: Iterable[Verdict],
    *,
    key: str,
    name: str,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> StepResult:
    """Run a step and write what it decides, as a whole or not at all.

    Args:
        folder: Where to.
        verdicts: Of the step, one for each row.
        key: See `chain_key`.
        name: Of the step.
        settings: Of the step.
        facts: What the step finds out while it runs.
    """
    started, histogram = time.monotonic(), Histogram()
    before = kept = 0
    reasons: Counter[str] = Counter()
    examples: list[dict[str, Any]] = []
    with folder_atomic(folder) as scratch:
        with (
            (scratch / "kept.jsonl").open("w", encoding="utf-8", newline="\n") as kept_file,
            (scratch / "removed.jsonl").open("w", encoding="utf-8", newline="\n") as removed_file,
        ):
            for item, removal in verdicts:
                before += 1
                if removal is None:
                    kept += 1
                    histogram.add(item)
                    kept_file.write(dump_line(item_to_json(item)))
                    continue
                record = removal_to_json(item, removal, name)
                reasons[removal.reason] += 1
                if len(examples) < EXAMPLES:
                    examples.append(record)
                removed_file.write(dump_line(record))
        result = StepResult(
            name=name,
            settings=dict(settings),
            before=before,
            kept=kept,
            reasons=dict(sorted(reasons.items(), key=lambda one: (-one[1], one[0]))),
            histogram=histogram.to_json(),
            facts=dict(facts),
            examples=examples,
            seconds=round(time.monotonic() - started, 2),
        )
        write_json_atomic(scratch / "step.json", {"key": key, "result": asdict(result)})
    return result


def chain_key(before: str, settings: Mapping[str, Any]) -> str:
    """Return the key of a step: it stands for the step and for all before it."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(f"{VERSION} {version('taskfit')} {before} {text}".encode()).hexdigest()


def file_hash(source: str) -> str:
    """Return the SHA-256 of a file, or the name of what is no file (a hub id)."""
    path = Path(source).expanduser()
    if not path.is_file():
        return source
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
