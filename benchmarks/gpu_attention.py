"""A part of benchmarks/gpu.py: ways to attend over a token tree, at 512 to 8,192 tokens.

- blocks: what taskfit does today, dense products over blocks of queries and the keys of their
  paths, at its block size for GPUs and at two smaller ones
- flex: FlexAttention, compiled, with a block mask from the line that defines a tree
- varlen: FlashAttention for rows of any length. The tree is cut where a token does not follow its
  parent, so that each piece is a causal row behind the keys of its path, which are gathered

The judge is the blocks in float32. Setting up (masks, indices) is timed by itself, since it is done
once a forward pass and not once a layer.
"""

import functools
import inspect
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from gpu_bench import Bench, apart
from taskfit.models.attention import TreeLayout, tree_attention
from taskfit.models.tree_blocks import block_tensors
from taskfit.training.memory import MemoryAccount
from taskfit.tree import TokenTree, attention_blocks

# Takes queries, keys and values, (1, heads, T, E) each; returns the mixed values, (1, T, H, E).
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
LAYER = SimpleNamespace(training=True)


@dataclass(frozen=True, slots=True)
class Heads:
    """Shapes of attention: query heads, heads of keys, width."""

    query: int
    key: int
    width: int


def measures(bench: Bench) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the measures of this part, by name: a tree's kind and its tokens."""
    for num_tokens in bench.pick((512, 2048, 8192), (96,)):
        for kind in ("shared", "packed", "chain", "odd"):
            yield f"{kind}_{num_tokens}", functools.partial(compare, bench, kind, num_tokens)


def tree_of(kind: str, num_tokens: int) -> TokenTree:
    """Return a tree of about so many tokens.

    Args:
        kind: `shared`: a prompt of half of them, under it texts of 32 tokens; `packed`: rows of 128
            tokens that have nothing in common; `chain`: one text; `odd`: one text of a number of
            tokens that is no multiple of anything, as trees mostly have.
        num_tokens: Tokens.
    """
    generator = np.random.default_rng(0)

    def draw(size: int) -> np.ndarray:
        return generator.integers(0, 2**31, size)

    if kind in ("chain", "odd"):
        return TokenTree.build([draw(num_tokens - 5 * (kind == "odd"))])
    if kind == "packed":
        length = min(128, num_tokens // 3)
        return TokenTree.build([draw(length) for _ in range(num_tokens // length)])
    prompt, length = draw(num_tokens // 2), min(32, num_tokens // 8)
    texts = num_tokens // 2 // length
    return TokenTree.build([np.concatenate((prompt, draw(length))) for _ in range(texts)])


def compare(bench: Bench, kind: str, num_tokens: int) -> dict[str, Any]:
    """Measure all ways on one tree."""
    tree = tree_of(kind, num_tokens)
    heads = bench.pick(Heads(32, 8, 128), Heads(4, 2, 16))
    generator = torch.Generator(bench.device).manual_seed(0)
    dtype = bench.pick(torch.bfloat16, torch.float32)
    inputs = [
        torch.randn(1, num, len(tree), heads.width, generator=generator, device=bench.device)
        for num in (heads.query, heads.key, heads.key, heads.query)
    ]
    *rounded, weights = [tensor.to(dtype) for tensor in inputs]
    judge = run(blocks(bench, tree, 1024, torch.float32), [t.float() for t in rounded], weights)
    found: dict[str, Any] = {"tokens": len(tree), "rows": len(tree.paths)}
    ways: dict[str, Callable[[], Attend]] = {
        f"blocks_{size}": functools.partial(blocks, bench, tree, size, dtype)
        for size in bench.pick((1024, 256, 128), (32,))
    }
    if kind == "odd":
        # Products of such widths may miss the tensor cores; rounded up they do not.
        ways["blocks_rounded"] = functools.partial(rounded_up, bench, tree, dtype)
    ways["varlen"] = functools.partial(varlen, bench, tree, heads)
    ways["flex"] = functools.partial(flex, bench, tree)
    for name, make in ways.items():
        try:
            found[name] = measure(bench, make, rounded, weights, judge=judge)
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
        bench.tidy()
    found["ok"] = all(way.get("ok", False) for way in found.values() if isinstance(way, dict))
    return found


def measure(
    bench: Bench,
    make: Callable[[], Attend],
    inputs: list[Tensor],
    weights: Tensor,
    *,
    judge: list[Tensor],
) -> dict[str, Any]:
    """Measure one way.

    Args:
        bench: Where.
        make: Sets it up for the tree.
        inputs: Queries, keys, values.
        weights: What the mixed values are multiplied with before they are added up to a loss.
        judge: Mixed values, and gradients of queries, keys and values.
    """
    attend = make()
    with_gradient = not (bench.device.type == "cpu" and make.func is flex)  # type: ignore[attr-defined]

    def forward() -> None:
        with torch.no_grad():
            attend(*inputs)

    started = time.perf_counter()
    found = run(attend, inputs, weights, with_gradient=with_gradient)
    bench.wait()
    first_seconds = time.perf_counter() - started
    errors = [apart(ours, theirs) for ours, theirs in zip(found, judge, strict=False)]
    del found
    account = MemoryAccount(bench.device)
    result = {
        "first_seconds": round(first_seconds, 2),  # compilation included
        "setup_ms": round(1e3 * bench.seconds(make, repeats=3, warmup=1), 3),
        "forward_ms": round(1e3 * bench.seconds(forward, repeats=10), 3),
    }
    if with_gradient:
        both = bench.seconds(lambda: run(attend, inputs, weights), repeats=10)
        result["both_ms"] = round(1e3 * both, 3)
    account.stage("all")
    # Of bfloat16's eight bits, and what sums in another order make of them.
    tolerance = 0.05 if inputs[0].dtype == torch.bfloat16 else 1e-4
    return {
        **result,
        "peak_mb": round(account.by_stage["all"] / 1e6, 1),
        "errors": errors,
        "ok": max(errors) < tolerance,
    }


def run(
    attend: Attend, inputs: list[Tensor], weights: Tensor, *, with_gradient: bool = True
) -> list[Tensor]:
    """Return mixed values, and gradients of queries, keys and values unless they are left out."""
    if not with_gradient:
        with torch.no_grad():
            return [attend(*inputs)]
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    mixed = attend(*leaves)
    gradients = torch.autograd.grad(mixed, leaves, weights.transpose(1, 2).to(mixed.dtype))
    return [mixed.detach(), *gradients]


def blocks(bench: Bench, tree: TokenTree, size: int, dtype: torch.dtype) -> Attend:
    """Set up what taskfit does today, in blocks of so many queries."""
    like = torch.empty((), dtype=dtype, device=bench.device)
    layout = TreeLayout(
        blocks=[
            block_tensors(
                block, tree.positions, prefix_length=0, window=None, like=like, multiple=1
            )
            for block in attention_blocks(tree, size)
        ]
    )

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return tree_attention(LAYER, query, key, value, None, tree_layout=layout)[0]  # type: ignore[arg-type]

    return attend


def rounded_up(bench: Bench, tree: TokenTree, dtype: torch.dtype) -> Attend:
    """Set up blocks over the tree filled up to a multiple of 16 tokens, as is done on a CPU."""
    num_tokens, filled = len(tree), tree.padded(16)
    whole = blocks(bench, filled, 1024, dtype)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        fill = (0, 0, 0, len(filled) - num_tokens)
        inputs = [torch.nn.functional.pad(t, fill) for t in (query, key, value)]
        return whole(*inputs)[:, :num_tokens]

    return attend


@functools.cache
def compiled_flex() -> Callable[..., Tensor]:
    """Return FlexAttention, compiled once for all trees."""
    return torch.compile(flex_attention)


def flex(bench: Bench, tree: TokenTree) -> Attend:
    """Set up FlexAttention; on a CPU it runs uncompiled, forward only."""
    ends, num_tokens = torch.from_numpy(tree.subtree_end).to(bench.device), len(tree)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends[key])

    mask = create_block_mask(sees, None, None, num_tokens, num_tokens, device=bench.device)
    function = flex_attention if bench.device.type == "cpu" else compiled_flex()

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed = function(query, key, value, block_mask=mask, enable_gqa=True)
        return mixed.transpose(1, 2)

    return attend


def pieces(tree: TokenTree) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut a tree where a token is not a child of the token before it.

    Returns:
        First query of each piece, with the number of tokens at the end, (S + 1,); the keys that
        each piece sees, one piece behind the other, (K,); and where those of each begin, (S + 1,).
    """
    total = len(tree)
    follows = tree.subtree_end[: total - 1] > np.arange(1, total)
    starts = np.concatenate(([0], np.flatnonzero(~follows) + 1, [total]))
    keys = [
        np.concatenate((tree.ancestors(start), np.arange(start, stop)))
        for start, stop in itertools.pairwise(starts.tolist())
    ]
    return starts, np.concatenate(keys), np.cumsum([0, *map(len, keys)])


def varlen(bench: Bench, tree: TokenTree, heads: Heads) -> Attend:
    """Set up FlashAttention over gathered paths; on a CPU each piece is one dense product.

    Raises:
        ImportError: If this PyTorch does not have it.
    """
    starts, keys, key_starts = pieces(tree)
    gather = torch.from_numpy(keys).to(bench.device)
    if bench.device.type == "cpu":
        return functools.partial(by_piece, gather, starts.tolist(), key_starts.tolist())
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    # A piece's last query sees all its keys: causal from the end, as FlashAttention 2 counts.
    causal: dict[str, Any] = (
        {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    )
    groups = heads.query // heads.key
    if "enable_gqa" in known:
        causal["enable_gqa"], groups = True, 1
    bounds = [torch.from_numpy(b).to(bench.device, torch.int32) for b in (starts, key_starts)]
    longest = [int(np.diff(b).max()) for b in (starts, key_starts)]

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        gathered = [
            t[0].transpose(0, 1).index_select(0, gather).repeat_interleave(groups, dim=1)
            if groups > 1
            else t[0].transpose(0, 1).index_select(0, gather)
            for t in (key, value)
        ]
        rows = query[0].transpose(0, 1).contiguous()
        mixed: Tensor = varlen_attn(rows, *gathered, *bounds, *longest, **causal)  # (T, H, E)
        return mixed[None]

    return attend


def by_piece(
    gather: Tensor,
    starts: list[int],
    key_starts: list[int],
    query: Tensor,
    key: Tensor,
    value: Tensor,
) -> Tensor:
    """Return what FlashAttention would, piece by piece, for a dry run.

    Args:
        gather: Keys of all pieces, (K,).
        starts: Where the queries of each piece begin.
        key_starts: Where the keys of each piece begin.
        query: (1, H, T, E).
        key: (1, N, T, E).
        value: (1, N, T, E).
    """
    mixed = []
    for piece, (start, stop) in enumerate(itertools.pairwise(starts)):
        own = gather[key_starts[piece] : key_starts[piece + 1]]
        size, seen = stop - start, len(own)
        # Causal from the end: the last query sees all keys.
        sees = torch.ones(size, seen, dtype=torch.bool).tril(seen - size)
        mixed.append(
            scaled_dot_product_attention(
                query[:, :, start:stop],
                key[:, :, own],
                value[:, :, own],
                attn_mask=sees,
                scale=1 / math.sqrt(query.shape[-1]),
                enable_gqa=True,
            )
        )
    return torch.cat(mixed, dim=2).transpose(1, 2)
