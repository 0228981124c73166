"""Runs that were made from a base model which is another now: set aside, to be done anew."""

import os
from pathlib import Path

from taskfit.runs.bases import Base, changed_bases
from taskfit.runs.file_names import RESULT_FILE, SETTINGS_FILE
from taskfit.screen import Screen
from taskfit.settings import RunSettings

EARLIER = "earlier"


def set_aside(
    target: Path,
    settings: RunSettings,
    screen: Screen,
    *,
    known: dict[str, Base | None],
    keep_finished: bool = False,
) -> None:
    """Move a run's folder out of the way if its base models are others now.

    Args:
        target: The run's folder; it need not exist.
        settings: What the run is to be made with.
        screen: Where it is said.
        known: See `changed_bases`.
        keep_finished: Whether a finished run stays all the same.
    """
    if not (target / SETTINGS_FILE).is_file() or (
        keep_finished and (target / RESULT_FILE).is_file()
    ):
        return
    found = changed_bases(target, settings, known)
    if not found:
        return
    home = target.parent / EARLIER
    home.mkdir(exist_ok=True)
    number = 1 + sum(path.name.startswith(f"{target.name}-") for path in home.iterdir())
    place = home / f"{target.name}-{number}"
    os.replace(target, place)
    screen.note(
        f"{target.name} is done anew, as its base is another now: {'; '.join(found)}. What was "
        f"there lies in {place}"
    )
