"""A run under way: what its stages hand to each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from taskfit.data import Example
from taskfit.models.adapters import weight_bytes
from taskfit.models.load import LoadedModel, dtype_reason, load_model, resolve_device
from taskfit.runs.classifier import Classifier
from taskfit.runs.origin import Origin
from taskfit.runs.prepare import PreparedData
from taskfit.screen import Screen
from taskfit.settings import RunSettings
from taskfit.training.memory import MemoryAccount

NUM_LONGEST = 8


@dataclass(slots=True)
class Run:
    """A run under way.

    Attributes:
        settings: Its settings.
        folder: Its folder.
        data: Its examples.
        classifier: What it fits.
        memory: Its memory account.
        screen: What it shows.
    """

    settings: RunSettings
    folder: Path
    data: PreparedData
    classifier: Classifier
    memory: MemoryAccount
    screen: Screen


def longest_texts(data: PreparedData) -> list[Example]:
    """Return the longest few examples of all sets, by which what will fail fails early."""
    sets = [*data.evaluations.values(), data.validation, data.train]
    examples = (example for found in sets for example in found)
    return sorted(examples, key=lambda e: -sum(map(len, e.texts.values())))[:NUM_LONGEST]


def evaluation_sets(
    data: PreparedData, screen: Screen | None = None
) -> Mapping[str, Sequence[Example]]:
    """Return the sets to evaluate; the validation set serves where there is none.

    Args:
        data: Of the run.
        screen: Where it is said that there is neither; None: it is not said.
    """
    sets = data.evaluations or ({"validation": data.validation} if data.validation else {})
    if not sets and screen is not None:
        screen.note(
            "no evaluation set: give one with --test NAME=FILE, or raise data.validation_fraction"
        )
    return sets


def no_validation_note(settings: RunSettings) -> str:
    """Return what becomes of settings that need a validation set where there is none."""
    stopping = settings.training.early_stopping
    also = "" if stopping is None else f"; training.early_stopping={stopping} does nothing"
    return f"no validation set: the weights of the last step are kept{also}"


def model_of(
    settings: RunSettings,
    model: LoadedModel | None,
    memory: MemoryAccount,
    screen: Screen,
    *,
    origin: Origin | None = None,
) -> LoadedModel | None:
    """Return the model that the method reads, or none; see `base_model`."""
    if not settings.method.reads_model:
        return None
    return base_model(settings, model, memory, screen, origin=origin)


def base_model(
    settings: RunSettings,
    model: LoadedModel | None,
    memory: MemoryAccount,
    screen: Screen,
    *,
    origin: Origin | None = None,
) -> LoadedModel:
    """Return the caller's model, or load the one that the settings name.

    Args:
        settings: All settings.
        model: The caller's.
        memory: Where it is charged.
        screen: Where the number format is told, and what the model has of notes.
        origin: The run that this one goes on from; a model that it trained in full is taken.
    """
    whole = None if origin is None else origin.whole_model
    if model is None or whole is not None:
        device = resolve_device(settings.model.device)
        screen.note(dtype_reason(settings.model.dtype, device))
        named = settings.model
        if whole is not None:
            named = named.model_copy(update={"name": str(whole), "revision": None})
        model = load_model(named, quantization=settings.adapter)
        model = replace(model, name=settings.model.name, revision=settings.model.revision)
        for note in model.notes:
            screen.note(note)
        memory.stage("model")
    else:
        memory.charge("model", weight_bytes(model.tree.model))
    return model
