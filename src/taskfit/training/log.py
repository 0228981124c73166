"""The record of a training run: `metrics.jsonl`, with TensorBoard and the screen as views of it."""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskfit.files import append_jsonl, read_jsonl, write_text_atomic

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Record = Mapping[str, Any]


class TrainingLog:
    """Writes every record to a file first, then shows it.

    Records have a `kind`: "start", "step", "validation" or "note".
    """

    def __init__(
        self, folder: Path, *, tensorboard: bool, show: Callable[[Record], None] | None = None
    ) -> None:
        """Open the log of a run.

        Args:
            folder: The run's folder.
            tensorboard: Also write TensorBoard events, if the package is installed.
            show: Called with each record, for the screen.
        """
        self.path = folder / "metrics.jsonl"
        self._show = show
        self._writer = _open_tensorboard(folder / "tensorboard") if tensorboard else None

    def write(self, record: Record) -> None:
        """Append a record to the file, then to the views."""
        append_jsonl(self.path, record)
        if self._writer is not None and "step" in record:
            for name, value in record.items():
                if isinstance(value, (int, float)) and name != "step":
                    self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])
        if self._show is not None:
            self._show(record)

    def rewind(self, step: int) -> None:
        """Drop records after a step, which a resumed run is about to write again."""
        kept = [r for r in read_jsonl(self.path) if r.get("step", 0) <= step]
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
        write_text_atomic(self.path, "".join(lines))

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self._writer is not None:
            self._writer.close()


def _open_tensorboard(folder: Path) -> "SummaryWriter | None":
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
