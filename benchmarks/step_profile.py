"""What an optimizer step of the published recipe is made of, and what building its tree costs.

    python benchmarks/step_profile.py                  # bfloat16
    python benchmarks/step_profile.py --dtype fp32

Needs TASKFIT_DATA with CoLA. The profiler's own cost stands in no share: operators are measured
by their own time, the step by the clock with the profiler off.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from machine import describe, matmul_rate
from recipe import BATCH, DTYPES, OurRecipe, encode, row_of
from taskfit.tree import TokenTree

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "mkldnn", "aten::linear", "aten::matmul"),
    "attention": ("aten::bmm", "aten::baddbmm", "attention", "softmax"),
    "dropout bits": ("random_bits", "aten::random_"),
    "optimizer": ("Adam", "fused_adam", "clip_grad", "foreach", "linalg_vector_norm"),
    "gather and scatter": ("index", "aten::cat", "embedding"),
}


def kind_of(name: str) -> str:
    """Return what an operator belongs to; all else is elementwise work, copies and dispatch."""
    for kind, parts in KINDS.items():
        if any(part in name for part in parts):
            return kind
    return "elementwise, norms, copies, dispatch"


def step_shares(dtype: str, steps: int) -> dict[str, object]:
    """Profile steps; return seconds a step, the share of each kind, and the matmul rate reached."""
    _, train, _ = encode(None)
    ours = OurRecipe(dtype, compiled=False, total_steps=10_000, seed=0)
    batches = [train[i * BATCH : (i + 1) * BATCH] for i in range(2 * steps + 2)]
    for batch in batches[:2]:
        ours.step(batch)
    seconds = []
    before = ours.loaded.tree.num_tokens_run
    for batch in batches[2 : 2 + steps]:
        started = time.perf_counter()
        ours.step(batch)
        seconds.append(time.perf_counter() - started)
    tokens = (ours.loaded.tree.num_tokens_run - before) / steps
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for batch in batches[2 + steps :]:
            ours.step(batch)
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    shares: dict[str, float] = {}
    for event in events:
        kind = kind_of(event.key)
        shares[kind] = shares.get(kind, 0.0) + event.self_cpu_time_total / total
    step = statistics.median(seconds)
    head = ours.loaded.tree.model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in ours.loaded.tree.model.parameters()) - head
    rows = round(tokens)
    flops = 4 * (tokens * body + BATCH * head)
    return {
        "dtype": dtype,
        "step_seconds": round(step, 4),
        "unique_tokens": round(tokens, 1),
        "operators_a_step": round(sum(event.count for event in events) / steps),
        "share_of_time": {k: round(v, 3) for k, v in sorted(shares.items(), key=lambda i: -i[1])},
        "share_of_matmul_rate": round(flops / step / 1e12 / matmul_rate(DTYPES[dtype]), 3),
        # Products of few rows run slower whoever does them.
        "share_of_matmul_rate_at_these_rows": round(
            flops / step / 1e12 / matmul_rate(DTYPES[dtype], rows=rows), 3
        ),
    }


def tree_cost(step_seconds: float) -> dict[str, object]:
    """Time the building of a step's tree, and of trees of more and more tokens."""
    _, train, _ = encode(None)
    batches = [[row_of(e) for e in train[i * BATCH : (i + 1) * BATCH]] for i in range(50)]
    started = time.perf_counter()
    for batch in batches:
        TokenTree.build(batch)
    build = (time.perf_counter() - started) / len(batches)
    generator = np.random.default_rng(0)
    by_tokens = {}
    for count in (100, 1_000, 10_000):
        rows = [generator.integers(0, 50, 60) for _ in range(count)]
        best = min(_seconds(rows) for _ in range(5))
        by_tokens[count * 60] = round(best * 1e9 / (count * 60), 1)
    return {
        "build_seconds": round(build, 7),
        "share_of_step": round(build / step_seconds, 6),
        "nanoseconds_a_token_by_tokens_given": by_tokens,
    }


def _seconds(rows: list[np.ndarray]) -> float:
    started = time.perf_counter()
    TokenTree.build(rows)
    return time.perf_counter() - started


def main() -> None:
    """Print and store JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    step = step_shares(arguments.dtype, arguments.steps)
    result = {
        "machine": describe(),
        "step": step,
        "tree": tree_cost(float(str(step["step_seconds"]))),
    }
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
