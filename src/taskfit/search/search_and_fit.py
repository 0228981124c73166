"""Fit one run, with a search for its settings first where they ask for one."""

from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from taskfit.errors import SettingsError
from taskfit.methods.method import MethodContext, TrainedMethod
from taskfit.methods.table import METHODS, label_method
from taskfit.models.load import LoadedModel, resolve_device
from taskfit.runs.bases import check_bases
from taskfit.runs.calibration import hold_out
from taskfit.runs.clock import Clock, TickingScreen
from taskfit.runs.fit import FittedRun, Report, fit
from taskfit.runs.hold_out import AUTO_VALIDATION_FRACTION
from taskfit.runs.labels import check_learnable, size_of
from taskfit.runs.prepare import prepare_data
from taskfit.runs.run import model_of
from taskfit.runs.run_folder import check_fingerprint, open_folder, run_lock
from taskfit.runs.settle import settle
from taskfit.runs.sources import share_sources
from taskfit.screen import Screen, SilentScreen
from taskfit.search.search import search_settings, settings_of_search
from taskfit.search.setup import refuse_unserved
from taskfit.settings import RunSettings
from taskfit.tasks.question_files import is_questionnaire
from taskfit.training.distributed import on_main, process_group
from taskfit.training.memory import MemoryAccount


def search_and_fit(
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
    """Search settings on the validation set where `search` asks for it, then fit with the winner's.

    All arguments and errors are those of `fit`. The search lies in `FOLDER/search`, and its time is
    part of the run's.
    """
    screen = screen or SilentScreen()
    # A search and the run after it read the same tables.
    sharing = share_sources() if settings.search.requested else nullcontext()
    with process_group(folder, settings) as own, sharing, ExitStack() as stack:
        # Held from before the search to the end of the run behind it.
        on_main(lambda: stack.enter_context(run_lock(own, resume=resume)))
        several = is_questionnaire(settings.task.name)
        if settings.search.requested and settings.start.run is not None:
            raise SettingsError(
                "The search tries settings on the base model, and this run goes on from another "
                "one, whose settings it has. Leave --search or --from out."
            )
        if settings.search.requested and several:
            raise SettingsError(
                "The search serves runs of one question; this task has several. Leave --search out."
            )
        given = settings.resolved(questions=several)
        found = settings_of_search(given, own, resume=resume)
        if found.search.requested and not found.method.is_tuning:
            found, model = _search(
                found,
                own,
                resume=resume,
                model=model,
                screen=screen,
                allow_other_base=allow_other_base,
            )
            resume = True  # the folder is this run's, and its clock runs
        elif found is given:
            found = settings  # nothing was searched: `fit` says itself what it resolves
        return fit(
            found,
            own,
            resume=resume,
            screen=screen,
            model=model,
            name=name,
            report=report,
            baselines=baselines,
            allow_other_base=allow_other_base,
        )


def _search(
    settings: RunSettings,
    folder: Path,
    *,
    resume: bool,
    model: LoadedModel | None,
    screen: Screen,
    allow_other_base: bool,
) -> tuple[RunSettings, LoadedModel | None]:
    """Return the winner's settings, which the folder has then, and the model as it was before."""
    clock = Clock(folder, resume=resume)
    with ExitStack() as stack:
        stack.callback(clock.keep)
        screen = TickingScreen(screen, clock)
        open_folder(settings, folder, resume=resume)
        clock.open()
        if settings.data.validation is None and settings.data.validation_fraction == "auto":
            # The winner's settings ask for no search, and would hold out less.
            share = {"validation_fraction": AUTO_VALIDATION_FRACTION}
            settings = settings.model_copy(update={"data": settings.data.model_copy(update=share)})
        data = prepare_data(settings)
        check_fingerprint(folder, data.fingerprint, resume=resume)
        named = None if model is None else model.name
        on_main(partial(check_bases, folder, settings, named, allow_other=allow_other_base))
        data = replace(data, validation=hold_out(data.validation, settings).validation)
        refuse_unserved(settings, data)
        if issubclass(METHODS[settings.method.name], TrainedMethod):
            settings = settle(settings, folder, size_of(data), screen)
        memory = MemoryAccount(resolve_device(settings.model.device))
        model = model_of(settings, model, memory, screen)
        # What is wrong with the settings as given is said before any trial.
        context = MethodContext(settings, data.task, data.demonstrations, model)
        label_method(settings.method.name)(context)
        check_learnable(settings, data)
        return search_settings(settings, folder, data, model=model, screen=screen), model
