"""Fit one run: prepare data, load the model, train where the method trains, evaluate.

The run folder is filled in an order in which an interruption loses nothing: resolved settings
first, then metrics and checkpoints, then the weights, then the evaluations.
"""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taskfit.data.examples import class_counts
from taskfit.errors import DataError, SettingsError
from taskfit.runs.baselines import MISLEADING
from taskfit.runs.blending import fit_probes, make_blend
from taskfit.runs.calibration import HeldOut, calibrate, hold_out
from taskfit.runs.classifier import Classifier, Weights
from taskfit.runs.clock import Clock, TickingScreen
from taskfit.runs.cross_validation import FOLDER, cross_validate, wants_cross_validation
from taskfit.runs.measure_run import (
    baselines_of,
    evaluate_sets,
    held_against,
    latency,
    measure_cross_validation,
)
from taskfit.runs.predictions import renaming_note
from taskfit.runs.prepare import PreparedData, prepare_data
from taskfit.runs.records import RunResult, read_search
from taskfit.runs.run import Run, model_of
from taskfit.runs.run_folder import check_fingerprint, open_folder
from taskfit.screen import Screen, SilentScreen
from taskfit.runs.settle import mean_words, settle
from taskfit.runs.slices import check_slices
from taskfit.runs.train_method import train_method
from taskfit.methods.method import Method, MethodContext, TrainedMethod
from taskfit.methods.table import METHODS
from taskfit.models import LoadedModel, resolve_device
from taskfit.settings import RunSettings
from taskfit.training import (
    Checkpoints,
    MemoryAccount,
    TrainingState,
    first_on_each_machine,
    gather,
    is_main,
    on_main,
    process_group,
    sum_over_processes,
)
from taskfit.training.trackers import check_trackers, open_trackers

# What draws a finished run from its folder.
Report = Callable[[Path], object]
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
    report: Report | None = None,
    baselines: bool = True,
) -> FittedRun:
    """Fit one run into a folder.

    Args:
        settings: All settings.
        folder: The run's folder; must not hold another run.
        resume: Continue the interrupted run in the folder.
        screen: Where progress is shown.
        model: The base model, if the caller has loaded it already; an adapter stays in it.
        name: How tables call the run; None: the method's name.
        report: Called with the folder once the result lies there, before trackers get its files;
            such as `report.pages.write_page`.
        baselines: Whether the run is measured beside baselines.

    Raises:
        TaskfitError: If settings, data, model or folder do not allow it.
    """
    with process_group(folder, settings) as own, ExitStack() as stack:
        return _fit(
            stack, settings, own, resume, screen or SilentScreen(), model, name, report, baselines
        )


def _fit(
    stack: ExitStack,
    settings: RunSettings,
    folder: Path,
    resume: bool,
    screen: Screen,
    model: LoadedModel | None,
    name: str | None,
    report: Report | None,
    baselines: bool,
) -> FittedRun:
    clock = Clock(folder, resume=resume)
    stack.callback(clock.keep)  # a run that is interrupted goes on from here
    screen = TickingScreen(screen, clock)
    start = _start(settings, folder, clock, resume=resume, model=model, screen=screen)
    settings, data = start.settings, start.data
    memory = MemoryAccount(resolve_device(settings.model.device))
    method = first_on_each_machine(lambda: _method_of(start, memory, screen))
    check_learnable(method, data)
    classifier = Classifier(method)
    label = name or settings.method.name
    trackers = stack.enter_context(open_trackers(settings, folder, name=label, note=screen.note))
    run = Run(settings, folder, data, classifier, memory, screen, label)
    _rehearse(run)
    crossed = None
    if wants_cross_validation(method, settings, data):
        crossed = cross_validate(settings, data, folder, model=method.context.model, screen=screen)
    probes = fit_probes(method.context, data.train) if method.learns else ()
    method.prepare(data.train, data.validation)
    state, num_trainable = TrainingState(), 0
    weights: Weights = "none"
    if isinstance(method, TrainedMethod):
        state, num_trainable = train_method(run, method, trackers=trackers)
        weights = settings.adapter.weights
    details: dict[str, Any] = {}
    classifier.blend = make_blend(method, probes, data.validation)
    spared = method.spared_seconds
    if classifier.blend is not None:
        spared += classifier.blend.spared_seconds
        details["blend"] = classifier.blend.record
        screen.note(classifier.blend.sentence)
    details |= calibrate(classifier, start.held_out, settings, screen)
    classifier.save(folder, weights=weights, extra={"method": settings.method.name, "name": label})
    if crossed is not None:
        measured = measure_cross_validation(run, crossed)
    else:
        measured = evaluate_sets(run, baselines_of(run) if baselines else {})
    details |= held_against(run, measured)
    searched = read_search(folder)
    result = RunResult(
        name=label,
        method=settings.method.name,
        weights=weights,
        model=classifier.model_name,
        task=f"{data.task.name} v{data.task.version}",
        num_train=len(data.train) if uses_training_labels(method) else 0,
        num_demonstrations=len(data.demonstrations),
        seed=settings.seed,
        evaluations=measured.evaluations,
        duration_seconds=clock.seconds,
        training_seconds=state.seconds,
        peak_memory_bytes=sum(memory.by_stage.values()),
        memory_by_stage=memory.by_stage,
        tokens={"unique": state.num_tokens, "padded": state.num_padded_tokens},
        num_parameters=method.num_parameters,
        num_trainable=num_trainable,
        best_step=state.best_step,
        cpu_seconds=sum_over_processes(clock.cpu_seconds),
        spared_seconds=spared,
        evaluation_seconds=measured.seconds,
        latency_seconds=latency(run) if is_main() else None,
        details={**_method_report(method), **details, **measured.coverage},
        search_seconds=searched.get("seconds", 0.0),
        search=searched,
    )
    _finish(run, result, report)
    trackers.finish(_final_metrics(result), [folder / name for name in TRACKED_FILES])
    clock.remove()
    return FittedRun(result, classifier)


@dataclass(frozen=True, slots=True)
class _Start:
    """What a run starts from: settings in numbers, data, and a model that is loaded already.

    Attributes:
        settings: The run's settings.
        data: Its examples, without what is kept for calibration.
        held_out: What calibration is fitted on.
        model: The model, where a caller has loaded it.
    """

    settings: RunSettings
    data: PreparedData
    held_out: HeldOut
    model: LoadedModel | None


def _start(
    settings: RunSettings,
    folder: Path,
    clock: Clock,
    *,
    resume: bool,
    model: LoadedModel | None,
    screen: Screen,
) -> _Start:
    """Open the folder, read the data, and settle what the settings left open."""
    if settings.method.name == "auto":
        screen.note(
            "method auto: a classification head behind the prompt, blended with probes, which was "
            "the best on average over the sets of results/defaults.md; --method chooses another"
        )
    settings = settings.resolved()
    if settings.search.wanted:
        raise SettingsError(
            "fit does not search settings; `taskfit fit --search` and "
            "`taskfit.search.search_and_fit` do, and then fit."
        )
    check_trackers(settings)
    open_folder(settings, folder, resume=resume)
    clock.open()
    data = first_on_each_machine(lambda: prepare_data(settings))
    check_fingerprint(folder, data.fingerprint, resume=resume)
    check_slices(settings, data.evaluations or {"validation": data.validation})
    held_out = hold_out(data.validation, settings)
    data = replace(data, validation=held_out.validation)
    _tell_about_data(data, screen)
    if issubclass(METHODS[settings.method.name], TrainedMethod):
        learned = data.unlabeled or data.train
        settings = settle(
            settings,
            folder,
            num_train=len(learned),
            num_labels=len(data.task.labels),
            mean_words=mean_words(learned),
            screen=screen,
        )
    return _Start(settings, data, held_out, model)


def _method_of(start: _Start, memory: MemoryAccount, screen: Screen) -> Method:
    settings, data = start.settings, start.data
    model = model_of(settings, start.model, memory, screen)
    context = MethodContext(settings, data.task, data.demonstrations, model)
    return METHODS[settings.method.name](context)


def _finish(run: Run, result: RunResult, report: Report | None) -> None:
    """Write the result and the report; remove what only resuming needs."""
    result.save(run.folder)
    if report is not None and is_main():
        report(run.folder)
    Checkpoints(run.folder / "checkpoints").remove()
    on_main(lambda: shutil.rmtree(run.folder / FOLDER, ignore_errors=True))


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


def check_learnable(method: Method, data: PreparedData) -> None:
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
    counts = class_counts(data.train)
    if counts:
        label, most = counts.most_common(1)[0]
        if most >= MISLEADING * counts.total():
            screen.note(
                f"{most / counts.total():.0%} of the training texts are {label!r}: read MCC or F1, "
                "not accuracy"
            )
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
