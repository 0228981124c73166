"""A part of benchmarks/gpu.py: tokens a second of sft and dpo, against TRL where it is installed.

Both sides run as in benchmarks/sft.py and benchmarks/dpo.py, here one after the other in one
process. Rows are made of a few words; a token is one of a row, never padding.
"""

import functools
import importlib.util
import statistics
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

import dpo
import sft
from gpu_bench import WORDS, Bench, small_model_at_hand
from taskfit.data.instructions import Conversation, InstructionRow, Preference
from taskfit.data.messages import Message
from taskfit.tasks.chat import ChatEncoder
from taskfit.training.memory import MemoryAccount

WARMUP = 2
PEERS: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    "sft": {name: extra for name, extra in sft.CONTENDERS.items() if name.startswith("TRL, padd")},
    "dpo": {name: extra for name, extra in dpo.CONTENDERS.items() if name.startswith("TRL")},
}


class OpenGate:
    """In the place of `sft.Gate`: lets every step through and keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.reference_seconds = 0.0

    def wait(self) -> None:
        """Let the next step go ahead."""

    def tell(self, **values: Any) -> None:  # noqa: ANN401 - as `Gate.tell`
        """Keep what is told."""
        if "ready" in values:
            self.reference_seconds = values["reference_seconds"]
        else:
            self.steps.append(values)


def measures(bench: Bench) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the measures of this part, by name."""
    with tempfile.TemporaryDirectory() as folder:
        loaded, name = small_model_at_hand(bench, "bfloat16")
        loaded.tree.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        del loaded
        for method in PEERS:
            for budget in (0, bench.pick(8192, 512)):
                measure = f"{method}_ours" + (f"_budget_{budget}" if budget else "")
                yield measure, functools.partial(ours, bench, method, folder, name, budget)
            for peer, extra in PEERS[method].items():
                measure = f"{method}_{peer}".lower().replace(", ", "_").replace(" ", "_")
                yield measure, functools.partial(theirs, bench, method, folder, extra)


def options_of(bench: Bench, folder: str, *, budget: int = 0) -> Namespace:
    """Return options as `sft.main` parses them; a budget of 0 is the default one (tokens)."""
    return Namespace(
        batch=bench.pick(16, 2),
        budget=budget,
        dropout=0.0,
        dtype="bfloat16",
        device=bench.device.type,
        model=folder,
        contender=sft.OURS,
        peer_precision="autocast",
    )


def words(generator: np.random.Generator, low: int, high: int) -> str:
    """Return a text of so many words."""
    return " ".join(generator.choice(WORDS, generator.integers(low, high)))


def rows_of(bench: Bench, method: str) -> list[InstructionRow]:
    """Return rows for all steps: questions with an answer, or with two."""
    generator = np.random.default_rng(0)
    num = options_of(bench, "").batch * (WARMUP + bench.pick(8, 1))
    shortest, longest = bench.pick((20, 300), (3, 8))
    rows: list[InstructionRow] = []
    for i in range(num):
        prompt = (Message("user", words(generator, shortest, longest)),)
        answers = [words(generator, shortest, longest) for _ in range(2)]
        if method == "dpo":
            rows.append(Preference(f"{i}", prompt, *answers))
        else:
            rows.append(Conversation(f"{i}", (*prompt, Message("assistant", answers[0]))))
    return rows


def tokens_of_steps(bench: Bench, method: str, folder: str) -> list[int]:
    """Return the tokens of the rows of each step."""
    rows = rows_of(bench, method)
    encoder = ChatEncoder(sft.tokenizer_of_model(folder), max_length=100_000)
    if method == "dpo":
        pairs = encoder.preferences([row for row in rows if isinstance(row, Preference)])
        counts = [pair.chosen.num_tokens + pair.rejected.num_tokens for pair in pairs]
    else:
        texts = encoder.conversations([row for row in rows if isinstance(row, Conversation)])
        counts = [text.num_tokens for text in texts]
    ordered = [counts[i] for i in sft.training_order(len(rows), 0)]
    return [int(n) for n in np.reshape(ordered, (-1, options_of(bench, "").batch)).sum(axis=1)]


def summary(
    bench: Bench, gate: OpenGate, tokens: Sequence[int], account: MemoryAccount
) -> dict[str, Any]:
    """Return what the steps of one side took."""
    seconds = [step["seconds"] for step in gate.steps]
    timed = slice(WARMUP, len(tokens))
    return {
        "median_step_seconds": round(statistics.median(seconds[timed]), 4),
        "tokens_per_second": round(sum(tokens[timed]) / sum(seconds[timed])),
        "reference_seconds": round(gate.reference_seconds, 3),
        "tokens_of_rows": sum(tokens[timed]),
        "losses": [round(step["loss"], 4) for step in gate.steps],
        "peak_gb": round(account.peak() / 1e9, 3),
    }


def ours(bench: Bench, method: str, folder: str, name: str, budget: int) -> dict[str, Any]:
    """Train by our loop, in forward passes of so many tokens."""
    gate, account = OpenGate(), MemoryAccount(bench.device)
    options = options_of(bench, folder, budget=budget)
    sft.our_run(gate, rows_of(bench, method), options, method)  # type: ignore[arg-type]
    tokens = tokens_of_steps(bench, method, folder)
    return {"model": name, **summary(bench, gate, tokens, account)}


def theirs(bench: Bench, method: str, folder: str, extra: Mapping[str, object]) -> dict[str, Any]:
    """Train by TRL's loop, on the same rows in the same order."""
    if importlib.util.find_spec("trl") is None:
        return {"absent": "TRL is not installed"}
    rows = rows_of(bench, method)
    ordered = [rows[i] for i in sft.training_order(len(rows), 0)]
    records: list[dict[str, Any]] = [
        sft.record_of(row) if isinstance(row, Conversation) else dpo.record_of(row)
        for row in ordered
        if isinstance(row, (Conversation, Preference))
    ]
    gate, account = OpenGate(), MemoryAccount(bench.device)
    torch.manual_seed(0)
    names = {"sft": ("SFTTrainer", "SFTConfig"), "dpo": ("DPOTrainer", "DPOConfig")}[method]
    beta = {"beta": 0.1} if method == "dpo" else {}
    sft.peer_run(
        gate,  # type: ignore[arg-type]
        records,
        options_of(bench, folder),
        names=names,
        extra={**beta, **extra},
    )
    return summary(bench, gate, tokens_of_steps(bench, method, folder), account)
