"""The loop: overfits, resumes bitwise, survives memory running out, stops before a bad update."""

import dataclasses
import math
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tiny
from taskfit.errors import CheckpointError, TrainingError
from taskfit.files import read_jsonl
from taskfit.methods.calibration import apply_prior
from taskfit.methods.label_words import LabelWordLoss
from taskfit.methods.scoring import LabelScorer
from taskfit.models.adapters import add_adapter, trainable_parameters
from taskfit.models.load import LoadedModel
from taskfit.models.tree_model import TreeModel
from taskfit.settings import AdapterSettings, TrainingSettings
from taskfit.tasks import EncodedExample, PromptEncoder, task_from_columns
from taskfit.training import checkpoint
from taskfit.training.checkpoint import Checkpoints, SavePace, TrainingState
from taskfit.training.choice import is_worse
from taskfit.training.length import count_steps
from taskfit.training.log import TrainingLog
from taskfit.training.loop import TrainingJob, Validation, train
from taskfit.training.memory import MemoryAccount
from taskfit.training.optim import MasterOptimizer, learning_rate_at
from tiny_screens import Killed

EXAMPLES = tiny.toy_examples(8)
TASK = task_from_columns(name="toy", text=["text"], label_column="label", labels=["bad", "good"])


class Rig:
    """A tiny training in a folder, with the parts that tests look at."""

    def __init__(
        self,
        loaded: LoadedModel,
        folder: Path,
        *,
        weights: str = "lora",
        losses: Sequence[float | Sequence[float]] | None = None,
        **settings: Any,
    ) -> None:
        encoder = PromptEncoder(loaded.tokenizer, TASK, [], max_length=128)
        self.model = loaded.tree
        self.scorer = LabelScorer(loaded.tree, encoder)
        self.items = encoder.encode(EXAMPLES)
        self.folder = folder
        add_adapter(loaded.tree.model, AdapterSettings(weights=weights, layers="all"), seed=0)
        self.parameters = trainable_parameters(loaded.tree.model)
        self.objective = LabelWordLoss(loaded.tree, self.scorer.label_of_candidate, over="labels")
        self.settings = TrainingSettings(
            **{"batch_size": 3, "learning_rate": 1e-2, "tensorboard": False, **settings}
        )
        # Of the validations, the one before the first step included.
        self.losses = list(losses or [])
        self.log_hook: Callable[[Any], None] | None = None

    def job(self) -> TrainingJob:
        folder = self.folder
        folder.mkdir(exist_ok=True)
        return TrainingJob(
            model=self.model.model,
            parameters=self.parameters,
            objective=self.objective,
            items=self.items,
            validate=self.validate if self.losses else None,
            settings=self.settings,
            seed=5,
            checkpoints=Checkpoints(folder / "checkpoints"),
            log=TrainingLog(folder, show=self.log_hook),
            memory=MemoryAccount(torch.device("cpu")),
            count_tokens=lambda: self.model.num_tokens_run,
        )

    def validate(self) -> Validation:
        found = self.losses[len([r for r in self.records() if r["kind"] == "validation"])]
        each = [found] if isinstance(found, float) else list(found)
        return Validation(fmean(each), {"accuracy": 0.5}, np.array(each))

    def records(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "metrics.jsonl")

    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten().clone() for p in self.parameters.values()])


def fresh(byte_level_tokenizer: Any, dtype: torch.dtype = torch.float32) -> LoadedModel:
    model = tiny.tiny_model("llama", len(byte_level_tokenizer)).to(dtype).requires_grad_(False)
    return LoadedModel(TreeModel(model), byte_level_tokenizer, "tiny", None)


@pytest.mark.parametrize("weights", ["lora", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_examples_are_overfitted(
    byte_level_tokenizer: Any,
    tmp_path: Path,
    weights: str,
    dtype: torch.dtype,
) -> None:
    rig = Rig(
        fresh(byte_level_tokenizer, dtype),
        tmp_path,
        weights=weights,
        epochs=40,
        batch_size=8,
        learning_rate=2e-2 if weights == "lora" else 3e-3,
    )
    train(rig.job())
    probabilities = apply_prior(rig.scorer.score_encoded(rig.items), None)
    gold = [item.label_index for item in rig.items]
    assert min(probabilities[i, label] for i, label in enumerate(gold)) > 0.9


@pytest.mark.parametrize("weights", ["lora", "full"])
@pytest.mark.parametrize("architecture", [name for name in tiny.ARCHITECTURES if name != "llama"])
def test_every_architecture_overfits_eight_examples(
    byte_level_tokenizer: Any, tmp_path: Path, architecture: str, weights: str
) -> None:
    # Through a window of four tokens the word that decides could not be seen.
    model = tiny.tiny_model(architecture, len(byte_level_tokenizer), window=32)
    model.requires_grad_(False)
    rig = Rig(
        LoadedModel(TreeModel(model), byte_level_tokenizer, "tiny", None),
        tmp_path,
        weights=weights,
        # One with learned positions takes longer.
        epochs=60 if architecture == "gpt2" else 35,
        batch_size=8,
        learning_rate=1e-2 if weights == "lora" else 3e-3,
        save_every_steps=1000,
    )
    train(rig.job())
    found = apply_prior(rig.scorer.score_encoded(rig.items), None)
    assert found.argmax(axis=1).tolist() == [item.label_index for item in rig.items]


@pytest.mark.parametrize("disk", [checkpoint.BYTES_PER_SECOND, 1e-3])
@pytest.mark.parametrize("killed_at", [1, 4, 5, 8])
def test_a_killed_run_resumes_bitwise_however_slow_the_disk_is(
    byte_level_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_at: int,
    disk: float,
) -> None:
    monkeypatch.setattr(checkpoint, "BYTES_PER_SECOND", disk)
    scores = [0.9, 0.5, 0.1, 0.3, 0.2, 0.4, 0.9]
    options: dict[str, Any] = {"epochs": 3, "eval_every_steps": 2, "losses": scores}
    whole = Rig(fresh(byte_level_tokenizer), tmp_path / "whole", **options)
    state = train(whole.job())
    assert state.best_step == 4

    broken = Rig(fresh(byte_level_tokenizer), tmp_path / "broken", **options)

    def kill(record: dict[str, Any]) -> None:
        if record["kind"] == "step" and record["step"] == killed_at:
            raise Killed

    broken.log_hook = kill
    with pytest.raises(Killed):
        train(broken.job())
    saved = [path.name for path in (tmp_path / "broken" / "checkpoints").glob("step-*")]
    assert len(saved) == (disk > 1 and killed_at > 2)
    again = Rig(fresh(byte_level_tokenizer), tmp_path / "broken", **options)
    resumed = train(again.job())
    assert torch.equal(again.weights(), whole.weights())
    assert (resumed.step, resumed.best_step) == (state.step, state.best_step)

    def losses(rig: Rig) -> list[tuple[int, float]]:
        return [(r["step"], r["loss"]) for r in rig.records() if r["kind"] == "step"]

    assert losses(again) == losses(whole)
    # Killed while it is evaluated: what the last step leaves needs no moments.
    last = tmp_path / "broken" / "checkpoints" / "step-00000009" / "optimizer.safetensors"
    assert all(name.startswith("master/") for name in load_file(last))
    ended = Rig(fresh(byte_level_tokenizer), tmp_path / "broken", **options)
    train(ended.job())
    assert torch.equal(ended.weights(), whole.weights())


def test_a_checkpoint_is_written_where_it_takes_a_small_share_of_what_it_saves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "BYTES_PER_SECOND", 4.0)
    trained = [torch.zeros(10)]  # 120 bytes: 30 seconds, which ten minutes pay for
    pace = SavePace(trained, None, validates_every=5, total_steps=40)

    def due(step: int, seconds: float, *, stopped: bool = False) -> bool:
        return pace.is_due(TrainingState(step=step, seconds=seconds, stopped=stopped))

    assert not due(5, 500)
    assert due(5, 601)
    assert not due(4, 599)
    assert due(4, 601)  # between validations
    assert due(40, 1)
    assert due(4, 1, stopped=True)
    with pace.saving(TrainingState(step=5, seconds=601)):
        pass
    assert due(10, 602)  # the disk is fast
    assert not due(11, 1200)
    assert due(11, 1202)
    asked = SavePace(trained, 3, validates_every=5, total_steps=40)
    assert [step for step in range(1, 10) if asked.is_due(TrainingState(step=step))] == [3, 6, 9]


def test_the_best_weights_are_kept_or_the_last_if_asked(
    byte_level_tokenizer: Any,
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"epochs": 2, "eval_every_steps": 2, "losses": [0.7, 0.1, 0.8, 0.7]}
    best = Rig(fresh(byte_level_tokenizer), tmp_path / "best", **options)
    train(best.job())
    stopped = Rig(fresh(byte_level_tokenizer), tmp_path / "x", **options, max_steps=2, keep="last")
    # The same two steps under the schedule of the whole run.
    last = Rig(fresh(byte_level_tokenizer), tmp_path / "last", **options, keep="last")
    train(last.job())
    assert not torch.equal(best.weights(), last.weights())
    seen: list[torch.Tensor] = []
    spy = Rig(fresh(byte_level_tokenizer), tmp_path / "spy", **options)
    spy.log_hook = lambda r: seen.append(spy.weights()) if r.get("step") == 2 else None
    train(spy.job())
    assert torch.equal(best.weights(), seen[0])
    assert count_steps(8, stopped.settings) == 2


def test_early_stopping_counts_validations_without_improvement(
    byte_level_tokenizer: Any,
    tmp_path: Path,
) -> None:
    rig = Rig(
        fresh(byte_level_tokenizer),
        tmp_path,
        epochs=10,
        eval_every_steps=1,
        early_stopping=2,
        losses=[0.8, 0.5, 0.4, 0.5, 0.9, 0.1],
    )
    state = train(rig.job())
    assert (state.step, state.best_step, state.stopped) == (4, 2, True)


def test_the_weights_that_training_starts_from_may_be_the_best(
    byte_level_tokenizer: Any, tmp_path: Path
) -> None:
    rig = Rig(
        fresh(byte_level_tokenizer),
        tmp_path,
        epochs=2,
        eval_every_steps=2,
        losses=[0.1, 0.7, 0.8, 0.7],
    )
    before = rig.weights()
    assert train(rig.job()).best_step == 0
    assert torch.equal(rig.weights(), before)


def test_of_validations_that_cannot_be_told_apart_the_latest_is_kept(
    byte_level_tokenizer: Any, tmp_path: Path
) -> None:
    best = [0.1, 0.5, 0.2, 0.4]
    level = [0.4, 0.2, 0.5, 0.2]  # a higher mean, by chance
    worse = [0.9, 0.9, 0.8, 0.9]
    rig = Rig(
        fresh(byte_level_tokenizer),
        tmp_path,
        epochs=4,
        eval_every_steps=3,
        losses=[worse, best, level, worse, worse],
    )
    assert train(rig.job()).best_step == 6


def test_small_steps_upward_do_not_add_up() -> None:
    generator = np.random.default_rng(0)
    best = generator.random(50)
    creeping = [best + 0.02 * step for step in range(1, 30)]
    assert all(is_worse(found.tolist(), best.tolist()) for found in creeping)
    assert not is_worse((best + generator.normal(0, 0.3, 50)).tolist(), best.tolist())
    assert not is_worse([0.3], [0.3])


def test_running_out_of_memory_halves_the_budget_and_changes_nothing_else(
    byte_level_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calm = Rig(fresh(byte_level_tokenizer), tmp_path / "calm", epochs=1, token_budget=256)
    train(calm.job())
    tight = Rig(fresh(byte_level_tokenizer), tmp_path / "tight", epochs=1, token_budget=256)
    original = tight.objective.loss_sum

    def limited(items: Sequence[EncodedExample]) -> torch.Tensor:
        if len(items) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
        return original(items)

    monkeypatch.setattr(tight.objective, "loss_sum", limited)
    for parameter in (*calm.parameters.values(), *tight.parameters.values()):
        assert parameter.dtype == torch.float32
    state = train(tight.job())
    assert state.token_budget < 64
    notes = [r["text"] for r in tight.records() if r["kind"] == "note"]
    assert any("token budget halved to 128" in note for note in notes)
    assert len(calm.weights()) == len(tight.weights())


def test_before_training_the_longest_step_that_it_reaches_is_tried(
    byte_level_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the longest texts of all, where `max_steps` ends training before they come."""
    tried: list[list[int]] = []
    for steps in (1, 2, 3):
        settings = {"epochs": 1, "max_steps": steps, "token_budget": 4096}
        rig = Rig(fresh(byte_level_tokenizer), tmp_path / f"{steps}", **settings)
        for place, item in enumerate(rig.items):
            longer = np.concatenate([item.prompt_ids, item.prompt_ids[-1:].repeat(place)])
            rig.items[place] = dataclasses.replace(item, prompt_ids=longer)
        calls: list[list[EncodedExample]] = []
        original = rig.objective.loss_sum

        def counted(
            items: Sequence[EncodedExample], calls: Any = calls, original: Any = original
        ) -> torch.Tensor:
            calls.append(list(items))
            return original(items)

        monkeypatch.setattr(rig.objective, "loss_sum", counted)
        train(rig.job())
        assert len(calls) == 1 + steps + 1  # the last looks whether the weights are finite
        trained = sorted((i.num_tokens for call in calls[1:-1] for i in call), reverse=True)
        tried.append(sorted((item.num_tokens for item in calls[0]), reverse=True))
        assert tried[-1] == trained[:3]
    assert tried[0] != tried[2]


def test_a_step_that_starts_over_has_given_back_what_its_backward_pass_kept(
    byte_level_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(fresh(byte_level_tokenizer), tmp_path, epochs=1, token_budget=256)
    original, kept, alive = rig.objective.loss_sum, [], []

    def limited(items: Sequence[EncodedExample]) -> torch.Tensor:
        alive.extend(reference() is not None for reference in kept)

        def fails(gradient: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError

        loss = original(items)
        if len(items) > 1:
            loss.register_hook(fails)
            # The graph holds its hooks, so this lives as long as the graph does.
            kept.append(weakref.ref(fails))
        return loss

    monkeypatch.setattr(rig.objective, "loss_sum", limited)
    train(rig.job())
    assert len(kept) > 1
    assert alive
    assert not any(alive)


def test_memory_that_never_suffices_ends_in_a_message(
    byte_level_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(fresh(byte_level_tokenizer), tmp_path, epochs=1)

    def never(_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(rig.objective, "loss_sum", never)
    with pytest.raises(TrainingError, match="not suffice for a single example"):
        train(rig.job())


def test_a_loss_that_is_not_finite_stops_before_the_update(
    byte_level_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(fresh(byte_level_tokenizer), tmp_path, epochs=2)
    original, calls = rig.objective.loss_sum, []

    def poisoned(items: Sequence[EncodedExample]) -> torch.Tensor:
        calls.append(1)
        return original(items) * (math.nan if len(calls) == 4 else 1)

    monkeypatch.setattr(rig.objective, "loss_sum", poisoned)
    seen: list[torch.Tensor] = []
    rig.log_hook = lambda record: seen.append(rig.weights())
    with pytest.raises(TrainingError, match=r"Loss nan .* at step 3, before the update.*toy:"):
        train(rig.job())
    assert torch.equal(rig.weights(), seen[-1])


def test_the_schedule_warms_up_to_the_peak_and_decays_towards_zero() -> None:
    settings = TrainingSettings(learning_rate=1.0, warmup_fraction=0.2)
    rates = [learning_rate_at(step, total_steps=10, settings=settings) for step in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    none = settings.model_copy(update={"warmup_steps": 0})
    assert learning_rate_at(0, total_steps=10, settings=none) == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_optimizer_is_adamw_on_float32_masters(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    settings = TrainingSettings(weight_decay=0.1)
    ours = {f"p{i}": torch.nn.Parameter(torch.randn(3, i + 1).to(dtype)) for i in range(3)}
    theirs = [torch.nn.Parameter(p.detach().float()) for p in ours.values()]
    optimizer = MasterOptimizer(ours, settings)
    reference = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.1)
    for _ in range(5):
        for p, q in zip(ours.values(), theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.float().clone()
        optimizer.collect_gradients()
        norm = optimizer.clip(1.0)
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, 1.0)), rel=1e-5)
        optimizer.step(1e-2)
        reference.step()
    for p, q in zip(ours.values(), theirs, strict=True):
        torch.testing.assert_close(p.float(), q.to(dtype).float(), rtol=1e-5, atol=1e-6)


def test_an_unreadable_checkpoint_says_so(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(TrainingState(step=3), {"master/x": torch.zeros(2)})
    (tmp_path / "step-00000003" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="step-00000003 cannot be read"):
        checkpoints.load()


def test_a_new_checkpoint_replaces_the_old_one_and_comes_back_equal(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save_best(step, {"w": torch.full((2,), float(step))})
        state = TrainingState(step=step, best_step=step, best_losses=[0.5])
        checkpoints.save(state, {"master/x": torch.arange(3.0) + step})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best-00000002", "step-00000002"]
    loaded = checkpoints.load()
    assert loaded is not None
    assert dataclasses.asdict(loaded[0]) == dataclasses.asdict(state)
    assert loaded[1]["master/x"].tolist() == [2.0, 3.0, 4.0]
    assert checkpoints.load_best(2)["w"].tolist() == [2.0, 2.0]
    for step in (3, 4):  # better ones, of which a run that is killed now would not know
        checkpoints.save_best(step, {"w": torch.full((2,), float(step))})
    names = ["best-00000002", "best-00000004", "step-00000002"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    again = Checkpoints(tmp_path)
    again.load()
    again.save_best(5, {"w": torch.zeros(2)})
    names[1] = "best-00000005"
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_the_memory_account_charges_each_stage_with_what_it_added() -> None:
    account = MemoryAccount(torch.device("cpu"))
    kept = torch.ones(40_000_000)  # 160 MB
    account.stage("model")
    del kept
    account.stage("forward")
    assert account.by_stage["model"] > 100e6
    assert account.by_stage["forward"] < 30e6
