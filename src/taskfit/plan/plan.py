"""What a run will need, before anything is downloaded: memory by part, and time of an epoch.

Memory is found by running the training step on tensors without contents (`simulate.py`), time by
arithmetic (`timing.py`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PretrainedConfig

from taskfit.errors import SettingsError, TaskfitError, first_line
from taskfit.method_settings import TUNING
from taskfit.methods.objective import TreeObjective
from taskfit.plan.cards import Card
from taskfit.plan.frozen import FrozenPlan, plan_frozen
from taskfit.plan.host import HostMemory, host_memory
from taskfit.plan.model import ModelCount, meta_model, prepare_weights
from taskfit.plan.shapes import KNOWN_SHAPES, known_config
from taskfit.plan.simulate import SimulatedModel, SimulatedScoring, SimulatedStep
from taskfit.plan.timing import TimePlan, plan_time
from taskfit.plan.tokens import Epoch, Workload, plan_epoch
from taskfit.runs.kind import Size
from taskfit.settings import RunSettings
from taskfit.training.length import settle_length
from taskfit.training.loop import TOKEN_BUDGET

# Trained methods: the step of the first four is the label-word step, or as good as, since `head`
# reads the same nodes.
TRAINED = ("label_words", "label_text", "head", "distill", *TUNING)
READING = ("in_context", "probe", "knn")
# Bytes of both of Adam's moments for a weight: float32, or 8 bits with a float32 scale for each
# 256 (Dettmers et al. 2022, arXiv:2110.02861).
MOMENT_BYTES = {"adamw": 8.0, "adamw8bit": 2 + 8 / 256, "paged_adamw8bit": 2 + 8 / 256}
MIN_TOKEN_BUDGET = 64


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Predicted memory (bytes).

    Attributes:
        count: The model's parameters and what they take.
        moment_bytes: Adam's moments.
        step: A training step, or None for a method that only reads the model.
        scoring: A forward pass of scoring.
        before: The largest pass over what the frozen layers run once; None if there is none.
        frozen: Layers that are not trained, and what is kept of what they give out.
        epoch: Tokens of an epoch, and the step that was simulated.
        host: What a CPU needs beside tensors; nothing on a GPU.
        ready_bytes: Frozen weights laid out once more for training on a CPU.
        refusal: Why the model runs padded, one clause; None: by the token tree.
        unknown: Why it is not known what passes take; None: it is.
    """

    count: ModelCount
    moment_bytes: int
    step: SimulatedStep | None
    scoring: SimulatedScoring
    before: SimulatedScoring | None
    frozen: FrozenPlan
    epoch: Epoch
    host: HostMemory
    ready_bytes: int = 0
    refusal: str | None = None
    unknown: str | None = None

    @property
    def trains(self) -> bool:
        """Return whether the run trains in steps."""
        return self.count.num_trainable > 0

    @property
    def static_bytes(self) -> int:
        """Return what stays in memory through all of training."""
        count = self.count
        weights = count.weight_bytes + self.ready_bytes + count.adapter_bytes
        return weights + count.master_bytes + self.moment_bytes

    @property
    def tensor_bytes(self) -> int:
        """Return the most in tensors at once: in training, and what is read before and between."""
        found = (self.step, self.scoring, self.before)
        return self.static_bytes + max(part.peak_bytes for part in found if part is not None)

    @property
    def peak_bytes(self) -> int:
        """Return the most needed at once, with what is not in tensors."""
        beside = self.host.resident_bytes + self.host.heap_bytes + self.host.states_bytes
        return max(self.tensor_bytes + beside, self.loading_bytes)

    @property
    def loading_bytes(self) -> int:
        """Return the most needed while the weights are loaded."""
        packing = self.host.temporary_bytes if self.count.num_packed else 0
        return self.count.weight_bytes + self.host.loading_bytes + packing

    @property
    def by_stage(self) -> dict[str, int]:
        """Return what each stage of a run adds, as `MemoryAccount` charges it."""
        weights = self.count.weight_bytes + self.host.loaded_bytes
        model = max(weights, self.loading_bytes)
        forward = max(model, weights + self.scoring.peak_bytes)
        adapter = max(forward, weights + self.count.adapter_bytes)
        stages = {"model": model, "forward": forward - model}
        if self.step is not None:
            stages["adapter"] = adapter - forward
            stages["training"] = max(0, self.peak_bytes - adapter)
        return stages


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that `taskfit plan` tells.

    Attributes:
        settings: What was planned.
        source: Where the model's configuration is from.
        card: For which device.
        dtype: Of weights and arithmetic.
        workload: The examples.
        memory: Predicted memory.
        time: Predicted time.
        remedy: What to change so that it fits, with the memory then needed; None if it fits.
    """

    settings: RunSettings
    source: str
    card: Card
    dtype: torch.dtype
    workload: Workload
    memory: MemoryPlan
    time: TimePlan
    remedy: tuple[str, int] | None

    @property
    def needed_bytes(self) -> int:
        """Return what the card must have."""
        return self.memory.peak_bytes + self.card.reserved_bytes

    @property
    def fits(self) -> bool:
        """Return whether it fits."""
        return self.needed_bytes <= self.card.memory_bytes


def make_plan(
    settings: RunSettings, card: Card, workload: Workload, *, config: PretrainedConfig, source: str
) -> Plan:
    """Predict memory and time of a run.

    Args:
        settings: Of the run.
        card: The device.
        workload: The examples.
        config: The model's configuration.
        source: Where that is from.

    Raises:
        SettingsError: If the method does not use a causal language model on this machine.
        ModelError: If it is no causal language model.
    """
    refuse_without_model(settings)
    settings = settled(settings, workload.size)
    dtype = card.dtype(settings.model.dtype)

    def memory_of(changed: RunSettings, shape: PretrainedConfig = config) -> MemoryPlan:
        return plan_memory(changed, shape, workload, dtype=dtype, on_cpu=card.is_cpu)

    memory = memory_of(settings)
    count, epoch = memory.count, memory.epoch
    time = plan_time(settings, count, epoch, workload, frozen=memory.frozen, card=card, dtype=dtype)
    plan = Plan(settings, source, card, dtype, workload, memory, time, None)
    if plan.fits:
        return plan
    room = card.memory_bytes - card.reserved_bytes
    remedy = find_remedy(settings, memory_of, room=room, dtype=dtype, longest=epoch.longest)
    return replace(plan, remedy=remedy and (remedy[0], remedy[1] + card.reserved_bytes))


def refuse_without_model(settings: RunSettings) -> None:
    """Refuse a method that loads no causal language model.

    Raises:
        SettingsError: If these settings name one.
    """
    method = settings.resolved().method
    if method.reads_model:
        return
    setting = {"knn": "retriever", "probe": "features"}.get(method.name)
    how = f" with method.{setting}={method.model_dump()[setting]}" if setting is not None else ""
    raise SettingsError(
        f"method {method.name} needs no causal language model{how}, so there is nothing to plan. "
        f"Plans are made for: {', '.join((*TRAINED, *READING))}"
        f"{f' ({method.name} with method.{setting}=model)' if setting is not None else ''}."
    )


def settled(settings: RunSettings, size: Size) -> RunSettings:
    """Return resolved settings with the length of training in numbers, as a run takes them."""
    return settle_length(
        settings.resolved(),
        num_train=size.num_train,
        num_labels=size.num_labels,
        mean_words=size.mean_words,
    )[0]


def plan_memory(
    settings: RunSettings,
    config: PretrainedConfig,
    workload: Workload,
    *,
    dtype: torch.dtype,
    on_cpu: bool,
) -> MemoryPlan:
    """Simulate the heaviest training step, and what runs without gradients before and between."""
    trains = settings.method.name in TRAINED
    model = SimulatedModel(config, settings.adapter, dtype=dtype, on_cpu=on_cpu, trains=trains)
    objective = workload.objective(model.tree, settings)
    training = settings.training
    largest = objective.largest(workload.items)
    budget = max(largest, training.token_budget or TOKEN_BUDGET)
    epoch = plan_epoch(workload, objective, settings, token_budget=budget)
    frozen = plan_frozen(
        workload,
        objective,
        settings,
        num_frozen=model.tree.first_trained,
        num_layers=model.tree.num_layers,
        token_bytes=model.token_bytes,
        token_budget=budget,
    )
    scoring, before, step, unknown = _simulate(
        model,
        workload=workload,
        objective=objective,
        settings=settings,
        frozen=frozen,
        epoch=epoch,
    )
    moments = MOMENT_BYTES[training.optimizer] * model.count.num_trainable if trains else 0
    host = None
    if on_cpu:
        # Collected gradients are one large tensor, which is mapped and leaves no hole.
        reading = max(part.peak_bytes for part in (scoring, before) if part is not None)
        dynamic = max(step.backward_bytes if step is not None else 0, reading)
        host = host_memory(
            model.count,
            config,
            dtype=dtype,
            dynamic_bytes=dynamic,
            states_bytes=frozen.memory_bytes,
        )
    return MemoryPlan(
        model.count,
        round(moments),
        step,
        scoring,
        before,
        frozen,
        epoch,
        host or HostMemory(),
        ready_bytes=model.ready_bytes,
        refusal=model.tree.refusal,
        unknown=unknown,
    )


def _simulate(
    model: SimulatedModel,
    *,
    workload: Workload,
    objective: TreeObjective[Any],
    settings: RunSettings,
    frozen: FrozenPlan,
    epoch: Epoch,
) -> tuple[SimulatedScoring, SimulatedScoring | None, SimulatedStep | None, str | None]:
    """Return what scoring, the passes of frozen layers, and a training step allocate.

    The last is why that is not known; None: it is.
    """
    training = settings.training
    before = step = None
    try:
        scoring = model.score(
            workload.prefix_ids,
            lambda prefix: workload.score(model.tree, prefix, training.score_token_budget),
        )
        if frozen.heaviest is not None:
            before = model.keep(frozen.heaviest.tree)
        if settings.method.name in TRAINED:
            found = frozen.num_before > 0
            step = model.train_step(epoch.heaviest, objective, training, finds_states=found)
    except TaskfitError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        if model.tree.shares_prefixes:
            raise
        # What recurrent layers compute may hang on numbers, and here are none.
        return SimulatedScoring(0, 0, 0), None, None, first_line(error)
    return scoring, before, step, None


def find_remedy(
    settings: RunSettings,
    memory_of: Callable[..., MemoryPlan],
    *,
    room: int,
    dtype: torch.dtype,
    longest: int,
) -> tuple[str, int] | None:
    """Return the first change that fits, as flags, and the memory then needed; None if none does.

    In this order, each with those before it: gradient checkpointing, a lower token budget, a base
    in 4 bits, a smaller model.

    Args:
        settings: Of the run.
        memory_of: Plans other settings, and another model's configuration if one is given.
        room: What the card has for a process (bytes).
        dtype: Of weights and arithmetic.
        longest: Tokens that the largest example needs in one forward pass.
    """
    largest, with_flags, changed = 0, "", settings
    for with_flags, changed in _remedies(settings, longest):
        memory = memory_of(changed)
        if memory.peak_bytes <= room:
            return with_flags, memory.peak_bytes
        largest = memory.count.num_parameters
    sizes: dict[str, ModelCount] = {}
    for name in KNOWN_SHAPES:
        model = meta_model(known_config(name), dtype)
        sizes[name] = prepare_weights(model, changed.adapter, dtype=dtype, trains=False)
    # The largest first; one whose weights alone do not fit need not be simulated.
    for name, size in sorted(sizes.items(), key=lambda one: -one[1].num_parameters):
        if size.num_parameters >= largest or size.weight_bytes > room:
            continue
        memory = memory_of(changed, known_config(name))
        if memory.peak_bytes <= room:
            return f"a smaller model, such as {name}, with {with_flags}", memory.peak_bytes
    return None


def _remedies(settings: RunSettings, longest: int) -> Iterator[tuple[str, RunSettings]]:
    """Yield flags and settings, cheapest change first."""
    budget = settings.training.token_budget or max(TOKEN_BUDGET, longest)
    bases = [("", settings)]
    if settings.adapter.weights != "qlora":
        adapter = settings.adapter.model_copy(update={"weights": "qlora"})
        bases.append(("--weights qlora", settings.model_copy(update={"adapter": adapter})))
    for base_flags, base in bases:
        if base_flags:
            yield base_flags, base
        if settings.method.name in READING:
            continue
        flags = f"{base_flags} --set training.gradient_checkpointing=true".strip()
        changes: list[tuple[str, dict[str, int]]] = []
        if not settings.training.gradient_checkpointing:
            changes.append((flags, {}))
        lower = budget // 2
        while lower >= max(longest, MIN_TOKEN_BUDGET):
            changes.append(
                (f"{flags} --set training.token_budget={lower}", {"token_budget": lower})
            )
            lower //= 2
        for shown, change in changes:
            update = {"gradient_checkpointing": True, **change}
            training = base.training.model_copy(update=update)
            yield shown, base.model_copy(update={"training": training})
