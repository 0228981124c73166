"""`taskfit plan`: memory and time of a run, before anything is downloaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from taskfit.cli.flags import (
    BatchSizeOption,
    ConfigOption,
    DataOption,
    EpochsOption,
    LabelOption,
    MethodOption,
    MethodsOption,
    SetOption,
    TableArgument,
    TaskOption,
    TestFractionOption,
    TextOption,
    WeightsOption,
    data_flags,
    nested,
    one_method,
    read_settings,
    tell,
    training_flags,
)
from taskfit.cli.screen import Terminal, plain_table
from taskfit.errors import ModelError, SettingsError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from taskfit.plan.frozen import FrozenPlan
    from taskfit.plan.plan import Plan
    from taskfit.plan.tokens import Workload
    from taskfit.settings import RunSettings

TOKENS, ANSWER_TOKENS, EXAMPLES = 128, 128, 1000
MADE_LABELS = 2


def plan(
    table: TableArgument = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Hub id, folder, packaged or known shape.")
    ] = None,
    weights: WeightsOption = None,
    method: MethodOption = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="cpu, t4, l4, a100, h100, 4090, ...; else at hand.")
    ] = None,
    data: DataOption = None,
    text: TextOption = None,
    label: LabelOption = None,
    task: TaskOption = None,
    epochs: EpochsOption = None,
    batch_size: BatchSizeOption = None,
    test_fraction: TestFractionOption = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens",
            help="Mean tokens of a prompt, without the label word or the answer behind it; instead "
            f"of data; else {TOKENS}.",
        ),
    ] = None,
    answer_tokens: Annotated[
        int | None,
        typer.Option(
            "--answer-tokens",
            help="sft, dpo: mean tokens of an answer, which are learned; dpo has two such answers "
            f"to a prompt; else {ANSWER_TOKENS}.",
        ),
    ] = None,
    shared: Annotated[
        int | None, typer.Option("--shared", help="Of these, shared by all prompts; else 0.")
    ] = None,
    examples: Annotated[
        int | None, typer.Option("--examples", help=f"Of an epoch, without data; else {EXAMPLES}.")
    ] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config-file", help="The model's config.json.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    methods: MethodsOption = None,
) -> None:
    """Predict memory by part and time per epoch from a model's config and token lengths alone.

    With TABLE and a tokenizer on this machine, lengths are those of the rows; else --tokens (and
    for sft and dpo --answer-tokens) says how long they are: a row of sft is a prompt with its
    answer, a pair of dpo is one prompt with two answers. Of a raw text, of which all is learned,
    give --tokens 1.
    """
    others = {"method.name": one_method("plan", method, methods), "adapter.weights": weights}
    flags = data_flags(
        table=table, data=data, text=text, label=label, task=task, model=model, others=others
    )
    training = training_flags(epochs=epochs, batch_size=batch_size, test_fraction=test_fraction)
    settings = _read_settings(config, flags, training, set_)

    from taskfit.plan.shapes import find_config, refuse_out_of_reach

    if config_file is None and settings.method.reads_model:
        refuse_out_of_reach(settings.model.name)

    from taskfit.plan.cards import find_card, names_card_at_hand
    from taskfit.plan.plan import make_plan, refuse_without_model

    refuse_without_model(settings)
    card = find_card(gpu or names_card_at_hand())
    found, source = find_config(
        settings.model.name, revision=settings.model.revision, file=config_file
    )
    lengths = {
        "--tokens": tokens,
        "--answer-tokens": answer_tokens,
        "--shared": shared,
        "--examples": examples,
    }
    given = {flag: value for flag, value in lengths.items() if value is not None}
    workload = _workload(settings, found, given)
    show_plan(make_plan(settings, card, workload, config=found, source=source), Terminal())


def _read_settings(
    config: str | None,
    flags: dict[str, Any],
    training: Mapping[str, Any],
    overrides: Sequence[str] | None,
) -> "RunSettings":
    """Return the settings of a plan; flags of a training that there is not are told, not refused.

    Whoever compares plans of several methods changes --method alone.
    """
    from taskfit.settings_base import merge_settings
    from taskfit.unread import is_read

    kind = type(read_settings(config, flags, overrides, is_told=False).method)
    for setting, value in training.items():
        if value is None or is_read(setting, kind):
            merge_settings(flags, nested({setting: value}))
        else:
            flag = setting.partition(".")[2].replace("_", "-")
            tell(f"--{flag} has no part in a method that is not trained in steps: left out")
    return read_settings(config, flags, overrides)


def _workload(
    settings: "RunSettings", config: "PretrainedConfig", given: Mapping[str, int]
) -> "Workload":
    """Return the examples of a plan: those of the data where they can be measured, or made ones.

    Args:
        settings: Of the run.
        config: Of the model.
        given: What the flags say of made examples.

    Raises:
        TaskfitError: If flags contradict each other, the data cannot be read, or there is neither
            a tokenizer to measure the data nor a number.
    """
    from taskfit.plan.plan import settled
    from taskfit.plan.tokens import WORDS_PER_TOKEN, made_workload, real_workload
    from taskfit.plan.tuning import made_rows, real_rows
    from taskfit.runs.kind import Size
    from taskfit.settings import known

    tunes = settings.method.is_tuning
    if "--answer-tokens" in given and not tunes:
        raise SettingsError(
            f"--answer-tokens is for --method sft and dpo; {settings.method.name} reads a label "
            "behind a prompt. Leave it out."
        )
    has_data = settings.data.train is not None or settings.task.name is not None
    if "--tokens" not in given and has_data:
        real = real_rows(settings, config) if tunes else real_workload(settings, config)
        if real is None:
            raise ModelError(
                f"The tokenizer of {settings.model.name!r} is not on this machine, so the texts "
                "cannot be measured. Give the mean tokens of a prompt with --tokens (and "
                "--answer-tokens for sft and dpo, --shared, --examples), or the folder of a model "
                "with its tokenizer."
            )
        if given:
            raise SettingsError(
                f"The lengths are measured from the data, so {', '.join(given)} would have no "
                "effect. Leave it out, or give --tokens too to plan for made examples instead."
            )
        return real
    tokens, shared = given.get("--tokens", TOKENS), given.get("--shared", 0)
    examples = given.get("--examples", EXAMPLES)
    words = WORDS_PER_TOKEN * tokens
    size = Size(examples, 0, 0.0) if tunes else Size(examples, MADE_LABELS, words)
    settings = settled(settings, size)
    if tunes:
        answer = given.get("--answer-tokens", ANSWER_TOKENS)
        return made_rows(
            settings, tokens=tokens, answer_tokens=answer, shared=shared, examples=examples
        )
    return made_workload(
        tokens=tokens,
        shared=shared,
        examples=examples,
        batch_size=known(settings.training.batch_size),
        num_labels=MADE_LABELS,
    )


def show_plan(plan: "Plan", console: Terminal) -> None:
    """Print a plan, readable on 80 columns."""
    from taskfit.models.served import padded_note

    settings, memory = plan.settings, plan.memory
    dtype = str(plan.dtype).removeprefix("torch.")
    for line in (
        f"model    {settings.model.name}: {memory.count.num_parameters:,} parameters, "
        f"{memory.count.num_trainable:,} trained ({plan.source})",
        f"run      {settings.method.name}, {settings.adapter.weights}, {dtype}, batch "
        f"{settings.training.batch_size}, "
        f"checkpointing {'on' if settings.training.gradient_checkpointing else 'off'}",
        f"{plan.workload.unit:<8} {plan.workload.num_examples:,}, {plan.workload.source}",
        *([f"engine   {padded_note(memory.refusal)}"] if memory.refusal is not None else []),
        *([f"layers   {trained_layers(memory.frozen)}"] if memory.trains else []),
    ):
        console.print(line, soft_wrap=True)
    console.print("", _memory_table(plan), sep="\n")
    _say_whether_it_fits(plan, console)
    console.print("", _time_table(plan), sep="\n")
    console.print(
        f"\nAt {plan.time.rate / 1e12:.3g} TFLOP/s in {dtype} "
        f"({'measured here just now' if plan.card.is_cpu else 'the data sheet'}) x "
        f"{plan.time.utilization:.0%} utilisation (assumed). Nothing was downloaded but, from the "
        "hub, the model's config."
    )


def trained_layers(frozen: "FrozenPlan") -> str:
    """Say which layers are trained, and what is kept of what the others give out."""
    if not frozen.num_frozen:
        return f"all {frozen.num_layers} are trained"
    start = f"the upper {frozen.num_layers - frozen.num_frozen} of {frozen.num_layers} are trained"
    sizes = [(frozen.memory_bytes, "in main memory"), (frozen.file_bytes, "in the run folder")]
    kept = " and ".join(f"{size / 1e9:.2f} GB {place}" for size, place in sizes if size)
    if frozen.num_before:
        return f"{start}; the others run once, what they give out is kept: {kept}"
    rest = f"what validations meet again is kept: {kept}" if kept else "nothing is kept"
    return f"{start}; the others run in each step, without gradients; {rest}"


def _memory_table(plan: "Plan") -> Table:
    table = plain_table("memory", ">GB", "")
    for name, size, note in memory_rows(plan):
        table.add_row(name, f"{size / 1e9:.2f}", note)
    card = f"of {plan.card.memory_bytes / 1e9:.1f} GB ({plan.card.name})"
    table.add_row("peak", f"{plan.needed_bytes / 1e9:.2f}", card, style="bold")
    return table


def memory_rows(plan: "Plan") -> list[tuple[str, int, str]]:
    """Return name, bytes and a note for each part; together they are what the card must have."""
    memory, count = plan.memory, plan.memory.count
    bits = f"{plan.dtype.itemsize * 8}-bit"
    rows = []
    if count.num_packed:
        double = "double" if plan.settings.adapter.double_quantization else "single"
        rows.append(("weights in NF4", count.packed_bytes, f"{count.num_packed:,} weights"))
        rows.append(("their scales", count.scale_bytes, f"{double} quantization"))
    left = "embeddings, norms, LM head" if count.num_packed else ""
    rows.append((f"weights in {bits}", count.base_bytes, left))
    if memory.trains:
        optimizer = plan.settings.training.optimizer
        rows += [
            ("laid out for training", memory.ready_bytes, "frozen weights, once more"),
            ("adapter", count.adapter_bytes, f"{count.num_adapter:,} weights"),
            ("float32 masters", count.master_bytes, ""),
            ("Adam moments", memory.moment_bytes, optimizer),
        ]
    dynamic = memory.tensor_bytes - memory.static_bytes
    rows += _dynamic_rows(plan, dynamic)
    rows += [
        ("tokenizer, generated code", memory.host.resident_bytes - memory.host.mapped_bytes, ""),
        ("file of the weights", memory.host.mapped_bytes, "mapped beside them"),
        ("unused in the heap", memory.host.heap_bytes, "between tensors"),
        ("kept states", memory.host.states_bytes, f"of {memory.frozen.num_kept:,} tokens"),
    ]
    running = sum(size for _, size, _ in rows)
    rows.append(("more, while loading", memory.peak_bytes - running, "weights in two formats"))
    if plan.card.reserved_bytes:
        rows.append(("CUDA context", plan.card.reserved_bytes, "assumed"))
    return [row for row in rows if row[1]]


def _dynamic_rows(plan: "Plan", dynamic: int) -> list[tuple[str, int, str]]:
    step, scoring, before = plan.memory.step, plan.memory.scoring, plan.memory.before
    if before is not None and before.peak_bytes > scoring.peak_bytes:
        scoring = before
    if step is None or scoring.peak_bytes > step.peak_bytes:
        tokens = f"{scoring.num_tokens:,} tokens at once"
        return [
            ("prefix keys and values", scoring.prefix_bytes, "kept between passes"),
            ("forward pass", dynamic - scoring.prefix_bytes, tokens),
        ]
    if step.peak_bytes > step.backward_bytes:
        return [("gradients, twice in float32", dynamic, "while they are collected")]
    per_token = step.kept_bytes / step.num_tokens / 1e3
    tokens = "unique tokens" if plan.memory.refusal is None else "padded tokens"
    note = f"{step.num_tokens:,} {tokens} x {per_token:,.0f} kB"
    return [
        ("kept for backward", step.kept_bytes, note),
        ("gradients, working space", dynamic - step.kept_bytes, ""),
    ]


def _say_whether_it_fits(plan: "Plan", console: Terminal) -> None:
    if plan.memory.unknown is not None:
        console.print(
            f"What stays in memory {'fits' if plan.fits else 'does not fit'}; what the passes take "
            f"cannot be told without this model's numbers ({plan.memory.unknown})",
            style="yellow",
            soft_wrap=True,
        )
        return
    if plan.fits:
        console.print("It fits.", style="green")
        return
    console.print("It does not fit.", style="red")
    if plan.remedy is None:
        text = "Nothing that is known here makes it fit; take a larger card."
    else:
        change, size = plan.remedy
        text = f"First change that fits ({size / 1e9:.2f} GB): {change}"
    console.print(text, soft_wrap=True)


def _time_table(plan: "Plan") -> Table:
    time, epoch = plan.time, plan.memory.epoch
    what = "epoch" if plan.memory.trains else "pass"
    table = plain_table(f"one {what}", ">tokens", ">PFLOP", ">time")
    shares = plan.memory.refusal is None
    what_runs = "unique tokens" if shares else "texts of like length"
    padded = "padded to the longest of a batch"
    rows = [
        (f"{what_runs} (taskfit)", epoch.num_run, time.flops, time.seconds),
        (padded, epoch.num_padded, time.padded_flops, time.padded_seconds),
    ]
    if time.before_flops:
        names = [("the reference", plan.workload.scores_before)]
        names.append(("frozen layers", plan.memory.frozen.num_before > 0))
        before = "once, before: " + ", ".join(name for name, runs in names if runs)
        rows.append((before, time.before_tokens, time.before_flops, time.before_seconds))
    epochs = plan.settings.training.epochs
    if plan.memory.trains and epochs != "auto":
        # What a run takes as a whole, validations and evaluation left out.
        tokens = round(epochs * epoch.num_run) + time.before_tokens
        operations = epochs * time.flops + time.before_flops
        seconds = epochs * time.seconds + time.before_seconds
        rows.append((f"training of {epochs:g} epochs", tokens, operations, seconds))
    for name, tokens, flops, seconds in rows:
        table.add_row(name, f"{tokens:,}", f"{flops / 1e15:,.3g}", duration(seconds))
    return table


def duration(seconds: float) -> str:
    """Return a duration for people, such as `36 min`."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
