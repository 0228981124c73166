"""The record of a training run: `metrics.jsonl`, with trackers and the screen as views of it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from taskfit.files import append_jsonl, read_jsonl, write_text_atomic
from taskfit.training.trackers import Trackers

Record = Mapping[str, Any]


class TrainingLog:
    """Writes every record to a file first, then shows it.

    Records have a `kind`: "start", "step", "validation" or "note". What a view raises reaches the
    loop, so the screen's can end a training; trackers are kept from that (see `Trackers`).
    """

    def __init__(
        self,
        folder: Path,
        *,
        show: Callable[[Record], None] | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        """Open the log of a run.

        Args:
            folder: The run's folder.
            show: Called with each record, for the screen.
            trackers: Get each record too; the caller closes them.
        """
        self.path = folder / "metrics.jsonl"
        self._show = show
        self._trackers = trackers or Trackers({})

    def write(self, record: Record) -> None:
        """Append a record to the file, then to the views."""
        append_jsonl(self.path, record)
        self._trackers.record(record)
        if self._show is not None:
            self._show(record)

    def rewind(self, step: int) -> None:
        """Drop records after a step, which a resumed run is about to write again."""
        kept = [r for r in read_jsonl(self.path) if r.get("step", 0) <= step]
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
        write_text_atomic(self.path, "".join(lines))
