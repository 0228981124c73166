"""What a search needs before its first trial: refusals, wordings, and data for every choice."""

import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import replace

from taskfit.errors import DataError, SettingsError
from taskfit.models.load import LoadedModel
from taskfit.runs.prepare import PreparedData, prepare_data
from taskfit.search.space import Space, Value
from taskfit.settings import RunSettings
from taskfit.tasks import override_task
from taskfit.tasks.variants import AS_GIVEN, NamedTask, encode_candidates, generate_variants
from taskfit.training.distributed import num_processes

MIN_VALIDATION = 30
DRAWS = ("num_demonstrations", "demonstrations", "prompt")  # of method; they decide the examples
DataOf = Callable[[RunSettings], PreparedData]


def refuse_unserved(settings: RunSettings, data: PreparedData) -> None:
    """Refuse a search that cannot run, or whose outcome could not be trusted.

    Raises:
        TaskfitError: Saying what to do instead.
    """
    if importlib.util.find_spec("optuna") is None:
        raise SettingsError(
            "The search for settings needs optuna, which is not installed. Install it with "
            "`pip install 'taskfit[search]'`, or leave --search out."
        )
    if num_processes() > 1:
        raise SettingsError(
            f"The search runs in one process, and there are {num_processes()}. Run it without "
            "torchrun, and take the settings that it finds for the run of several."
        )
    if settings.method.name == "remote":
        raise SettingsError(
            "The search does not serve method remote: every trial would ask the endpoint about "
            "the whole validation set, for money. Compare wordings with `taskfit prompts` on a "
            "local model, or leave --search out."
        )
    count = len(data.validation)
    if count < MIN_VALIDATION:
        one = f"one answer is {100 / count:.0f} points of accuracy" if count else "there are none"
        raise DataError(
            f"The search compares trials on the validation set, which has {count} examples; with "
            f"so few ({one}) it would choose by luck. Give at least {MIN_VALIDATION}: raise "
            "data.validation_fraction, give a table with data.validation, or label more texts; "
            "or leave --search out."
        )


def wordings(
    settings: RunSettings, data: PreparedData, model: LoadedModel | None
) -> list[NamedTask]:
    """Return the wordings of the task that method and model can read, the one as given first."""
    if model is None or not settings.method.shows_demonstrations:
        return [NamedTask(AS_GIVEN, data.task)]
    limit = min(model.tree.max_length, settings.model.max_length or model.tree.max_length)
    found = generate_variants(data.task)
    encoders, _ = encode_candidates(found, model.tokenizer, data.demonstrations, max_length=limit)
    return [one for one in found if one.name in encoders or one is found[0]]


def prepared(space: Space, data: PreparedData) -> DataOf:
    """Read the data for every choice of demonstrations, before any trial; return who gives them.

    A trial's data hang on its demonstrations and its wording; nothing is read for a wording.
    """
    options = {
        d.key: d.values() for d in space.dimensions if d.key in {f"method.{name}" for name in DRAWS}
    }
    by_draw = {_draw(space.given): data}
    for values in itertools.product(*options.values()):
        settings = space.settings(dict(zip(options, values, strict=True)))
        if _draw(settings) not in by_draw:
            by_draw[_draw(settings)] = prepare_data(settings)

    # The run may keep a part of its validation set for other things.
    by_draw = {draw: replace(d, validation=data.validation) for draw, d in by_draw.items()}

    def data_of(settings: RunSettings) -> PreparedData:
        found = by_draw[_draw(settings)]
        count = settings.method.shown
        return replace(found, asked=override_task(found.task, settings.task, count), evaluations={})

    return data_of


def _draw(settings: RunSettings) -> tuple[Value, ...]:
    plain = settings.method.model_dump()
    return tuple(plain.get(name) for name in DRAWS)
