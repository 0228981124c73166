"""What a benchmark ran on: processor, versions, and the rate that matrix products reach."""

import time
from typing import Any

import torch

from taskfit.runs.records import describe_machine, library_versions


def matmul_rate(
    dtype: torch.dtype, *, rows: int = 512, width: int = 1536, inner: int = 576
) -> float:
    """Return the TFLOP/s of a product of the shapes of the 135M model's MLP."""
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(width, inner).to(dtype)
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(10):
            torch.nn.functional.linear(a, b)
        best = min(best, (time.perf_counter() - started) / 10)
    return 2 * rows * width * inner / best / 1e12


def describe() -> dict[str, Any]:
    """Return everything worth recording beside a figure."""
    return {
        **describe_machine(),
        "threads": torch.get_num_threads(),
        "versions": library_versions(),
        "matmul_tflops": {
            "float32": round(matmul_rate(torch.float32), 3),
            "bfloat16": round(matmul_rate(torch.bfloat16), 3),
        },
    }
