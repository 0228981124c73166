"""A grid: methods x sample sizes x draws x models, expanded into runs, cheap ones first."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from taskfit.compare.fingerprint import Fingerprints
from taskfit.data import BUILTIN_NAMES
from taskfit.errors import SettingsError, TaskfitError
from taskfit.methods.table import WITHOUT_LEARNING
from taskfit.runs.sources import share_sources
from taskfit.settings import RunSettings
from taskfit.settings_base import merge_settings
from taskfit.settings_file import settings_from_dict
from taskfit.unread import changed_unread, read_only, told_of_none
from taskfit.yaml_text import read_yaml

# One draw of everything comes first, and cheap runs first in it, so that the results are useful
# from the first minute.
COST = {"majority": 0, "tfidf": 0, "knn": 1, "probe": 2, "in_context": 3, "remote": 3, "encoder": 4}
TRAINED_COST = 5
# Share of the user's table that is held out where no evaluation set is given.
TEST_FRACTION = 0.3


@dataclass(frozen=True, slots=True)
class GridRun:
    """One run of a grid.

    Attributes:
        name: The method's name in tables.
        settings: Everything about it, resolved.
        size: Training examples, or None where all are used or none is seen.
        folder: Name of its folder, which ends with a digest of settings, data and task version.
    """

    name: str
    settings: RunSettings
    size: int | None
    folder: str

    @property
    def kind(self) -> tuple[str, str]:
        """Return what runs of about the same duration share, beside their size."""
        return self.name, self.settings.model.name


@dataclass(frozen=True, slots=True)
class Grid:
    """Every run of a grid.

    Attributes:
        runs: In the order in which they are started.
        refused: Runs whose settings or data are wrong: name of their folder -> the error.
    """

    runs: list[GridRun]
    refused: dict[str, str] = field(default_factory=dict)


class GridFile(TypedDict, total=False):
    """What a grid file may have."""

    base: RunSettings | None
    methods: dict[str, RunSettings | None]
    sizes: dict[Any, RunSettings | None] | list[int]
    seeds: int | list[int]
    models: list[str]


KEYS = tuple(GridFile.__annotations__)


def load_grid(path: Path) -> dict[str, Any]:
    """Read a grid file: `base` settings, `methods`, `sizes`, `seeds`, `models`.

    Raises:
        SettingsError: If it is no grid.
    """
    data = read_yaml(path, "grid file", SettingsError, GridFile)
    if not isinstance(data, dict) or not data.get("methods"):
        raise SettingsError(
            f"{path} is no grid: it needs `methods` (name -> settings), and may have base, sizes, "
            "seeds and models."
        )
    unknown = [key for key in data if key not in KEYS]
    if unknown:
        raise SettingsError(
            f"{path}: unknown key {', '.join(map(str, unknown))} (allowed: {', '.join(KEYS)})."
        )
    _check_kinds(path, data)
    return data


def _check_kinds(path: Path, data: Mapping[str, Any]) -> None:
    kinds: dict[str, tuple[type | tuple[type, ...], str]] = {
        "base": (dict, "a section of settings"),
        "methods": (dict, "names with settings"),
        "sizes": ((dict, list), "a list of numbers, or numbers with settings"),
        "seeds": ((int, list), "a number of draws, or a list of seeds"),
        "models": (list, "a list of names"),
    }
    for key, (kind, what) in kinds.items():
        if data.get(key) is not None and not isinstance(data[key], kind):
            raise SettingsError(f"{path}: {key} is {data[key]!r}, but it must be {what}.")


def hold_out_test(grid: dict[str, Any]) -> bool:
    """Set `data.test_fraction` in the base of a grid that has no evaluation set; tell if so.

    Without one, runs would be measured on the validation set, which chose their checkpoints.
    """
    base: dict[str, Any] = grid.setdefault("base", {})
    sizes = grid.get("sizes")
    parts = [base, *grid["methods"].values(), *(sizes.values() if isinstance(sizes, dict) else ())]
    sections = [part["data"] for part in parts if part and isinstance(part.get("data"), dict)]
    if any("tests" in section or "test_fraction" in section for section in sections):
        return False
    task = base.get("task")
    builtin = isinstance(task, dict) and task.get("name") in BUILTIN_NAMES
    if builtin and not any(section.get("train") for section in sections):
        return False
    merge_settings(base, {"data": {"test_fraction": TEST_FRACTION}})
    return True


def expand_grid(grid: Mapping[str, Any]) -> Grid:
    """Return every run of a grid, draw by draw, cheap ones first.

    `sizes` and `methods` map names to settings that they add (or `sizes` is a list of numbers);
    `seeds` is a list, or how many; `models` is a list of names. A method that sees no training
    example (zero-shot) runs once a model, and one that reads no model once a draw.

    Raises:
        TaskfitError: If the settings or the data of all runs are wrong; what is wrong for some
            of them is recorded in `refused`.
    """
    base = grid.get("base") or {}
    settings_from_dict(base, asked={})  # what is wrong here is wrong everywhere
    sizes = grid.get("sizes") or {None: {}}
    if isinstance(sizes, Sequence):
        sizes = {size: {} for size in sizes}
    _check_read(grid["methods"], [_merged(base, by_size) for by_size in sizes.values()])
    seeds = grid.get("seeds") or 1
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    runs: dict[str, GridRun] = {}
    refused: dict[str, tuple[str, str]] = {}
    with share_sources():
        prints = Fingerprints()
        for model in grid.get("models") or [None]:
            for size, by_size in sizes.items():
                for seed in seeds:
                    for name, by_method in grid["methods"].items():
                        cell = _Cell(str(name), base, by_size or {}, by_method or {})
                        try:
                            run = cell.run(prints, model=model, size=size, seed=seed)
                            runs.setdefault(run.folder, run)
                        except TaskfitError as error:
                            folder = f"refused-{_slug(str(name))}-{size or 'all'}"
                            refused.setdefault(folder, (str(name), str(error)))
    if refused and not runs:
        raise SettingsError(_told_together(list(refused.values())))
    ordered = sorted(runs.values(), key=lambda r: (r.settings.seed, _cost(r), r.size or 0))
    return Grid(ordered, {folder: _told(*found) for folder, found in refused.items()})


def _told(name: str, error: str) -> str:
    return f"method {name} of the grid: {error}"


def _told_together(found: Sequence[tuple[str, str]]) -> str:
    """Return errors of methods, one line each; what is wrong with all of them only once."""
    if len({name for name, _ in found}) > 1 and len({error for _, error in found}) == 1:
        return found[0][1]
    return "\n".join(dict.fromkeys(_told(*pair) for pair in found))


@dataclass(frozen=True, slots=True)
class _Cell:
    """A method at a size, before model and draw."""

    name: str
    base: Mapping[str, Any]
    by_size: Mapping[str, Any]
    by_method: Mapping[str, Any]

    def run(
        self, prints: Fingerprints, *, model: str | None, size: int | None, seed: int
    ) -> GridRun:
        data = _merged(self.base, self.by_size, self.by_method)
        settings = self._settings(data)
        method = settings.method
        # Zero-shot without a prior from texts is the same whatever is drawn.
        is_same = method.shown == 0 and not method.takes_prior
        if method.name in WITHOUT_LEARNING and is_same:
            # What a size adds has no part in it.
            data = _merged(self.base, self.by_method)
            settings, size, seed = self._settings(data), None, 0
        update: dict[str, Any] = {"seed": seed}
        if model is not None:
            update["model"] = settings.model.model_copy(update={"name": model})
        if size is not None:
            update["data"] = settings.data.model_copy(update={"num_train": size})
        # Checked again, as a grid file may hold any value as size or seed.
        plain = settings.model_copy(update=update).model_dump(warnings=False)
        settings = settings_from_dict(plain, asked={})
        slug = _slug(
            f"{self.name} {settings.model.name.rsplit('/', 1)[-1]}"
            if settings.method.reads_model
            else self.name
        )
        folder = f"{slug}-{size or 'all'}-{seed}-{prints.of(settings, changed_unread(data))}"
        return GridRun(self.name, read_only(settings), size, folder)

    def _settings(self, data: Mapping[str, Any]) -> RunSettings:
        """Return the settings of a run; what base and size hold for other methods is left out."""
        return settings_from_dict(data, asked=self.by_method).resolved()


def _merged(*parts: Mapping[str, Any] | None) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in parts:
        merge_settings(merged, part or {})
    return merged


def _method(data: Mapping[str, Any]) -> Mapping[str, Any]:
    found = data.get("method")
    return found if isinstance(found, Mapping) else {}


def _check_read(methods: Mapping[str, Any], shared: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what base and sizes hold for methods that are none of the grid's."""
    problems: dict[str, None] = {}
    for part in shared:
        cells = [_merged(part, by_method) for by_method in methods.values()]
        unread = set.intersection(*(set(changed_unread(cell)) for cell in cells))
        names = [str(_method(cell).get("name", "auto")) for cell in cells]
        problems |= dict.fromkeys(told_of_none(sorted(unread & _method(part).keys()), names))
    if problems:
        raise SettingsError("\n".join(problems))


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text).strip("-")


def _cost(run: GridRun) -> int:
    method = run.settings.method
    if method.name == "probe" and not method.reads_model:
        # As dear as the neighbours in an encoder's features.
        return COST["knn"]
    return COST.get(method.name, TRAINED_COST)


def describe_runs(runs: Sequence[GridRun]) -> str:
    """Return the number of runs of each method, as a line of text."""
    counts = Counter(run.name for run in runs)
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
