"""Fit one run, with a search for its settings first where they ask for one."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from taskfit.methods.method import MethodContext, TrainedMethod
from taskfit.methods.table import METHODS
from taskfit.models import LoadedModel, resolve_device
from taskfit.runs.calibration import hold_out
from taskfit.runs.clock import Clock, TickingScreen
from taskfit.runs.fit import FittedRun, Report, check_learnable, fit
from taskfit.runs.prepare import AUTO_VALIDATION_FRACTION, prepare_data
from taskfit.runs.run import model_of
from taskfit.runs.run_folder import check_fingerprint, open_folder
from taskfit.runs.settle import mean_words, settle
from taskfit.screen import Screen, SilentScreen
from taskfit.search.search import search_settings, settings_of_search
from taskfit.search.setup import refuse_unserved
from taskfit.settings import RunSettings
from taskfit.training import MemoryAccount, process_group


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
) -> FittedRun:
    """Search settings on the validation set where `search` asks for it, then fit with the winner's.

    All arguments and errors are those of `fit`. The search lies in `FOLDER/search`, and its time is
    part of the run's.
    """
    screen = screen or SilentScreen()
    with process_group(folder, settings) as own:
        found = settings_of_search(settings.resolved(), own, resume=resume)
        if found.search.wanted:
            found, model = _search(found, own, resume=resume, model=model, screen=screen)
            resume = True  # the folder is this run's, and its clock runs
        elif found == settings.resolved():
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
        )


def _search(
    settings: RunSettings,
    folder: Path,
    *,
    resume: bool,
    model: LoadedModel | None,
    screen: Screen,
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
        data = replace(data, validation=hold_out(data.validation, settings).validation)
        refuse_unserved(settings, data)
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
        memory = MemoryAccount(resolve_device(settings.model.device))
        model = model_of(settings, model, memory, screen)
        # What is wrong with the settings as given is said before any trial.
        context = MethodContext(settings, data.task, data.demonstrations, model)
        check_learnable(METHODS[settings.method.name](context), data)
        return search_settings(settings, folder, data, model=model, screen=screen), model
