"""One run of a grid after the other in one process, which keeps the base model between them."""

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from taskfit.compare.fingerprint import identity
from taskfit.errors import CheckpointError, SettingsError, TaskfitError
from taskfit.methods.method import TrainedMethod
from taskfit.methods.table import METHODS
from taskfit.models.load import LoadedModel, load_model
from taskfit.runs.bases import MODEL, current_base
from taskfit.runs.file_names import RESULT_FILE, SETTINGS_FILE
from taskfit.runs.prepare import prepare_data
from taskfit.runs.settle import as_settled
from taskfit.screen import Screen
from taskfit.search.records import given_settings_file
from taskfit.search.search_and_fit import search_and_fit
from taskfit.settings import RunSettings
from taskfit.settings_file import dump_settings, load_run_settings
from taskfit.training.memory import free_memory


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended.

    Attributes:
        folder: Name of the run's folder.
        error: The message; None if it is finished.
        trace: Traceback of an error that is not the user's.
        died: Whether the process died; the run may be tried again.
    """

    folder: str
    error: str | None = None
    trace: str = ""
    died: bool = False


def is_finished(target: Path, settings: RunSettings) -> bool:
    """Return whether a run's folder holds its result.

    Raises:
        CheckpointError: If the folder belongs to a run with other settings, as after a change of
            default values between versions.
    """
    own = given_settings_file(target)
    found = load_run_settings(own) if own.is_file() else None
    if found is not None and identity(found, defaults=True) != identity(
        as_settled(settings, found), defaults=True
    ):
        raise CheckpointError(
            f"{target} was made with other settings by another version of taskfit, whose defaults "
            f"were different (see {SETTINGS_FILE} in it). Give another --out, or delete it."
        )
    return (target / RESULT_FILE).is_file()


def check_run(settings: RunSettings) -> None:
    """Check what can be checked of a run without its model.

    Raises:
        TaskfitError: If task, data and method do not fit each other.
    """
    task, method = prepare_data(settings).task, settings.method.name
    if task.multi_label and not METHODS[method].serves_multi_label:
        able = ", ".join(name for name, found in METHODS.items() if found.serves_multi_label)
        raise SettingsError(
            f"method {method} gives a text one label, but task.multi_label is set. Methods that "
            f"can give several: {able}."
        )


class Runner:
    """Does runs in this process; a base model stays loaded while runs leave it as it was."""

    def __init__(self, screen: Screen) -> None:
        """Show progress on a screen."""
        self.screen = screen
        self._key = ""
        self._model: LoadedModel | None = None
        self._told: set[str] = set()

    def run(self, name: str, settings: RunSettings, target: Path) -> Ended:
        """Do a run, or go on with an interrupted one; errors are returned, not raised."""
        try:
            if not is_finished(target, settings):
                self._fit(name, settings, target)
            return Ended(target.name)
        except Exception as error:
            self._model = None
            trace = "" if isinstance(error, TaskfitError) else traceback.format_exc()
            return Ended(target.name, str(error) or type(error).__name__, trace)

    def _fit(self, name: str, settings: RunSettings, target: Path) -> None:
        free_memory()  # of the run before, whose model may refer to itself
        resume = (target / SETTINGS_FILE).is_file()
        if resume:
            # `is_finished` compared what counts; the rest, such as the device, may have changed.
            dump_settings(settings, target / SETTINGS_FILE)
        run = search_and_fit(
            settings,
            target,
            resume=resume,
            screen=self.screen,
            model=self._base_model(settings),
            name=name,
            baselines=False,
        )
        method = run.fitted.method
        if isinstance(method, TrainedMethod) and not method.release():
            self._model = None

    def _base_model(self, settings: RunSettings) -> LoadedModel | None:
        if not settings.method.reads_model:
            return None
        quantized = settings.adapter.weights == "qlora"
        key = settings.model.model_dump_json() + (
            settings.adapter.model_dump_json() if quantized else ""
        )
        # Its folder may hold another model since it was loaded.
        base = current_base(Path(), MODEL, settings.model.name, settings.model.revision)
        key += "" if base is None else base.identity.digest
        if self._model is None or key != self._key:
            check_run(settings)  # before a model is loaded for nothing
            self._model = None  # before the next one is loaded
            self._model = load_model(settings.model, quantization=settings.adapter)
            self._tell(self._model.notes)
            self._key = key
        return self._model

    def _tell(self, notes: Sequence[str]) -> None:
        """Show what was not shown before: a model may be loaded again and again."""
        for note in notes:
            if note not in self._told:
                self.screen.note(note)
        self._told.update(notes)
