"""Tables and built-in sets as they are read, once for all runs that read the same."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from taskfit.data import BUILTIN_NAMES, BuiltinData, load_builtin, read_table
from taskfit.errors import SettingsError
from taskfit.settings import RunSettings
from taskfit.tasks.question_files import is_questionnaire

T = TypeVar("T")
# What was read already, by kind and place; None where it is not shared.
_shared: dict[tuple[str | None, ...], Any] | None = None


@contextmanager
def share_sources() -> Iterator[None]:
    """Read every table and built-in set once while this lasts; for the runs of a grid."""
    global _shared
    before, _shared = _shared, {} if _shared is None else _shared
    try:
        yield
    finally:
        _shared = before


def _once(key: tuple[str | None, ...], read: Callable[[], T]) -> T:
    """Read something, or take it from what is shared."""
    if _shared is None:
        return read()
    if key not in _shared:
        _shared[key] = read()
    found: T = _shared[key]
    return found


def check_labels_task(settings: RunSettings, *, several: bool) -> None:
    """Check that settings are of a task with labels.

    Args:
        settings: All settings.
        several: Whether it may have several questions.

    Raises:
        SettingsError: If it may not and has, or the method learns from rows of text.
    """
    if settings.method.is_tuning:
        raise SettingsError(
            f"method {settings.method.name} learns from rows of text, not from labels, so there is "
            "nothing to do here: `taskfit fit`, `plan`, `generate`, `judge` and `export` serve it."
        )
    if not several and is_questionnaire(settings.task.name):
        raise SettingsError(
            f"{settings.task.name} asks several questions, which `taskfit fit`, `evaluate` and "
            "`predict` serve; give a task of one question here."
        )


def read_source(
    source: str, *, encoding: str, split: str = "train", quotes: str = "auto"
) -> pd.DataFrame:
    """Read a table, or take it from what is shared; it must not be changed.

    Raises:
        DataError: If it cannot be read.
        SettingsError: If it is the name of a built-in task.
    """
    if source in BUILTIN_NAMES and not Path(source).exists():
        raise SettingsError(f"{source} is a built-in task: give --task {source}.")
    key = ("table", source, encoding, split, quotes)
    return _once(key, lambda: read_table(source, encoding=encoding, split=split, quotes=quotes))


def read_builtin(name: str, *, folder: str | None) -> BuiltinData:
    """Load a built-in set, or take it from what is shared; it must not be changed.

    Raises:
        DataError: If it is found nowhere.
    """
    return _once(("builtin", name, folder), lambda: load_builtin(name, folder=folder))
