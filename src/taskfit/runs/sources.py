"""Tables and built-in sets as they are read, once for all runs that read the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pandas as pd

from taskfit.data import BuiltinData, load_builtin, read_table
from taskfit.errors import SettingsError
from taskfit.settings import RunSettings
from taskfit.tasks.question_files import is_questionnaire


@dataclass(slots=True)
class Sources:
    """What was read already, for runs that read the same.

    Attributes:
        tables: Tables by source, encoding and split.
        builtin: Built-in data sets by name and folder.
    """

    tables: dict[tuple[str, str, str], pd.DataFrame] = field(default_factory=dict)
    builtin: dict[tuple[str, str | None], BuiltinData] = field(default_factory=dict)


_shared: Sources | None = None


@contextmanager
def share_sources() -> Iterator[Sources]:
    """Read every table and built-in set once while this lasts; for the runs of a grid."""
    global _shared
    before, _shared = _shared, _shared or Sources()
    try:
        yield _shared
    finally:
        _shared = before


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


def read_source(source: str, *, encoding: str, split: str = "train") -> pd.DataFrame:
    """Read a table, or take it from what is shared; it must not be changed.

    Raises:
        DataError: If it cannot be read.
    """
    if _shared is None:
        return read_table(source, encoding=encoding, split=split)
    key = (source, encoding, split)
    if key not in _shared.tables:
        _shared.tables[key] = read_table(source, encoding=encoding, split=split)
    return _shared.tables[key]


def read_builtin(name: str, *, folder: str | None) -> BuiltinData:
    """Load a built-in set, or take it from what is shared; it must not be changed.

    Raises:
        DataError: If it is found nowhere.
    """
    if _shared is None:
        return load_builtin(name, folder=folder)
    key = (name, folder)
    if key not in _shared.builtin:
        _shared.builtin[key] = load_builtin(name, folder=folder)
    return _shared.builtin[key]
