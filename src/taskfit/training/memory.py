"""A memory account by stage, from the device's own counters."""

import ctypes
import gc
import sys
from pathlib import Path

import psutil
import torch

from taskfit.training.distributed import gather


class MemoryAccount:
    """Records how much memory each stage of a run added.

    On a GPU the numbers are PyTorch's allocated bytes; on a CPU the resident memory of the
    process, whose peak Linux can reset between stages. Where it cannot be reset, the current
    value stands in for the peak.

    Attributes:
        by_stage: Bytes that each stage added to what was there before; together the peak.
    """

    def __init__(self, device: torch.device) -> None:
        """Start counting from what is in use now, not from what earlier work has freed."""
        _trim()
        self.device = device
        self.by_stage: dict[str, int] = {}
        self._baseline = self.current()
        self._reset_peak()

    def stage(self, name: str) -> None:
        """Close a stage: it is charged with the peak since the last one, above what is charged.

        A stage that needed no more than an earlier one is charged with nothing.
        """
        charged = sum(self.by_stage.values())
        added = max(0, self.peak() - self._baseline - charged)
        self.by_stage[name] = self.by_stage.get(name, 0) + added
        self._reset_peak()

    def charge(self, name: str, size: int) -> None:
        """Charge a stage with bytes that were in use before the account was opened."""
        self.by_stage[name] = size
        self._baseline -= size

    def take_largest(self) -> None:
        """Take over the account of the process that needed most, if there are several."""
        self.by_stage = max(gather(self.by_stage), key=lambda stages: sum(stages.values()))

    def current(self) -> int:
        """Return the bytes in use now."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return int(psutil.Process().memory_info().rss)

    def peak(self) -> int:
        """Return the most bytes in use since the last stage was closed."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        status = Path("/proc/self/status")
        if status.is_file():
            for line in status.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return max(int(line.split()[1]) * 1024, self.current())
        return self.current()

    def _reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            # 5 resets the high-water mark of the process (proc(5)).
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return


def free_memory() -> None:
    """Give memory that nobody holds any more back to the device and the system.

    What refers to itself, as a model may, is looked for, which takes some tenths of a second.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _trim()


def _trim() -> None:
    """Give the system what was freed between blocks still in use.

    The C library keeps it: the next run would find it there and seem to need nothing, and a process
    of many runs would grow. Only glibc can be told.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
