"""A part of benchmarks/gpu.py: is what the token tree computes on this device right?

Every measure sets the tree's error beside that of padded passes of the same model; the judge is
the padded pass in float32 of the same weights. Errors of scores are in standard deviations of the
judge's scores, those of gradients relative to the length of its gradient.
"""

import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BloomConfig, Lfm2Config, PretrainedConfig, PreTrainedModel

import sft
from gpu_bench import Bench, apart, llama, random_model, small_tokenizer
from taskfit.methods.adapted import AdaptedModel
from taskfit.methods.label_words import LabelWordLoss
from taskfit.models.adapters import add_adapter, trainable_parameters
from taskfit.models.causal_model import CausalModel
from taskfit.models.engine import causal_engine
from taskfit.models.frozen_depth import first_trained_layer
from taskfit.models.load import LoadedModel, load_model
from taskfit.models.quantize import four_bit_layers
from taskfit.models.tree_model import TreeModel
from taskfit.settings import AdapterSettings, ModelSettings, TrainingSettings
from taskfit.settings_file import settings_from_dict
from taskfit.tasks import EncodedExample
from taskfit.training.loop import TOKEN_BUDGET
from taskfit.training.optim import MasterOptimizer
from taskfit.tree import TokenTree

LORA = AdapterSettings(weights="lora", layers="all", lora_dropout=0.0)
STD = 0.06  # of random weights: enough that tokens differ
LOSS_SCALE = 256.0  # for gradients in float16, where the optimizer's scale is not under test


@dataclass(frozen=True, slots=True)
class Passes:
    """What a model says of rows: scores of all their tokens, and the gradient of a loss."""

    scores: Tensor
    gradient: Tensor


def measures(bench: Bench) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the measures of this part, by name."""
    yield "float32", lambda: compare_format(bench, torch.float32)
    yield "bfloat16", lambda: compare_format(bench, torch.bfloat16)
    yield "float16", lambda: compare_format(bench, torch.float16)
    yield "forked_states", lambda: compare_engine(bench, HYBRID)
    yield "padded_engine", lambda: compare_engine(bench, BIASED)
    yield "nf4", lambda: compare_nf4(bench)
    yield "kept_states", lambda: compare_kept_states(bench)
    yield "loss_scale", lambda: recover_from_overflow(bench)
    yield "paged_optimizer", lambda: compare_optimizers(bench)
    yield "waiting", lambda: count_waits(bench)


# Under the tree states fork at branches; attention biased by distance runs padded.
HYBRID = Lfm2Config(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=3,
    layer_types=["conv", "full_attention", "conv"],
    pad_token_id=0,
)
BIASED = BloomConfig(vocab_size=512, hidden_size=64, n_head=4, n_layer=3, pad_token_id=0)


def rows_of(bench: Bench) -> list[np.ndarray]:
    """Return sequences that branch twice, and more tokens than a block of attention holds."""
    generator = np.random.default_rng(0)
    stem, branch, leaf = bench.pick((300, 240, 40), (60, 40, 9))

    def draw(size: int) -> np.ndarray:
        return generator.integers(3, 500, size)

    start = draw(stem)
    rows = []
    for _ in range(bench.pick(8, 4)):
        middle = draw(branch)
        rows += [np.concatenate((start, middle, draw(leaf - 3 * i))) for i in range(2)]
    return rows


def disturb(model: PreTrainedModel) -> None:
    """Give adapters weights that change what the model says."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            noise = torch.randn(parameter.shape, generator=generator) * 0.05
            parameter.add_(noise.to(parameter))


def gradient(model: PreTrainedModel, last: Tensor, scale: float) -> Tensor:
    """Return the gradient of the loss of each row's last token, all parameters in one vector."""
    targets = torch.arange(len(last), device=last.device) + 5
    loss = nn.functional.cross_entropy(last.float(), targets, reduction="sum") * scale
    loss.backward()
    parts = []
    for parameter in trainable_parameters(model).values():
        assert parameter.grad is not None
        parts.append(parameter.grad.float().reshape(-1) / scale)
        parameter.grad = None
    return torch.cat(parts)


def through_tree(model: CausalModel, rows: list[np.ndarray], scale: float) -> Passes:
    """Run rows as one tree, or as the model's engine runs one."""
    tree = TokenTree.build(rows)
    scores = model.logits(model.hidden(tree, np.arange(len(tree))))  # (T, V)
    paths = [torch.from_numpy(path).to(model.device) for path in tree.paths]
    last = scores[torch.stack([path[-1] for path in paths])]
    found = torch.cat([scores.detach()[path] for path in paths])
    return Passes(found, gradient(model.model, last, scale))


def padded(model: PreTrainedModel, rows: list[np.ndarray], scale: float) -> Passes:
    """Run rows as a rectangle padded on the right."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.from_numpy(row)
        mask[i, : len(row)] = 1
    device = model.device
    scores = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits  # (R, L, V)
    last = scores[torch.arange(len(rows)), [len(row) - 1 for row in rows]]
    found = torch.cat([scores.detach()[i, : len(row)] for i, row in enumerate(rows)])
    return Passes(found.float(), gradient(model, last, scale))


def judged(ours: Passes, theirs: Passes, judge: Passes) -> dict[str, Any]:
    """Return both sides' errors, and whether ours are about as small as the padded passes'."""

    def off(passes: Passes) -> tuple[float, float]:
        difference = (passes.gradient - judge.gradient).norm() / judge.gradient.norm()
        return apart(passes.scores, judge.scores), float(difference)

    (our_scores, our_gradient), (their_scores, their_gradient) = off(ours), off(theirs)
    return {
        "scores_error": our_scores,
        "padded_scores_error": their_scores,
        "gradient_error": our_gradient,
        "padded_gradient_error": their_gradient,
        # In float32 the padded pass is the judge itself.
        "ok": our_scores <= 2 * their_scores + 1e-5 and our_gradient <= 2 * their_gradient + 1e-4,
    }


def with_adapter(bench: Bench, dtype: torch.dtype) -> TreeModel:
    """Return a random model with an adapter, whose numbers bfloat16 and float16 hold alike."""
    model = random_model(llama(bench), bench, torch.float32, std=STD)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    tree = TreeModel(model.to(dtype))
    add_adapter(model, LORA, seed=0)
    disturb(model)
    return tree


def compare_format(bench: Bench, dtype: torch.dtype) -> dict[str, Any]:
    """Set the tree beside padded passes in a number format."""
    rows = rows_of(bench)
    scale = LOSS_SCALE if dtype == torch.float16 else 1.0
    model = with_adapter(bench, dtype)
    ours = through_tree(model, rows, scale)
    with model.plain_attention() as plain:
        theirs = padded(plain, rows, scale)
        judge = padded(plain.float(), rows, 1.0)
    return {
        "tokens": len(TokenTree.build(rows)),
        "padded_tokens": len(rows) * max(map(len, rows)),
        **judged(ours, theirs, judge),
    }


def compare_engine(bench: Bench, config: PretrainedConfig) -> dict[str, Any]:
    """Set what runs a model of this kind beside plain padded passes of it."""
    rows = rows_of(bench)
    model = random_model(config, bench, torch.float32, std=STD)
    engine = causal_engine(model)
    add_adapter(model, LORA, seed=0)
    disturb(model)
    ours = through_tree(engine, rows, 1.0)
    with engine.plain_attention() as plain:
        judge = padded(plain, rows, 1.0)
    return {"engine": type(engine).__name__, **judged(ours, judge, judge)}


def compare_nf4(bench: Bench) -> dict[str, Any]:
    """Set the tree over a base in NF4 beside padded passes, and the weights it stands for."""
    import bitsandbytes

    rows = rows_of(bench)
    adapter = LORA.model_copy(update={"weights": "qlora"})
    with tempfile.TemporaryDirectory() as folder:
        random_model(llama(bench), bench, torch.bfloat16, std=STD).save_pretrained(folder)
        small_tokenizer().save_pretrained(folder)
        name, device = folder, bench.device.type
        settings = ModelSettings(name=name, dtype="bfloat16", device=device)
        tree = load_model(settings, quantization=adapter).tree
    model = random_model(llama(bench), bench, torch.float32)
    packed = four_bit_layers(tree.model)
    own = tree.model.state_dict()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            layer = packed.get(key.removesuffix(".weight"))
            stored = own[key]
            if layer is not None:
                stored = bitsandbytes.functional.dequantize_4bit(
                    layer.weight.data, layer.weight.quant_state
                )
            parameter.copy_(stored)
    for base, settled in ((tree.model, adapter), (model, LORA)):
        add_adapter(base, settled, seed=0)
        disturb(base)
    with torch.no_grad():  # the judge's adapter is the other's, rounding included
        for ours_of, judges in zip(
            trainable_parameters(tree.model).values(),
            trainable_parameters(model).values(),
            strict=True,
        ):
            judges.copy_(ours_of)
    ours = through_tree(tree, rows, 1.0)
    with tree.plain_attention() as plain:
        theirs = padded(plain, rows, 1.0)
    return {"layers_in_4_bits": len(packed), **judged(ours, theirs, padded(model, rows, 1.0))}


def compare_kept_states(bench: Bench) -> dict[str, Any]:
    """Compare a step that finds the states of frozen layers with one that computes them."""
    rows, found = rows_of(bench), []
    model = random_model(llama(bench), bench, torch.bfloat16, std=STD)
    tree = TreeModel(model)
    adapter = LORA.model_copy(update={"layers": "half"})
    add_adapter(model, adapter, seed=0)
    disturb(model)
    tree.freeze_below(first_trained_layer(tree.num_layers, "half"))
    found.append(through_tree(tree, rows, 1.0))
    with tempfile.TemporaryDirectory() as folder:
        store = tree.keep_states(memory_bytes=10**9, folder=Path(folder))
        tree.keep_tree(TokenTree.build(rows))
        found.append(through_tree(tree, rows, 1.0))
    first, second = found
    return {
        "kept_bytes": store.num_bytes,
        "scores_apart": apart(second.scores, first.scores),
        "gradient_apart": float((second.gradient - first.gradient).norm() / first.gradient.norm()),
        "ok": store.num_bytes > 0 and torch.equal(first.scores, second.scores),
    }


def recover_from_overflow(bench: Bench) -> dict[str, Any]:
    """Train in float16 from a loss scale that overflows; the weights may not move until it fits."""
    rows, good_steps = rows_of(bench)[: bench.pick(16, 2)], bench.pick(8, 3)
    tree = with_adapter(bench, torch.float16)
    parameters = trainable_parameters(tree.model)
    optimizer = MasterOptimizer(parameters, TrainingSettings())
    assert optimizer.loss_scale is not None
    optimizer.loss_scale.value = 2.0 ** bench.pick(40, 18)
    nodes = np.array([path[-1] for path in TokenTree.build(rows).paths])
    targets = torch.arange(len(rows), device=tree.device) + 5
    losses, is_kept = [], True
    for _ in range(60):
        before = {name: p.detach().clone() for name, p in parameters.items()}
        scores = tree.logits(tree.hidden(TokenTree.build(rows), nodes))
        loss = nn.functional.cross_entropy(scores, targets)
        optimizer.scale_loss(loss).backward()
        optimizer.collect_gradients()
        optimizer.clip(1.0)
        if optimizer.step(1e-3):
            losses.append(loss.item())
        else:
            is_kept &= all(torch.equal(before[name], p) for name, p in parameters.items())
        if len(losses) == good_steps:
            break
    return {
        "skipped_steps": optimizer.num_skipped,
        "loss_scale": optimizer.loss_scale.value,
        "losses": [round(loss, 4) for loss in losses],
        "ok": optimizer.num_skipped > 0
        and is_kept
        and len(losses) == good_steps
        and losses[-1] < losses[0]
        and bool(np.isfinite(losses).all()),
    }


def compare_optimizers(bench: Bench) -> dict[str, Any]:
    """Compare steps of both 8-bit optimizers, the paged one also over a saved and loaded state."""
    size = bench.pick((2048, 512), (64, 128))
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(size, generator=generator)
    gradients = [torch.randn(size, generator=generator) for _ in range(6)]

    def stepped(optimizer: str, *, reload_after: int | None = None) -> Tensor:
        weight = nn.Parameter(start.to(bench.device, torch.bfloat16))
        settings = TrainingSettings(optimizer=optimizer)
        made = MasterOptimizer({"weight": weight}, settings)
        for step, grad in enumerate(gradients):
            if step == reload_after:
                saved = {name: t.clone() for name, t in made.state_tensors().items()}
                made = MasterOptimizer({"weight": weight}, settings)
                made.load_state_tensors(saved)
            weight.grad = grad.to(weight)
            made.collect_gradients()
            made.clip(1.0)
            made.step(1e-2)
        return made.state_tensors()["master/flat"].clone()

    plain, paged = stepped("adamw8bit"), stepped("paged_adamw8bit")
    again = stepped("paged_adamw8bit", reload_after=3)
    moved = (plain.reshape(-1) - start.to(plain).reshape(-1)).abs().mean()
    return {
        "largest_difference": float((plain - paged).abs().max()),
        "largest_difference_after_loading": float((again - paged).abs().max()),
        "mean_movement": float(moved),
        "ok": torch.equal(plain, paged) and torch.equal(again, paged) and float(moved) > 1e-3,
    }


def count_waits(bench: Bench) -> dict[str, Any]:
    """Count where in our loop the processor waits for the GPU, by file and line, for each step.

    Each wait lets the GPU stand still until the next kernel arrives. On a CPU there are none.
    """
    rows, num_steps = rows_of(bench), 3
    items = [
        EncodedExample(f"{i}", row, (np.array([5]), np.array([6])), 0, 0, np.array([1.0, 0.0]))
        for i, row in enumerate(rows)
    ]
    model = random_model(llama(bench), bench, torch.bfloat16, std=STD)
    loaded = LoadedModel(TreeModel(model), small_tokenizer(), "random", None)
    training = {"batch_size": len(rows), "epochs": num_steps, "learning_rate": 1e-4, "keep": "last"}
    training |= {"save_every_steps": 10**6, "tensorboard": False}
    settings = settings_from_dict(
        {
            "method": {"name": "label_words", "loss": "vocabulary"},
            "adapter": {"layers": "all"},
            "training": training,
        }
    ).resolved()
    adapted = AdaptedModel(loaded, settings)
    adapted.make_trainable()
    mode = torch.cuda.set_sync_debug_mode if bench.device.type == "cuda" else lambda _: None

    def show(record: Mapping[str, Any]) -> None:
        # What comes before the first step sets up libraries, and waits for that.
        if record["kind"] in ("start", "step"):
            mode("warn" if record["kind"] == "start" or record["step"] < num_steps else "default")

    loss = LabelWordLoss(loaded.tree, [0, 1], over="vocabulary")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sft.train_items(adapted, loss, items, settings, show=show)
    places = Counter(
        f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)
    )
    return {
        "passes_per_step": len(loss.plan(items, TOKEN_BUDGET)),
        "waits_per_step": round(sum(places.values()) / num_steps, 1),
        "places": dict(places.most_common(20)),
    }
