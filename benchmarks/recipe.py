"""One step and one epoch of the published CoLA recipe, ours against Transformers + PEFT.

    python benchmarks/recipe.py --steps 30                     # the step, alternating, both sides
    python benchmarks/recipe.py --steps 30 --compile           # with compiled stock layers
    python benchmarks/recipe.py --strong                       # against the recipe written well
    python benchmarks/recipe.py --strong --adapter-layers half # ours trains the upper half
    python benchmarks/recipe.py --train 2000 --seeds 3         # an epoch over 2,000 examples, MCC

Needs TASKFIT_DATA with CoLA. Same sequences, order and hyper-parameters on both sides: the
two-demonstration prompt, batch 8, LoRA r=8 on all linear layers, dropout 0.05, AdamW 5e-4 with
linear warm-up and decay, loss over the whole vocabulary at the label. The step of either side
includes everything from token ids to updated weights. The strong recipe (`peer_strong.py`) makes
batches of like length, and ours runs the same. Where ours trains the upper half, what lies below is
computed before, as in all epochs but the first; the seconds that takes stand in the record.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from sklearn.metrics import matthews_corrcoef

from machine import describe, matmul_rate
from peer_recipe import PeerRecipe
from peer_strong import StrongRecipe, like_batches
from taskfit.data import load_builtin
from taskfit.methods.label_words import LabelWordLoss
from taskfit.methods.scoring import LabelScorer
from taskfit.models.adapters import add_adapter, trainable_parameters
from taskfit.models.evaluation_mode import evaluation_mode
from taskfit.models.frozen_depth import first_trained_layer
from taskfit.models.lean import shared_weights
from taskfit.models.load import load_model
from taskfit.models.packaged import packaged_folder
from taskfit.settings import AdapterSettings, ModelSettings, TrainingSettings
from taskfit.tasks import EncodedExample, PromptEncoder, choose_demonstrations, load_task
from taskfit.training.memory import MemoryAccount
from taskfit.training.optim import MasterOptimizer, learning_rate_at
from taskfit.training.seeds import step_seed

BATCH = 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class OurRecipe:
    """Our side, from the parts that `taskfit fit` uses."""

    def __init__(
        self,
        dtype: str,
        *,
        compiled: bool,
        total_steps: int,
        seed: int,
        layers: str = "all",
        dropout: float = 0.05,
    ) -> None:
        loaded = load_model(ModelSettings(dtype={"fp32": "float32", "bf16": "bfloat16"}[dtype]))
        self.loaded = loaded
        adapter = AdapterSettings.model_validate({"layers": layers, "lora_dropout": dropout})
        add_adapter(loaded.tree.model, adapter, seed=seed)
        loaded.tree.freeze_below(first_trained_layer(loaded.tree.num_layers, layers))
        if compiled:  # the stock layers; the pass made for training has nothing to compile
            loaded.tree.compile_layers()
        else:
            loaded.tree.prepare_training()
        self.settings = TrainingSettings(learning_rate=5e-4)
        parameters = trainable_parameters(loaded.tree.model)
        self.optimizer = MasterOptimizer(parameters, self.settings)
        self.objective = LabelWordLoss(loaded.tree, [0, 1], over="vocabulary")
        self.total_steps, self.done, self.seed = total_steps, 0, seed
        loaded.tree.model.train()

    def keep(self, items: list[EncodedExample], folder: Path) -> None:
        """Run the layers that are not trained once over all texts, as the training loop does."""
        tree = self.loaded.tree
        if tree.first_trained:
            tree.keep_states(memory_bytes=2 * 10**9, folder=folder)
            with evaluation_mode(tree.model):
                for fixed in self.objective.fixed_trees(items, 2048):
                    tree.keep_tree(fixed.tree, prefix=fixed.prefix)

    def step(self, items: list[EncodedExample]) -> float:
        """Take one optimizer step, as the training loop does."""
        torch.manual_seed(step_seed(self.seed, self.done))
        total = 0.0
        for piece in self.objective.plan(items, 2048):
            loss = self.objective.loss_sum([items[i] for i in piece]) / len(items)
            loss.backward()
            self.optimizer.collect_gradients()
            total += loss.item()
        self.optimizer.clip(1.0)
        rate = learning_rate_at(self.done, total_steps=self.total_steps, settings=self.settings)
        self.optimizer.step(rate)
        self.done += 1
        return total


def encode(
    num_train: int | None,
) -> tuple[PromptEncoder, list[EncodedExample], list[EncodedExample]]:
    """Return the encoder and the encoded training and development examples."""
    from transformers import AutoTokenizer

    task, data = load_task("cola"), load_builtin("cola", folder=None)
    shown = choose_demonstrations(
        data.train, how="balanced", num=2, labels=task.label_names, seed=0
    )
    tokenizer = AutoTokenizer.from_pretrained(packaged_folder("smollm2-135m"))
    encoder = PromptEncoder(tokenizer, task, shown, max_length=8192)
    ids = {example.id for example in shown}
    train = encoder.encode([e for e in data.train if e.id not in ids])
    order = np.random.default_rng(0).permutation(len(train))[:num_train]
    dev = [e for found in data.evaluations.values() for e in found]
    return encoder, [train[i] for i in order], encoder.encode(dev)


def row_of(item: EncodedExample) -> np.ndarray:
    """Return prompt and label word as one sequence."""
    assert item.label_index is not None
    return np.concatenate((item.prompt_ids, item.completions[item.label_index]))


def timed(function: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def ratios(seconds: list[tuple[float, float]]) -> dict[str, float]:
    """Return the medians of steps of both sides, ours first, and how much slower the peer is."""
    ours, peer = (statistics.median(side) for side in zip(*seconds, strict=True))
    return {
        "our_step_seconds": round(ours, 4),
        "peer_step_seconds": round(peer, 4),
        "ratio_of_medians": round(peer / ours, 2),
        "median_of_ratios": round(statistics.median(p / o for o, p in seconds), 2),
    }


def compare_steps(dtype: str, steps: int, *, compiled: bool) -> dict[str, object]:
    """Alternate our steps with the peer's on the same batches; report medians and their ratio."""
    _, train, _ = encode(None)
    length = max(len(row_of(item)) for item in train)
    ours = OurRecipe(dtype, compiled=compiled, total_steps=10_000, seed=0)
    folder = str(packaged_folder("smollm2-135m"))
    peer = PeerRecipe(folder, DTYPES[dtype], length=length, total_steps=10_000, seed=0)
    batches = [train[i * BATCH : (i + 1) * BATCH] for i in range(steps + 4)]
    for batch in batches[:4]:  # warm-up: allocations, compilation for both tree shapes
        ours.step(batch)
    peer.step([row_of(item) for item in batches[0]])
    before = ours.loaded.tree.num_tokens_run
    seconds = [
        (
            timed(lambda b=batch: ours.step(b)),
            timed(lambda b=batch: peer.step([row_of(i) for i in b])),
        )
        for batch in batches[4:]
    ]
    our_tokens = (ours.loaded.tree.num_tokens_run - before) / steps
    our_median = statistics.median(s for s, _ in seconds)
    # Weights but embeddings and head: two operations forward, two for the gradient of inputs.
    head = ours.loaded.tree.model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in ours.loaded.tree.model.parameters()) - head
    flops = 4 * (our_tokens * body + BATCH * head)
    return {
        "dtype": dtype,
        "compiled": compiled,
        "steps": steps,
        **ratios(seconds),
        "our_tokens": our_tokens,
        "peer_tokens": BATCH * length,
        "share_of_matmul_rate": round(flops / our_median / 1e12 / matmul_rate(DTYPES[dtype]), 3),
    }


def compare_strong(
    dtype: str, steps: int, *, compiled: bool, layers: str, folder: Path
) -> dict[str, object]:
    """Alternate our steps with those of the strong recipe on its batches of like length."""
    _, train, _ = encode(None)
    rows = [row_of(item) for item in train]
    batches = like_batches([len(row) for row in rows], BATCH, seed=0)[: steps + 4]
    options = {"total_steps": 10_000, "seed": 0}
    model = str(packaged_folder("smollm2-135m"))
    agreement = agreement_with_strong(model, [train[i] for i in batches[0]])
    ours = OurRecipe(dtype, compiled=compiled, layers=layers, **options)
    peer = StrongRecipe(model, DTYPES[dtype], **options)
    used = [train[i] for batch in batches for i in batch]
    kept = timed(lambda: ours.keep(used, folder))
    for batch in batches[:4]:  # warm-up: allocations, compilation for both tree shapes
        ours.step([train[i] for i in batch])
    peer.step([rows[i] for i in batches[0]])
    before = ours.loaded.tree.num_tokens_run
    seconds = [
        (
            timed(lambda b=batch: ours.step([train[i] for i in b])),
            timed(lambda b=batch: peer.step([rows[i] for i in b])),
        )
        for batch in batches[4:]
    ]
    padded = [peer.padded_tokens([rows[i] for i in batch]) for batch in batches[4:]]
    return {
        "peer": "strong: like lengths, padding per batch, LM head at the label",
        "batches": "of like length, the peer's, on both sides",
        "batch_size": BATCH,
        "lora": {"rank": 8, "alpha": 16, "dropout_both_sides": 0.05},
        "our_layers": layers,
        "dtype": dtype,
        "compiled": compiled,
        "steps": steps,
        **ratios(seconds),
        "our_seconds_before_for_a_step": round(kept / len(batches), 4) if layers != "all" else 0.0,
        "our_tokens": (ours.loaded.tree.num_tokens_run - before) / steps,
        "peer_tokens": statistics.fmean(padded),
        **agreement,
    }


def agreement_with_strong(model: str, items: list[EncodedExample]) -> dict[str, float]:
    """Compare loss and gradient of both sides on a batch, in float32 without dropout."""
    options = {"total_steps": 10, "seed": 0, "dropout": 0.0}
    ours = OurRecipe("fp32", compiled=False, **options)
    peer = StrongRecipe(model, torch.float32, **options)
    own = trainable_parameters(ours.loaded.tree.model)
    theirs = {n.removeprefix("base_model.model."): p for n, p in peer.model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for name, parameter in own.items():
        # The second of two factors starts from zero, and would leave the first without gradient.
        parameter.data.normal_(0, 0.02, generator=generator)
        theirs[name].data.copy_(parameter.data)
    loss = ours.objective.loss_sum(items) / len(items)
    loss.backward()
    peer_loss = peer.loss([row_of(item) for item in items])
    peer_loss.backward()
    mine, other = (
        torch.cat([p.grad.flatten() for p in side.values() if p.grad is not None])
        for side in (own, {name: theirs[name] for name in own})
    )
    return {
        "loss_difference": abs(float(loss.detach()) - float(peer_loss.detach())),
        "relative_gradient_difference": float((mine - other).norm() / other.norm()),
    }


def train_epoch(
    side: str, dtype: str, num_train: int, seed: int, *, compiled: bool, num_dev: int | None
) -> dict[str, object]:
    """Run one epoch and an evaluation on the development sets, with peak memory above weights."""
    encoder, train, dev = encode(num_train)
    dev = dev[:num_dev]
    steps = -(-len(train) // BATCH)
    order = np.random.default_rng(seed).permutation(len(train))
    gold = [item.label_index for item in dev]
    folder = str(packaged_folder("smollm2-135m"))
    if side == "ours":
        ours = OurRecipe(dtype, compiled=compiled, total_steps=steps, seed=seed)
    else:
        length = max(len(row_of(item)) for item in (*train, *dev))
        peer = PeerRecipe(folder, DTYPES[dtype], length=length, total_steps=steps, seed=seed)
    laid_out = shared_weights(ours.loaded.tree.model).num_bytes if side == "ours" else 0
    memory = MemoryAccount(torch.device("cpu"))
    at_start = psutil.Process().memory_info().rss
    started = time.perf_counter()
    for step in range(steps):
        batch = [train[i] for i in order[step * BATCH : (step + 1) * BATCH]]
        if side == "ours":
            ours.step(batch)
        else:
            peer.step([row_of(item) for item in batch])
    epoch_seconds = time.perf_counter() - started
    memory.stage("training")
    started = time.perf_counter()
    if side == "ours":
        scorer = LabelScorer(ours.loaded.tree, encoder)
        predicted = scorer.score_encoded(dev).argmax(axis=1)
    else:
        words = [int(c[0]) for c in dev[0].completions]
        predicted = peer.predict([row_of(item) for item in dev], words)
    evaluation_seconds = time.perf_counter() - started
    memory.stage("evaluation")
    return {
        "side": side,
        "dtype": dtype,
        "compiled": compiled and side == "ours",
        "num_train": len(train),
        "seed": seed,
        "epoch_seconds": round(epoch_seconds, 1),
        "evaluation_seconds": round(evaluation_seconds, 1),
        "mcc": round(float(matthews_corrcoef(gold, predicted)), 4),
        "peak_above_weights_mb": round(sum(memory.by_stage.values()) / 1e6),
        "resident_at_start_mb": round(at_start / 1e6),
        # Frozen weights once more, for the processor; in memory at the start already.
        "laid_out_mb": round(laid_out / 1e6),
    }


def main() -> None:
    """Run what the arguments ask for; print and store JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--strong", action="store_true", help="against the recipe written well")
    parser.add_argument("--adapter-layers", default="all", help="ours, with --strong")
    parser.add_argument("--train", type=int, help="examples of an epoch; leaves out the steps")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--dev", type=int, help="development examples to score; default all")
    parser.add_argument("--peer-seeds", type=int, default=1)
    parser.add_argument("--side", choices=["ours", "peer"], help="one epoch in this process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    result: dict[str, object]
    if arguments.side:
        result = train_epoch(
            arguments.side,
            arguments.dtype,
            arguments.train,
            arguments.seed,
            compiled=arguments.compile,
            num_dev=arguments.dev,
        )
    elif arguments.train:
        # Each epoch in a process of its own, so that peaks of memory do not mix.
        runs = [("ours", seed) for seed in range(arguments.seeds)]
        runs += [("peer", seed) for seed in range(arguments.peer_seeds)]
        epochs = []
        for side, seed in runs:
            command = [sys.executable, __file__, "--side", side, "--seed", str(seed)]
            command += ["--train", str(arguments.train), "--dtype", arguments.dtype]
            command += ["--compile"] if arguments.compile else []
            command += ["--dev", str(arguments.dev)] if arguments.dev else []
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            epochs.append(json.loads(done.stdout.splitlines()[-1]))
            print(epochs[-1], flush=True)
        result = {"machine": describe(), "epochs": epochs}
    elif arguments.strong:
        with tempfile.TemporaryDirectory() as scratch:
            compared = compare_strong(
                arguments.dtype,
                arguments.steps,
                compiled=arguments.compile,
                layers=arguments.adapter_layers,
                folder=Path(scratch),
            )
        result = {"machine": describe(), "step": compared}
    else:
        compared = compare_steps(arguments.dtype, arguments.steps, compiled=arguments.compile)
        result = {"machine": describe(), "step": compared}
    print(json.dumps(result) if arguments.side else json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
