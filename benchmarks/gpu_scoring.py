"""A part of benchmarks/gpu.py: label words behind 16 demonstrations, against padded batches.

Texts are made of a few words. The padded side is what people write: prompt and word as one row,
rows sorted by length, scores of the whole vocabulary at every position, those of the word read off.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_bench import (
    WORDS,
    Bench,
    llama,
    random_model,
    small_model_at_hand,
    small_tokenizer,
)
from taskfit.data import Example
from taskfit.methods.scoring import LabelScorer
from taskfit.models.load import LoadedModel
from taskfit.models.tree_model import TreeModel
from taskfit.plan.shapes import known_config
from taskfit.tasks import EncodedExample, PromptEncoder, choose_demonstrations, task_from_columns

DEMONSTRATIONS = 16
BATCH = 32  # rows of a padded batch


def measures(bench: Bench) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the measures of this part, by name."""
    yield "135m_float32", functools.partial(compare, bench, "float32", large=False)
    yield "135m_bfloat16", functools.partial(compare, bench, "bfloat16", large=False)
    if not bench.tiny:
        yield "8b_bfloat16", functools.partial(compare, bench, "bfloat16", large=True)


def texts_of(num: int) -> list[Example]:
    """Return texts of 6 to 24 words, each with one of two labels."""
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, generator.integers(6, 25))) for _ in range(num)]
    return [Example(f"{i}", {"text": t}, ("no", "yes")[i % 2]) for i, t in enumerate(texts)]


def model_of(bench: Bench, dtype: str, *, large: bool) -> tuple[LoadedModel, str]:
    """Return a model of 8B, random, or a small one."""
    if not large:
        return small_model_at_hand(bench, dtype)
    shape = llama(bench) if bench.tiny else known_config("llama-3-8b")
    model = random_model(shape, bench, getattr(torch, dtype))
    return LoadedModel(TreeModel(model), small_tokenizer(), "random", None), "random, 8B"


def compare(bench: Bench, dtype: str, *, large: bool) -> dict[str, Any]:
    """Time both sides, and compare their log-probabilities."""
    loaded, name = model_of(bench, dtype, large=large)
    task = task_from_columns(name="made", text=["text"], label_column="label", labels=["no", "yes"])
    made = texts_of(DEMONSTRATIONS * 2 + bench.pick(512, 6))
    shown = choose_demonstrations(
        made[: DEMONSTRATIONS * 2],
        how="balanced",
        num=DEMONSTRATIONS,
        labels=task.label_names,
        seed=0,
    )
    texts = made[DEMONSTRATIONS * 2 :]
    encoder = PromptEncoder(loaded.tokenizer, task, shown, max_length=8192)
    few = texts[: bench.pick(64, 3)]
    found: dict[str, NDArray[np.float64]] = {}

    def ours() -> None:
        found["ours"] = LabelScorer(loaded.tree, encoder).log_probs(texts)

    def theirs() -> None:
        found["theirs"] = padded_log_probs(loaded.tree, encoder.encode(few))

    seconds = bench.seconds(ours, repeats=3, warmup=1)
    peer_seconds = bench.seconds(theirs, repeats=3, warmup=1)
    apart = np.abs(found["ours"][: len(few)] - found["theirs"])
    return {
        "model": name,
        "dtype": dtype,
        "prompt_tokens": len(encoder.encode(texts[:1])[0].prompt_ids),
        "texts_per_second": round(len(texts) / seconds, 1),
        "padded_texts_per_second": round(len(few) / peer_seconds, 1),
        "ratio": round(peer_seconds / len(few) / (seconds / len(texts)), 2),
        "largest_difference": float(apart.max()),
        # Log-probabilities of some 10 nats, to float32's and to bfloat16's bits.
        "ok": float(apart.max()) < (1e-2 if dtype == "float32" else 0.5),
    }


@torch.no_grad()
def padded_log_probs(tree: TreeModel, items: Sequence[EncodedExample]) -> NDArray[np.float64]:
    """Return log p(word | prompt) by padded batches, (N, words)."""
    rows = [np.concatenate((item.prompt_ids, w)) for item in items for w in item.completions]
    starts = [len(item.prompt_ids) for item in items for _ in item.completions]
    order = np.argsort([len(row) for row in rows], kind="stable")
    found = np.empty(len(rows))
    with tree.plain_attention() as model:
        for first in range(0, len(rows), BATCH):
            chosen = order[first : first + BATCH].tolist()
            longest = max(len(rows[i]) for i in chosen)
            ids = torch.zeros(len(chosen), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for place, i in enumerate(chosen):
                ids[place, : len(rows[i])] = torch.from_numpy(rows[i])
                mask[place, : len(rows[i])] = 1
            ids, mask = ids.to(tree.device), mask.to(tree.device)
            scores = model(input_ids=ids, attention_mask=mask).logits
            log_probs = torch.log_softmax(scores.float(), dim=-1)
            for place, i in enumerate(chosen):
                own = torch.arange(starts[i], len(rows[i]), device=tree.device)
                found[i] = float(log_probs[place, own - 1, ids[place, own]].sum())
    return found.reshape(len(items), -1)
