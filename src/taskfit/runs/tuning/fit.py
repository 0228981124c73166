"""Tune a model on rows of text: read, encode, measure, train, measure again, report."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskfit.data.instructions import InstructionRow
from taskfit.errors import SettingsError
from taskfit.runs.fit import Report
from taskfit.runs.records import RunResult
from taskfit.runs.run import base_model
from taskfit.runs.run_folder import check_fingerprint, open_folder
from taskfit.screen import Screen, SilentScreen
from taskfit.runs.settle import settle
from taskfit.runs.train_method import train_items
from taskfit.runs.tuning.data import TuningData, prepare_tuning
from taskfit.runs.tuning.measure import (
    Metrics,
    PreferenceMetrics,
    Reference,
    measure,
    pair_log_probs,
    to_plain,
)
from taskfit.runs.tuning.model import Decoding, TunedModel
from taskfit.runs.tuning.rows import prompt_of, prompt_text, reference_of
from taskfit.files import read_jsonl, write_text_atomic
from taskfit.methods.adapted import AdaptedModel
from taskfit.methods.dpo import DpoLoss
from taskfit.methods.sft import SftLoss, share_of_tokens_saved
from taskfit.models import LoadedModel, resolve_device
from taskfit.settings import RunSettings
from taskfit.tasks.chat import EncodedPreference, EncodedText
from taskfit.training import (
    Checkpoints,
    MemoryAccount,
    TrainingState,
    Validation,
    first_on_each_machine,
    gather,
    is_main,
    on_main,
    process_group,
    sum_over_processes,
)
from taskfit.training.trackers import check_trackers

METHODS = ("sft", "dpo")
SAMPLES = "samples.jsonl"
BEFORE = "before"


@dataclass(frozen=True, slots=True)
class TunedRun:
    """What `tune` gives back.

    Attributes:
        result: The contents of `result.json`; metrics by set are in its details.
        model: The tuned model.
    """

    result: RunResult
    model: TunedModel


@dataclass(slots=True)
class _Run:
    """A run under way: what its stages hand to each other."""

    settings: RunSettings
    folder: Path
    data: TuningData
    tuned: TunedModel
    items: dict[str, Sequence[Any]]
    reference: Reference
    memory: MemoryAccount
    screen: Screen
    samples: list[InstructionRow] = field(default_factory=list)


def is_tuning(settings: RunSettings) -> bool:
    """Return whether the settings are of a run of this kind."""
    return settings.method.name in METHODS


def tune(
    settings: RunSettings,
    folder: Path,
    *,
    resume: bool = False,
    screen: Screen | None = None,
    model: LoadedModel | None = None,
    name: str | None = None,
    report: Report | None = None,
) -> TunedRun:
    """Tune a model into a run's folder.

    Args:
        settings: All settings; `method.name` is sft or dpo.
        folder: The run's folder; must not hold another run.
        resume: Continue the interrupted run in the folder.
        screen: Where progress is shown.
        model: The base model, if the caller has loaded it already; an adapter stays in it.
        name: How tables call the run; None: the method's name.
        report: As for `taskfit.runs.fit.fit`.

    Raises:
        TaskfitError: If settings, data, model or folder do not allow it.
    """
    if not is_tuning(settings):
        raise SettingsError(f"method.name={settings.method.name} is no tuning: use sft or dpo.")
    with process_group(folder, settings) as own:
        return _tune(
            settings.resolved(), own, resume, screen or SilentScreen(), model, name, report
        )


def _tune(
    settings: RunSettings,
    folder: Path,
    resume: bool,
    screen: Screen,
    model: LoadedModel | None,
    name: str | None,
    report: Report | None,
) -> TunedRun:
    started, cpu_started = time.perf_counter(), time.process_time()
    check_trackers(settings)
    open_folder(settings, folder, resume=resume)
    data = first_on_each_machine(lambda: prepare_tuning(settings))
    check_fingerprint(folder, data.fingerprint, resume=resume)
    settings = settle(
        settings, folder, num_train=len(data.train), num_labels=0, mean_words=0.0, screen=screen
    )
    memory = MemoryAccount(resolve_device(settings.model.device))
    tuned = first_on_each_machine(
        lambda: TunedModel(settings, base_model(settings, model, memory, screen))
    )
    run = _Run(settings, folder, data, tuned, {}, {}, memory, screen)
    _encode(run)
    run.samples = _choose_samples(run)
    if not resume:
        (folder / SAMPLES).unlink(missing_ok=True)
    before = _measure_all(run, BEFORE)
    memory.stage("forward")
    method = AdaptedModel(tuned.model, settings)
    state, num_trainable = _train(run, method)
    label = name or settings.method.name
    tuned.save(folder, weights=settings.adapter.weights, name=label)
    after = _measure_all(run, "after")
    result = RunResult(
        name=label,
        method=settings.method.name,
        weights=settings.adapter.weights,
        model=tuned.model.name,
        task=f"{data.format} from {Path(str(settings.data.train)).name}",
        num_train=len(run.items["train"]),
        num_demonstrations=0,
        seed=settings.seed,
        evaluations={},
        duration_seconds=time.perf_counter() - started,
        training_seconds=state.seconds,
        peak_memory_bytes=sum(memory.by_stage.values()),
        memory_by_stage=memory.by_stage,
        tokens={"unique": state.num_tokens, "padded": state.num_padded_tokens},
        num_parameters=method.num_parameters,
        num_trainable=num_trainable,
        best_step=state.best_step,
        cpu_seconds=sum_over_processes(time.process_time() - cpu_started),
        details={"before": to_plain(before), "after": to_plain(after)},
    )
    result.save(folder)
    if report is not None and is_main():
        report(folder)
    Checkpoints(folder / "checkpoints").remove()
    return TunedRun(result, tuned)


def _encode(run: _Run) -> None:
    """Encode all sets, tell about them, and score what preferences are compared with."""
    screen, data = run.screen, run.data
    sets: dict[str, Sequence[InstructionRow]] = {"train": data.train, **data.sets}
    num_empty = 0
    with screen.progress("encoding", sum(map(len, sets.values()))) as advance:
        for name, rows in sets.items():
            run.items[name], empty = run.tuned.encode(rows)
            num_empty += empty
            advance(len(rows))
    counts = ", ".join(f"{name} {len(items):,}" for name, items in run.items.items())
    screen.note(f"rows read as {data.format}; {counts}")
    if data.num_dropped:
        screen.note(f"removed {data.num_dropped:,} training rows that stand in another set")
    if num_empty:
        screen.note(
            f"left out {num_empty:,} rows whose answers lie behind {run.tuned.encoder.max_length} "
            "tokens (model.max_length)"
        )
    texts = [text for item in run.items["train"] for text in _texts_of(item)]
    learned = sum(text.num_learned for text in texts)
    total = sum(text.num_tokens for text in texts)
    screen.note(
        f"{total:,} training tokens, {learned:,} of them learned; "
        f"{share_of_tokens_saved(texts):.1%} stand at a shared start and run once where they meet"
    )
    if run.settings.method.name == "dpo":
        # The reference is the model as it is now; with it nothing needs to be kept in memory.
        pairs = list({pair.id: pair for found in run.items.values() for pair in found}.values())
        run.reference = pair_log_probs(
            run.tuned, pairs, label="scoring the reference", screen=screen
        )


def _texts_of(item: EncodedText | EncodedPreference) -> list[EncodedText]:
    return [item] if isinstance(item, EncodedText) else [item.chosen, item.rejected]


def _train(run: _Run, method: AdaptedModel) -> tuple[TrainingState, int]:
    tree = run.tuned.model.tree
    loss: SftLoss | DpoLoss = SftLoss(tree)
    if run.settings.method.name == "dpo":
        loss = DpoLoss(
            tree,
            beta=run.settings.tuning.beta,
            reference=run.reference,
            gather=gather,
        )
    return train_items(
        run,
        method,
        run.items["train"],
        objective=lambda: loss,
        rendered=lambda: _rendered(run),
        validate=(lambda: _validate(run, loss.step)) if "validation" in run.items else None,
        validates_start=False,  # the model before training has been measured already
    )


def _rendered(run: _Run) -> list[str]:
    """Return the first row as the model sees it, what is learned between guillemets."""
    decode = run.tuned.model.tokenizer.decode
    (text, *_) = _texts_of(run.items["train"][0])
    parts, start = [], 0
    changes = [i for i in range(1, text.num_tokens) if text.is_learned[i] != text.is_learned[i - 1]]
    for end in [*changes, text.num_tokens]:
        piece = decode(text.ids[start:end].tolist())
        parts.append(f"«{piece}»" if text.is_learned[start] else piece)
        start = end
    return [f"{text.id}: {''.join(parts)}"]


def _measure_all(run: _Run, when: str) -> dict[str, Metrics]:
    """Measure every held-out set, and answer the sample prompts."""
    found = {
        name: measure(
            run.tuned,
            items,
            reference=run.reference,
            # Before training the model is its own reference.
            policy=run.reference if when == BEFORE else None,
            label=f"{name} {when}",
            screen=run.screen,
        )
        for name, items in run.items.items()
        if name != "train"
    }
    _sample(run, when, run.screen)
    return found


def _validate(run: _Run, step: int) -> Validation:
    """Measure the validation set after a step, and answer the sample prompts."""
    metrics = measure(
        run.tuned,
        run.items["validation"],
        reference=run.reference,
        label="validation",
        screen=SilentScreen(),
    )
    if isinstance(metrics, PreferenceMetrics):
        shown = {name: getattr(metrics, name) for name in ("reward_accuracy", "reward_margin")}
    else:
        shown = {"perplexity": metrics.perplexity}
    # Its bar would stand in the training's.
    _sample(run, f"step {step}", SilentScreen())
    return Validation(metrics.loss, shown)


def _sample(run: _Run, when: str, screen: Screen) -> None:
    """Answer some held-out prompts, once at each time, and keep the answers for the report."""
    if run.samples:
        # The main process answers, the others wait; where it fails, all end with its message.
        on_main(lambda: _answer_samples(run, when, screen))


def _answer_samples(run: _Run, when: str, screen: Screen) -> None:
    records = read_jsonl(run.folder / SAMPLES)
    # A run that resumes comes by the same steps again.
    if any(record["when"] == when for record in records):
        return
    prompts = [prompt_of(row) for row in run.samples]
    decoding = Decoding(max_new_tokens=run.settings.tuning.max_new_tokens)
    with screen.progress(f"answering samples {when}", len(prompts)) as advance:
        answers = run.tuned.answer(prompts, decoding, advance=advance)
    records += [
        {
            "when": when,
            "id": row.id,
            "prompt": prompt_text(row),
            "reference": reference_of(row),
            "answer": answer,
        }
        for row, answer in zip(run.samples, answers, strict=True)
    ]
    # All answers of one time or none.
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_text_atomic(run.folder / SAMPLES, "".join(lines))


def _choose_samples(run: _Run) -> list[InstructionRow]:
    """Return the first held-out rows whose prompts leave room for an answer."""
    tuning, chosen = run.settings.tuning, list[InstructionRow]()
    for row in run.data.validation or run.data.train:
        if len(chosen) == tuning.num_samples:
            break
        if run.tuned.room_after(prompt_of(row)) >= tuning.max_new_tokens:
            chosen.append(row)
    if len(chosen) < min(tuning.num_samples, len(run.data.validation or run.data.train)):
        run.screen.note(
            f"only {len(chosen)} prompts leave room for a sample answer of "
            f"{tuning.max_new_tokens} tokens (tuning.max_new_tokens)"
        )
    return chosen
