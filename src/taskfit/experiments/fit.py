"""Fit one run: prepare data, load the model, train where the method trains, evaluate, report.

The run folder is filled in an order in which an interruption loses nothing: resolved settings
first, then metrics and checkpoints, then the weights, then the evaluations.
"""

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from taskfit.data import Example
from taskfit.errors import DataError, SettingsError
from taskfit.evaluation import Evaluation
from taskfit.experiments.calibration import calibrate, coverage_record, hold_out
from taskfit.experiments.classifier import Classifier, Weights
from taskfit.experiments.predictions import renaming_note, write_predictions
from taskfit.experiments.prepare import PreparedData, prepare_data
from taskfit.experiments.records import RunResult
from taskfit.experiments.report import HardExample, hardest, report_run
from taskfit.experiments.run import Run, model_of
from taskfit.experiments.run_folder import check_fingerprint, open_folder
from taskfit.experiments.screen import Screen, SilentScreen
from taskfit.experiments.search.records import SearchRecord
from taskfit.experiments.search.search import (
    FoundSettings,
    search_settings,
    settings_of_search,
)
from taskfit.experiments.search.setup import refuse_unserved
from taskfit.experiments.slices import (
    check_slices,
    measure_slices,
    slice_columns,
    slices_text,
    write_slices,
)
from taskfit.experiments.train_method import train_method
from taskfit.methods.method import Method, MethodContext, TrainedMethod
from taskfit.methods.table import METHODS
from taskfit.models import LoadedModel, resolve_device
from taskfit.settings import RunSettings
from taskfit.training import (
    Checkpoints,
    MemoryAccount,
    TrainingState,
    divided,
    first_on_each_machine,
    gather,
    is_main,
    process_group,
    sum_over_processes,
)
from taskfit.training.trackers import check_trackers, open_trackers

LATENCY_TEXTS = 5
TRACKED_FILES = ("settings.yaml", "result.json", "report.html")


@dataclass(frozen=True, slots=True)
class FittedRun:
    """What `fit` gives back.

    Attributes:
        result: The contents of `result.json`.
        classifier: Ready for prediction.
    """

    result: RunResult
    classifier: Classifier


def fit(
    settings: RunSettings,
    folder: Path,
    *,
    resume: bool = False,
    screen: Screen | None = None,
    model: LoadedModel | None = None,
    name: str | None = None,
    report: bool = True,
) -> FittedRun:
    """Fit one run into a folder.

    Args:
        settings: All settings.
        folder: The run's folder; must not hold another run.
        resume: Continue the interrupted run in the folder.
        screen: Where progress is shown.
        model: The base model, if the caller has loaded it already; an adapter stays in it.
        name: How tables call the run; None: the method's name.
        report: Whether to draw pictures and write `report.html`.

    Raises:
        TaskfitError: If settings, data, model or folder do not allow it.
    """
    with process_group(folder, settings) as own, ExitStack() as stack:
        return _fit(stack, settings, own, resume, screen or SilentScreen(), model, name, report)


def _fit(
    stack: ExitStack,
    settings: RunSettings,
    folder: Path,
    resume: bool,
    screen: Screen,
    model: LoadedModel | None,
    name: str | None,
    report: bool,
) -> FittedRun:
    started, cpu_started = time.perf_counter(), time.process_time()
    settings = settings_of_search(settings.resolved(), folder, resume=resume)
    check_trackers(settings)
    open_folder(settings, folder, resume=resume)
    data = first_on_each_machine(lambda: prepare_data(settings))
    check_fingerprint(folder, data.fingerprint, resume=resume)
    check_slices(settings, data.evaluations or {"validation": data.validation})
    held_out = hold_out(data.validation, settings)
    data = replace(data, validation=held_out.validation)
    _tell_about_data(data, screen)
    found: FoundSettings | None = None
    if settings.search.wanted:
        found, model = _search(settings, folder, data, model, screen)
        settings, data = found.settings, found.data
    searched = found.record if found is not None else SearchRecord.load(folder)
    memory = MemoryAccount(resolve_device(settings.model.device))
    method = first_on_each_machine(
        lambda: METHODS[settings.method.name](
            MethodContext(
                settings,
                data.task,
                data.demonstrations,
                model_of(settings, model, memory, screen),
            )
        )
    )
    _check_learnable(method, data)
    classifier = Classifier(method)
    label = name or settings.method.name
    trackers = stack.enter_context(open_trackers(settings, folder, name=label, note=screen.note))
    run = Run(settings, folder, data, classifier, memory, screen, label, started)
    _rehearse(run)
    method.prepare(data.train, data.validation)
    state, num_trainable = TrainingState(), 0
    weights: Weights = "none"
    if isinstance(method, TrainedMethod):
        state, num_trainable = train_method(run, method, trackers=trackers)
        weights = settings.adapter.weights
    details = calibrate(classifier, held_out, settings, screen)
    classifier.save(folder, weights=weights, extra={"method": settings.method.name, "name": label})
    evaluations, seconds, hard, coverage = _evaluate_all(run)
    result = RunResult(
        name=label,
        method=settings.method.name,
        weights=weights,
        model=classifier.model_name,
        task=f"{data.task.name} v{data.task.version}",
        num_train=len(data.train) if uses_training_labels(method) else 0,
        num_demonstrations=len(data.demonstrations),
        seed=settings.seed,
        evaluations=evaluations,
        duration_seconds=time.perf_counter() - started + _earlier(searched, found, "seconds"),
        training_seconds=state.seconds,
        peak_memory_bytes=sum(memory.by_stage.values()),
        memory_by_stage=memory.by_stage,
        tokens={"unique": state.num_tokens, "padded": state.num_padded_tokens},
        num_parameters=method.num_parameters,
        num_trainable=num_trainable,
        best_step=state.best_step,
        cpu_seconds=sum_over_processes(time.process_time() - cpu_started)
        + _earlier(searched, found, "cpu_seconds"),
        evaluation_seconds=seconds,
        latency_seconds=_latency(run) if is_main() else None,
        details={**_method_report(method), **details, **coverage},
        search_seconds=searched.seconds if searched is not None else 0.0,
        search=searched.to_dict() if searched is not None else {},
    )
    result.save(folder)
    if report and is_main():
        report_run(folder, result, hard)
    trackers.finish(_final_metrics(result), [folder / name for name in TRACKED_FILES])
    Checkpoints(folder / "checkpoints").remove()
    return FittedRun(result, classifier)


def _search(
    settings: RunSettings,
    folder: Path,
    data: PreparedData,
    model: LoadedModel | None,
    screen: Screen,
) -> tuple[FoundSettings, LoadedModel | None]:
    """Search settings, and give the run's folder the winner's; the model is as it was before."""
    refuse_unserved(settings, data)
    memory = MemoryAccount(resolve_device(settings.model.device))
    model = model_of(settings, model, memory, screen)
    # What is wrong with the settings as given is said before any trial.
    context = MethodContext(settings, data.task, data.demonstrations, model)
    _check_learnable(METHODS[settings.method.name](context), data)
    found = search_settings(settings, folder, data, model=model, screen=screen)
    check_fingerprint(folder, found.data.fingerprint, resume=True)
    return found, model


def _earlier(
    searched: SearchRecord | None,
    found: FoundSettings | None,
    what: Literal["seconds", "cpu_seconds"],
) -> float:
    """Return the part of a search's price that other processes have paid before this one."""
    if searched is None:
        return 0.0
    total = searched.seconds if what == "seconds" else searched.cpu_seconds
    if found is None:
        return total
    return total - (found.seconds_here if what == "seconds" else found.cpu_seconds_here)


def _final_metrics(result: RunResult) -> dict[str, float]:
    """Return the metrics of every evaluation set by `set/metric`, and the run's price."""
    metrics = {
        f"{name}/{metric}": float(getattr(evaluation, metric))
        for name, evaluation in result.evaluations.items()
        for metric in ("accuracy", "mcc", "macro_f1", "log_loss", "ece")
    }
    return {**metrics, "cost/seconds": result.duration_seconds}


def _method_report(method: Method) -> dict[str, Any]:
    """Return what the method has to report; of several processes, counts are added up."""
    found = gather(dict(method.report()))
    return found[0] if len(found) == 1 else {name: sum(f[name] for f in found) for name in found[0]}


def _check_learnable(method: Method, data: PreparedData) -> None:
    """Raise if a method that learns has nothing to learn from, or is given what it cannot use."""
    settings = method.settings
    texts_suffice = isinstance(method, TrainedMethod) and not method.needs_labels
    if method.learns and not data.train and not (texts_suffice and data.unlabeled):
        raise DataError(
            f"{settings.name} needs training examples: give --data, or a built-in task."
        )
    if settings.calibration != "none" and settings.name not in ("in_context", "distill"):
        raise SettingsError(
            f"method.calibration={settings.calibration} is for in_context and distill; method "
            f"{settings.name} needs none. Leave it out."
        )


def uses_training_labels(method: Method) -> bool:
    """Return whether a method has seen the training labels beside its demonstrations."""
    return method.learns or method.settings.demonstrations == "nearest"


def _tell_about_data(data: PreparedData, screen: Screen) -> None:
    sets = ", ".join(f"{name} {len(found):,}" for name, found in data.evaluations.items())
    screen.note(
        f"task {data.task.name}: {len(data.train):,} training, {len(data.validation):,} validation "
        f"examples, {len(data.demonstrations)} demonstrations; test sets: {sets or 'none'}"
    )
    labels = data.task.label_names
    for note in {renaming_note(found, labels): None for found in data.evaluations.values()}:
        if note is not None:
            screen.note(note)
    overlap = data.overlap
    if overlap is not None and overlap.num_dropped:
        where = ", ".join(f"{name} {count}" for name, count in overlap.dropped_by_set.items())
        screen.note(
            f"removed {overlap.num_dropped} training examples whose text also stands in: {where}"
        )
    if overlap is not None and overlap.num_conflicts:
        screen.note(
            f"{overlap.num_conflicts} training texts stand there with different labels "
            f"(kept; first: {', '.join(overlap.conflict_ids[:2])})"
        )


def _rehearse(run: Run) -> None:
    """Predict the longest few examples, so that what will fail fails now."""
    sets = [*run.data.evaluations.values(), run.data.validation, run.data.train]
    longest = sorted(
        (example for examples in sets for example in examples),
        key=lambda e: -sum(map(len, e.texts.values())),
    )[:8]
    if not longest:
        raise SettingsError("There is nothing to train on and nothing to evaluate.")
    run.classifier.method.rehearse(longest)
    run.memory.stage("forward")


def _evaluation_sets(run: Run) -> Mapping[str, Sequence[Example]]:
    """Return the sets to evaluate; the validation set serves where there is none."""
    return run.data.evaluations or (
        {"validation": run.data.validation} if run.data.validation else {}
    )


def _latency(run: Run) -> float | None:
    """Return the median seconds to predict one text by itself, of a few.

    The words stand in a new order, so that no cache knows the text. An endpoint is not asked for
    texts of no use.
    """
    examples = [e for found in _evaluation_sets(run).values() for e in found][:LATENCY_TEXTS]
    if not examples or run.settings.method.name == "remote":
        return None
    generator = random.Random(time.time_ns())
    seconds = []
    for example in examples:
        texts = {column: text.split() for column, text in example.texts.items()}
        for words in texts.values():
            generator.shuffle(words)
        shuffled = Example(example.id, {column: " ".join(w) for column, w in texts.items()})
        started = time.perf_counter()
        run.classifier.probabilities([shuffled])
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _evaluate_all(
    run: Run,
) -> tuple[dict[str, Evaluation], dict[str, float], list[HardExample], dict[str, Any]]:
    """Evaluate every set; write its predictions and slices.

    Returns:
        Metrics and seconds by set, the worst errors, and coverage of prediction sets for the
        record.
    """
    sets = _evaluation_sets(run)
    if not sets:
        run.screen.note(
            "no evaluation set: give one with --test NAME=FILE, or raise data.validation_fraction"
        )
    evaluations: dict[str, Evaluation] = {}
    seconds: dict[str, float] = {}
    hard: list[HardExample] = []
    coverage: dict[str, Any] = {}
    for name, examples in sets.items():
        started = time.perf_counter()
        with run.screen.progress(f"evaluating {name}", len(examples)) as advance:
            probabilities = divided(
                partial(run.classifier.probabilities, advance=advance), examples
            )
        seconds[name] = time.perf_counter() - started
        evaluations[name] = run.classifier.evaluate(examples, probabilities)
        write_predictions(run.folder, name, examples, probabilities, run.data.task)
        if slices := measure_slices(
            run.classifier, name, examples, probabilities, slice_columns(run.settings)
        ):
            write_slices(run.folder, {name: slices})
            run.screen.note(slices_text(name, slices))
        # On the validation set the promise would be checked with the examples that made it.
        checkable = name in run.data.evaluations
        if checkable and (record := coverage_record(run.classifier, examples, probabilities)):
            coverage[name] = record
        if not run.data.task.multi_label:
            hard += hardest(name, examples, probabilities, run.data.task.label_names)
    return evaluations, seconds, hard, {"coverage": coverage} if coverage else {}
