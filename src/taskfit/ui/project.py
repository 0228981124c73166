"""The folder of a project: the table that was dropped, what was chosen, and the comparison.

    NAME/project.json      what was chosen (`Choices`)
    NAME/table.csv         the table as it was uploaded, under the ending it came with
    NAME/test.csv          rows to measure on, if they were given
    NAME/plan.json         what each method is planned to take
    NAME/grid.yaml         the grid of the budget, as `taskfit compare --config` takes it
    NAME/comparison/       the folder of that comparison
    NAME/status.json       what the process at work, or the last one, was doing (`worker.py`)
    NAME/verdict.json      what came of it (`verdict.py`)
    NAME/log.txt           what the comparison printed

All of it is on disk, so the page may be closed, and the server of the page killed, at any time.
"""

import json
import re
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from taskfit.data.sources import FORMATS, SAME
from taskfit.errors import CheckpointError, DataError, SettingsError
from taskfit.files import file_atomic, new_folder, write_json_atomic
from taskfit.settings import RunSettings
from taskfit.settings_base import merge_settings
from taskfit.settings_file import settings_from_dict

FILE = "project.json"
# Share of a table that methods are measured on, where no further file was given.
HELD_OUT = 0.3
NAME_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class Choices:
    """What was given and chosen.

    Attributes:
        name: The table's file name, as people called it.
        table: Its name in the folder.
        test_name, test: The same of the rows to measure on; empty without.
        text: Text columns; empty until they are known.
        label: Label column; empty until it is known.
        base: Further settings of every run, as `taskfit ui --model` and `--set` gave them.
        budget: Name of the budget of the comparison; empty before it was started.
        planned: Method -> seconds that were planned for it.
    """

    name: str
    table: str
    test_name: str = ""
    test: str = ""
    text: tuple[str, ...] = ()
    label: str = ""
    base: dict[str, Any] = field(default_factory=dict)
    budget: str = ""
    planned: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Project:
    """A project's folder and what it holds."""

    folder: Path

    @property
    def id(self) -> str:
        """Return its name in addresses."""
        return self.folder.name

    @property
    def comparison(self) -> Path:
        """Return the folder of its comparison."""
        return self.folder / "comparison"

    @property
    def choices(self) -> Choices:
        """Return what was chosen.

        Raises:
            CheckpointError: If its file cannot be read.
        """
        try:
            found = json.loads((self.folder / FILE).read_text(encoding="utf-8"))
            return Choices(**{**found, "text": tuple(found["text"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{self.folder / FILE} cannot be read: {error}. Remove the folder, and drop the "
                "table again."
            ) from error

    def choose(self, **changes: Any) -> Choices:  # noqa: ANN401 - the fields of `Choices`
        """Record choices; return all of them."""
        found = replace(self.choices, **changes)
        write_json_atomic(self.folder / FILE, asdict(found))
        return found

    def base(self) -> dict[str, Any]:
        """Return the settings that all runs share.

        Raises:
            SettingsError: If the columns are not known yet.
        """
        chosen = self.choices
        if not (chosen.text and chosen.label):
            raise SettingsError("Say first which column holds the text and which the label.")
        data: dict[str, Any] = {
            "train": str(self.folder / chosen.table),
            "text": list(chosen.text),
            "label": chosen.label,
        }
        if chosen.test:
            data["tests"] = {"test": str(self.folder / chosen.test)}
        else:
            data["test_fraction"] = HELD_OUT
        found: dict[str, Any] = {"data": data, "training": {"tensorboard": False}}
        merge_settings(found, chosen.base)
        return found

    def settings(self) -> RunSettings:
        """Return them as settings of a run of the default method."""
        return settings_from_dict(self.base())

    def in_words(self, message: str) -> str:
        """Return a message with files called what people called them."""
        chosen = self.choices
        for name, file in ((chosen.test_name, chosen.test), (chosen.name, chosen.table)):
            if file:
                message = message.replace(str(self.folder / file), name).replace(file, name)
        return message


def find_projects(home: Path) -> dict[str, Project]:
    """Return the projects in a folder by their ids, the newest first."""
    found = sorted(home.glob(f"*/{FILE}"), key=lambda path: -path.stat().st_mtime)
    return {path.parent.name: Project(path.parent) for path in found}


def find_project(home: Path, name: str) -> Project:
    """Return a project by its id, which is looked up and never taken for a path.

    Raises:
        NotThereError: If there is none.
    """
    found = find_projects(home).get(name)
    if found is None:
        raise NotThereError(f"There is no project {name!r} in {home}.")
    return found


async def new_project(
    home: Path, name: str, body: AsyncIterator[bytes], *, limit: int, base: dict[str, Any]
) -> Project:
    """Save an uploaded table as a new project.

    Args:
        home: Folder of projects.
        name: Of the file.
        body: Its bytes.
        limit: Most of them.
        base: See `Choices`.

    Raises:
        DataError: If files of this kind are not read, or it is empty or too large.
    """
    ending = _ending(name)
    folder = _new_folder(home, name)
    try:
        await save_upload(folder / f"table{ending}", name, body, limit=limit)
    except BaseException:
        folder.rmdir()
        raise
    choices = Choices(name=_shown(name), table=f"table{ending}", base=base)
    write_json_atomic(folder / FILE, asdict(choices))
    return Project(folder)


async def add_test(project: Project, name: str, body: AsyncIterator[bytes], *, limit: int) -> None:
    """Save an uploaded table as the rows to measure on.

    Raises:
        DataError: As `new_project`.
    """
    file = f"test{_ending(name)}"
    await save_upload(project.folder / file, name, body, limit=limit)
    project.choose(test=file, test_name=_shown(name))


async def save_upload(path: Path, name: str, body: AsyncIterator[bytes], *, limit: int) -> None:
    """Write an upload to its file, whole or not at all.

    Raises:
        DataError: If it is empty or larger than `limit` bytes.
    """
    size = 0
    with file_atomic(path) as scratch, scratch.open("wb") as file:
        async for piece in body:
            size += len(piece)
            if size > limit:
                raise TooLargeError(
                    f"{_shown(name)} is larger than {limit / 1e6:,.0f} MB, the most that this page "
                    "takes. Use the command line for it: taskfit compare TABLE."
                )
            file.write(piece)
        if not size:
            raise DataError(f"{_shown(name)} is empty.")


class TooLargeError(DataError):
    """An upload is larger than is taken."""


class NotThereError(CheckpointError):
    """There is no such project, or run."""


def _ending(name: str) -> str:
    suffixes = [suffix.lower() for suffix in Path(_shown(name)).suffixes]
    packed = ".gz" if suffixes[-1:] == [".gz"] else ""
    kind = next(reversed(suffixes[:-1] if packed else suffixes), "")
    if kind not in (*FORMATS, *SAME):
        raise DataError(
            f"{_shown(name)}: files of kind {kind or '(no ending)'} are not read; allowed are "
            f"{', '.join(FORMATS)}, each also with .gz."
        )
    return kind + packed


def _shown(name: str) -> str:
    """Return the last part of a file's name, without what is not printable."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(c for c in last if c.isprintable())[:200] or "table"


def _new_folder(home: Path, name: str) -> Path:
    stem = re.sub(r"[^a-z0-9]+", "-", _shown(name).partition(".")[0].lower()).strip("-")
    return new_folder(home, stem[:NAME_CHARACTERS] or "table")
