"""Fit one run: read data, load the model, train, measure, save. The same for every method.

The run folder is filled in an order in which an interruption loses nothing: resolved settings
first, then metrics and checkpoints, then the weights, then the evaluations.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from taskfit.errors import SettingsError, WriteError
from taskfit.files import failed_write
from taskfit.models.load import LoadedModel, resolve_device
from taskfit.runs.bases import check_bases
from taskfit.runs.clock import Clock, TickingScreen
from taskfit.runs.file_names import START
from taskfit.runs.kind import Measured, RunKind
from taskfit.runs.labels import LabelRun
from taskfit.runs.origin import take_origin
from taskfit.runs.records import RunResult, describe_machine, read_search
from taskfit.runs.run_folder import check_fingerprint, open_folder, run_lock
from taskfit.runs.seen import write_seen
from taskfit.runs.settle import settle
from taskfit.runs.tuning.run import TuningRun
from taskfit.screen import Screen, SilentScreen
from taskfit.settings import RunSettings
from taskfit.tasks.question_files import is_questionnaire
from taskfit.training.checkpoint import Checkpoints, TrainingState
from taskfit.training.distributed import (
    first_on_each_machine,
    is_main,
    on_main,
    process_group,
    sum_over_processes,
)
from taskfit.training.memory import MemoryAccount
from taskfit.training.trackers import check_trackers, open_trackers

F = TypeVar("F")
# What draws a finished run from its folder.
Report = Callable[[Path], object]
TRACKED_FILES = ("settings.yaml", "result.json", "report.html")


@dataclass(frozen=True, slots=True)
class FittedRun(Generic[F]):
    """What `fit` gives back.

    Attributes:
        result: The contents of `result.json`.
        fitted: Ready for use: a `Classifier`, or a `TunedModel`.
    """

    result: RunResult
    fitted: F


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
    allow_other_base: bool = False,
) -> FittedRun[Any]:
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
        allow_other_base: Whether a run that goes on may do so from another base model.

    Raises:
        TaskfitError: If settings, data, model or folder do not allow it.
    """
    with process_group(folder, settings) as own, ExitStack() as stack:
        on_main(lambda: stack.enter_context(run_lock(own, resume=resume)))
        clock = Clock(own, resume=resume)
        stack.callback(clock.keep)  # a run that is interrupted goes on from here
        run = _make(settings, own, TickingScreen(screen or SilentScreen(), clock), name)
        check_trackers(run.settings)
        resolve_device(run.settings.model.device)  # before any work
        open_folder(run.settings, own, resume=resume)
        clock.open()
        run.origin = take_origin(run.settings, own, resume=resume)
        check_fingerprint(own, first_on_each_machine(run.read), resume=resume)
        on_main(lambda: write_seen(own, run.seen()))
        if run.origin is not None:
            run.screen.note(run.origin.sentence)
        run.tell()
        named = None if model is None else model.name
        on_main(partial(check_bases, own, run.settings, named, allow_other=allow_other_base))
        if run.trains:
            run.settings = settle(run.settings, own, run.size(), run.screen)
        run.memory = MemoryAccount(resolve_device(run.settings.model.device))
        first_on_each_machine(lambda: run.load(model))
        trackers = stack.enter_context(
            open_trackers(run.settings, own, name=run.name, note=run.screen.note)
        )
        run.start(resume=resume)
        state, num_trainable = run.train(trackers)
        run.save()
        measured = run.measure(baselines=baselines)
        result = _result(run, state, measured, clock, num_trainable=num_trainable)
        result.save(own)
        if report is not None and is_main():
            _report(report, own, run.screen)
        Checkpoints(own / "checkpoints").remove()
        if run.origin is not None:
            on_main(run.origin.remove)
        run.clean()
        metrics = {**measured.metrics, "cost/seconds": result.duration_seconds}
        trackers.finish(metrics, [own / file for file in TRACKED_FILES])
        clock.remove()
        return FittedRun(result, run.fitted)


def _make(settings: RunSettings, folder: Path, screen: Screen, name: str | None) -> RunKind[Any]:
    """Return the run that the settings ask for."""
    if settings.search.requested and not settings.method.is_tuning:
        raise SettingsError(
            "fit does not search settings; `taskfit fit --search` and "
            "`taskfit.search.search_and_fit` do, and then fit."
        )
    several = is_questionnaire(settings.task.name)
    kind = TuningRun if settings.method.is_tuning else LabelRun
    if settings.method.name == "auto" and not several:
        screen.note(
            "method auto: a classification head behind the prompt, blended with probes, which was "
            "the best on average over the sets of results/defaults.md; --method chooses another"
        )
    settings = settings.resolved(questions=several)
    return kind(settings, folder, screen, name or settings.method.name)


def _report(report: Report, folder: Path, screen: Screen) -> None:
    """Draw a run that is finished; where its page cannot be written, say so and how to make it."""
    try:
        report(folder)
    except Exception as error:
        told = error if isinstance(error, WriteError) else failed_write(error, folder)
        if told is None:
            raise
        screen.note(
            f"{told}\nThe run in {folder} is finished and whole without its page; make that with "
            f"`taskfit report {folder}`."
        )


def _result(
    run: RunKind[Any],
    state: TrainingState,
    measured: Measured,
    clock: Clock,
    *,
    num_trainable: int,
) -> RunResult:
    searched, origin = read_search(run.folder), run.origin
    latency = run.latency() if is_main() else None
    return RunResult(
        name=run.name,
        method=run.settings.method.name,
        weights=run.weights,
        model=run.model_name,
        task=run.task_name,
        num_train=run.num_train,
        num_demonstrations=run.num_demonstrations,
        seed=run.settings.seed,
        evaluations=measured.evaluations,
        duration_seconds=clock.seconds,
        training_seconds=state.seconds,
        peak_memory_bytes=sum(run.memory.by_stage.values()),
        memory_by_stage=run.memory.by_stage,
        tokens={"unique": state.num_tokens, "padded": state.num_padded_tokens},
        num_parameters=run.method.num_parameters,
        num_trainable=num_trainable,
        best_step=state.best_step,
        cpu_seconds=sum_over_processes(clock.cpu_seconds),
        cached_seconds=run.cached_seconds,
        evaluation_seconds=measured.seconds,
        latency_seconds=latency,
        machine=describe_machine() | ({} if run.model is None else run.model.computes),
        details={**measured.details, **({} if origin is None else {START: dict(origin.record)})},
        search_seconds=searched.get("seconds", 0.0),
        search=searched,
    )
