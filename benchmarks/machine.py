"""What a benchmark ran on: processor, GPU, versions, and the rate that matrix products reach."""

import json
import subprocess
import time
from collections.abc import Iterable
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


def distinct(machines: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Return every machine of some records once."""
    return [json.loads(one) for one in sorted({json.dumps(m, sort_keys=True) for m in machines})]


def describe_gpu() -> dict[str, Any]:
    """Return the GPU that PyTorch uses: name, memory, driver, and the rate it reaches in bfloat16.

    Empty where there is none.
    """
    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    torch.mm(a, b)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(10):
        torch.mm(a, b)
    end.record()
    torch.cuda.synchronize()
    return {
        "gpu": properties.name,
        "gpus": torch.cuda.device_count(),
        "gpu_memory_gib": round(properties.total_memory / 2**30, 2),
        "gpu_capability": f"{properties.major}.{properties.minor}",
        "gpu_driver": driver_version(),
        "torch_cuda": torch.version.cuda,
        "gpu_bfloat16_tflops": round(10 * 2 * size**3 / start.elapsed_time(end) / 1e9, 1),
    }


def driver_version() -> str:
    """Return the version of NVIDIA's driver, or `unknown`."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return (found.stdout.splitlines() or ["unknown"])[0].strip()


def describe() -> dict[str, Any]:
    """Return everything worth recording beside a figure."""
    return {
        **describe_machine(),
        **describe_gpu(),
        "threads": torch.get_num_threads(),
        "versions": library_versions(),
        "matmul_tflops": {
            "float32": round(matmul_rate(torch.float32), 3),
            "bfloat16": round(matmul_rate(torch.bfloat16), 3),
        },
    }
