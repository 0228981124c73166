"""Graphics cards by name, and the processor at hand: memory and rates that a plan divides by."""

import difflib
import functools
import time
from dataclasses import dataclass

import psutil
import torch

from taskfit.errors import SettingsError
from taskfit.models.load import resolve_dtype

GIB = 2**30
MATMUL_SECONDS = 1.0
# Share of the rate of matrix products that a whole step reaches. On GPUs an assumption; on CPUs
# what benchmarks/recipe.py measured on two cores.
GPU_UTILIZATION = 0.35
CPU_UTILIZATION = {torch.float32: 0.45, torch.bfloat16: 0.2, torch.float16: 0.2}
# The CUDA context and the libraries' workspaces, which no allocator of ours sees.
CUDA_CONTEXT_BYTES = GIB // 2


@dataclass(frozen=True, slots=True)
class Card:
    """A device to plan for.

    Attributes:
        name: As people call it.
        memory_bytes: What a process can use.
        tflops: Dense rate of matrix products in a 16-bit format (TFLOP/s).
        tflops_float32: The same in float32, without TF32.
        bandwidth: Of memory (GB/s).
        has_bfloat16: Whether it computes in bfloat16.
    """

    name: str
    memory_bytes: int
    tflops: float
    tflops_float32: float
    bandwidth: float
    has_bfloat16: bool = True

    @property
    def is_cpu(self) -> bool:
        """Return whether this is the processor."""
        return self.name == "cpu"

    @property
    def reserved_bytes(self) -> int:
        """Return what is taken before the first tensor."""
        return 0 if self.is_cpu else CUDA_CONTEXT_BYTES

    def dtype(self, name: str) -> torch.dtype:
        """Return the number format that a run takes for `model.dtype`."""
        if name != "auto" or self.is_cpu:
            return resolve_dtype(name, torch.device("cpu"))
        return torch.bfloat16 if self.has_bfloat16 else torch.float16

    def rate(self, dtype: torch.dtype) -> float:
        """Return the rate of matrix products (FLOP/s); of a CPU it is measured for a second."""
        if self.is_cpu:
            return measured_rate(dtype)
        return 1e12 * (self.tflops_float32 if dtype == torch.float32 else self.tflops)

    def utilization(self, dtype: torch.dtype) -> float:
        """Return the share of `rate` that a step is taken to reach."""
        return CPU_UTILIZATION[dtype] if self.is_cpu else GPU_UTILIZATION


# Memory (GiB), rates in 16 bits and in float32 (TFLOP/s), bandwidth (GB/s). Memory: what PyTorch
# reports as total, a little below the number on the box. Rates: the vendor's data sheets, dense
# (not "with sparsity"), products of 16 bits summed in float32.
_FIGURES = {
    "t4": (14.56, 65, 8.1, 320),
    "v100": (15.77, 125, 15.7, 900),
    "v100-32gb": (31.73, 125, 15.7, 900),
    "a10": (22.0, 125, 31.2, 600),
    "l4": (22.0, 121, 30.3, 300),
    "3090": (23.6, 71, 35.6, 936),
    "4090": (23.6, 165.2, 82.6, 1008),
    "a100-40gb": (39.4, 312, 19.5, 1555),
    "a100": (79.1, 312, 19.5, 2039),
    "a6000": (47.4, 154.8, 38.7, 768),
    "l40s": (44.4, 362, 91.6, 864),
    "h100": (79.1, 989, 67, 3350),
    "h200": (139.0, 989, 67, 4800),
}
WITHOUT_BFLOAT16 = ("t4", "v100", "v100-32gb")
CARDS = {
    name: Card(name, int(gib * GIB), half, full, bandwidth, name not in WITHOUT_BFLOAT16)
    for name, (gib, half, full, bandwidth) in _FIGURES.items()
}


def find_card(name: str) -> Card:
    """Return a card by name, or the processor for `cpu`.

    Raises:
        SettingsError: If there is no such card here.
    """
    key = name.lower().removeprefix("rtx").removeprefix("nvidia").strip(" -")
    if key == "cpu":
        return Card("cpu", psutil.virtual_memory().total, 0.0, 0.0, 0.0)
    if key in CARDS:
        return CARDS[key]
    close = difflib.get_close_matches(key, CARDS, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise SettingsError(
        f"There are no figures for the card {name!r}.{hint} Known are: cpu, {', '.join(CARDS)}."
    )


def names_card_at_hand() -> str:
    """Return the name of this machine's GPU where its figures are known, else `cpu`."""
    if not torch.cuda.is_available():
        return "cpu"
    words = torch.cuda.get_device_name().lower().replace("-", " ").split()
    # The longest name first: an `a100-40gb` is not an `a100`.
    for name in sorted(CARDS, key=len, reverse=True):
        if all(part in words for part in name.split("-")):
            return name
    return "cpu"


@functools.cache
def measured_rate(dtype: torch.dtype) -> float:
    """Return the rate of a matrix product of a small model's shapes on this CPU (FLOP/s).

    The best of repeated products within a second: other processes can only slow it down. Measured
    once a process.
    """
    rows, inner, width = 512, 576, 1536
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(width, inner).to(dtype)
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < MATMUL_SECONDS:
        before = time.perf_counter()
        for _ in range(5):
            torch.nn.functional.linear(a, b)
        best = min(best, (time.perf_counter() - before) / 5)
    return 2 * rows * inner * width / best
