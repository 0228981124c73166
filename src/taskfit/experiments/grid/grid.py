"""A grid of runs: methods x sample sizes x draws x models, each run once and never lost."""

import hashlib
import json
import re
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from taskfit.errors import SettingsError, TaskfitError
from taskfit.experiments.fit import fit
from taskfit.experiments.records import RESULT_FILE, RunResult, write_results_csv
from taskfit.experiments.screen import Screen
from taskfit.files import write_json_atomic
from taskfit.methods.method import TrainedMethod
from taskfit.methods.table import METHODS
from taskfit.models import LoadedModel, load_model
from taskfit.settings import RunSettings
from taskfit.settings_file import merge_settings, settings_from_dict

KEYS = ("base", "methods", "sizes", "seeds", "models")
FAILURE = "failure.json"
# One draw of everything comes first, and cheap runs first in it, so that the results are useful
# from the first minute.
COST = {"majority": 0, "tfidf": 0, "knn": 1, "probe": 2, "in_context": 3, "remote": 3, "encoder": 4}
TRAINED_COST = 5
# What `taskfit compare` runs where nothing is chosen: everything that needs no endpoint.
DEFAULT_METHODS: dict[str, dict[str, Any]] = {
    "majority": {"method": {"name": "majority"}},
    "tfidf": {"method": {"name": "tfidf"}},
    "zero-shot": {"method": {"name": "in_context", "num_demonstrations": 0}},
    "few-shot": {"method": {"name": "in_context", "num_demonstrations": 8, "calibration": "batch"}},
    "probe": {"method": {"name": "probe"}},
    "encoder": {"method": {"name": "encoder"}},
    "head": {"method": {"name": "head"}},
    "label_words": {"method": {"name": "label_words"}},
}


@dataclass(frozen=True, slots=True)
class GridRun:
    """One run of a grid.

    Attributes:
        name: The method's name in tables.
        settings: Everything about it.
        size: Training examples, or None where the method sees none.
        folder: Name of its folder, which ends with a fingerprint of the settings.
    """

    name: str
    settings: RunSettings
    size: int | None
    folder: str


@dataclass(frozen=True, slots=True)
class GridOutcome:
    """What became of a grid.

    Attributes:
        results: Finished runs, in the order of the grid.
        failures: Folder name -> the error's message.
        num_left: Runs not started, because the time was up.
    """

    results: list[RunResult]
    failures: dict[str, str]
    num_left: int


def load_grid(path: Path) -> dict[str, Any]:
    """Read a grid file: `base` settings, `methods`, `sizes`, `seeds`, `models`.

    Raises:
        SettingsError: If it is no grid.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(f"There is no grid file {path}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not YAML: {error}") from error
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
    return data


def expand_grid(grid: Mapping[str, Any]) -> list[GridRun]:
    """Return every run of a grid, draw by draw, cheap ones first.

    `sizes` and `methods` map names to settings that they add (or `sizes` is a list of numbers);
    `seeds` is a list, or how many; `models` is a list of names. A method that sees no training
    example (zero-shot) runs once a model.

    Raises:
        SettingsError: Naming the part whose settings are wrong.
    """
    sizes = grid.get("sizes") or {None: {}}
    if isinstance(sizes, Sequence):
        sizes = {size: {} for size in sizes}
    seeds = grid.get("seeds", 1)
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    models = grid.get("models") or [None]
    runs: dict[str, GridRun] = {}
    for model in models:
        for size, by_size in sizes.items():
            for seed in seeds:
                for name, by_method in grid["methods"].items():
                    parts = [grid.get("base") or {}, by_size or {}, by_method or {}]
                    run = _run_of(str(name), parts, model=model, size=size, seed=seed)
                    if run.size is None:  # what a size adds has no part in it
                        parts = [grid.get("base") or {}, by_method or {}]
                        run = _run_of(str(name), parts, model=model, size=size, seed=seed)
                    runs.setdefault(run.folder, run)
    return sorted(runs.values(), key=lambda r: (r.settings.seed, _cost(r), r.size or 0))


def _run_of(
    name: str,
    parts: Sequence[Mapping[str, Any]],
    *,
    model: str | None,
    size: int | None,
    seed: int,
) -> GridRun:
    merged: dict[str, Any] = {}
    for part in parts:
        merge_settings(merged, part)
    try:
        settings = settings_from_dict(merged).resolved()
    except SettingsError as error:
        raise SettingsError(f"method {name} of the grid: {error}") from error
    method, data = settings.method, settings.data
    if model is not None:
        settings = settings.model_copy(
            update={"model": settings.model.model_copy(update={"name": model})}
        )
    # Zero-shot without a prior from texts is the same whatever is drawn.
    zero_shot = (
        not METHODS[method.name].learns
        and method.num_demonstrations == 0
        and method.calibration != "batch"
    )
    if zero_shot:
        size, seed = None, 0
    if size is not None:
        data = data.model_copy(update={"num_train": size})
    settings = settings.model_copy(update={"data": data, "seed": seed})
    digest = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:10]
    slug = re.sub(r"\W+", "-", f"{name} {settings.model.name.rsplit('/', 1)[-1]}").strip("-")
    return GridRun(name, settings, size, f"{slug}-{size or 'all'}-{seed}-{digest}")


def _cost(run: GridRun) -> int:
    return COST.get(run.settings.method.name, TRAINED_COST)


def run_grid(
    runs: Sequence[GridRun], folder: Path, *, screen: Screen, budget_seconds: float | None = None
) -> GridOutcome:
    """Run a grid in this process; skip what is finished, resume what was interrupted.

    A run that fails is recorded and the others go on; it is tried again the next time. The base
    model is loaded once and shared by the runs that leave it as it was.

    Args:
        runs: As `expand_grid` returns them.
        folder: Gets a folder for each run, and `results.csv` after each.
        screen: Where progress is shown.
        budget_seconds: No run is started after this time.
    """
    started = time.perf_counter()
    results: list[RunResult] = []
    failures: dict[str, str] = {}
    shared = _SharedModel()
    for place, run in enumerate(runs):
        target = folder / "runs" / run.folder
        if (target / RESULT_FILE).is_file():
            results.append(RunResult.load(target))
            continue
        seconds = time.perf_counter() - started
        if budget_seconds is not None and seconds > budget_seconds:
            screen.note(f"time is up after {seconds:.0f} s; {len(runs) - place} runs are left")
            return _finish(folder, results, failures, runs[place:])
        left = _time_left(seconds, place, len(runs), len(results))
        screen.note(f"[{place + 1}/{len(runs)}] {run.folder}{left}")
        try:
            results.append(_fit_one(run, target, shared, screen))
            (target / FAILURE).unlink(missing_ok=True)
        except Exception as error:
            failures[run.folder] = str(error) or type(error).__name__
            shared.forget()
            target.mkdir(parents=True, exist_ok=True)
            trace = "" if isinstance(error, TaskfitError) else traceback.format_exc()
            write_json_atomic(target / FAILURE, {"error": str(error), "traceback": trace})
            screen.note(f"failed: {failures[run.folder]}")
        write_results_csv(folder / "results.csv", results)
    return _finish(folder, results, failures, [])


class _SharedModel:
    """The base model, kept while runs leave it as it was."""

    def __init__(self) -> None:
        self._key = ""
        self._model: LoadedModel | None = None

    def get(self, settings: RunSettings) -> LoadedModel | None:
        if not METHODS[settings.method.name].reads_model(settings.method):
            return None
        quantized = settings.adapter.weights == "qlora"
        key = settings.model.model_dump_json() + (
            settings.adapter.model_dump_json() if quantized else ""
        )
        if self._model is None or key != self._key:
            self._model = None  # before the next one is loaded
            self._model = load_model(settings.model, quantization=settings.adapter)
            self._key = key
        return self._model

    def forget(self) -> None:
        self._model = None


def _fit_one(run: GridRun, target: Path, shared: _SharedModel, screen: Screen) -> RunResult:
    fitted = fit(
        run.settings,
        target,
        resume=(target / "settings.yaml").is_file(),
        screen=screen,
        model=shared.get(run.settings),
        name=run.name,
        report=False,
    )
    method = fitted.classifier.method
    if isinstance(method, TrainedMethod) and not method.release():
        shared.forget()
    return fitted.result


def _finish(
    folder: Path,
    results: list[RunResult],
    failures: dict[str, str],
    left: Sequence[GridRun],
) -> GridOutcome:
    write_results_csv(folder / "results.csv", results)
    write_json_atomic(
        folder / "grid.json",
        {"num_finished": len(results), "failures": failures, "left": [r.folder for r in left]},
    )
    return GridOutcome(results, failures, len(left))


def _time_left(seconds: float, place: int, total: int, num_done: int) -> str:
    if not num_done or not place:
        return ""
    return f"  (about {seconds / place * (total - place) / 60:.0f} min left)"


def describe_runs(runs: Sequence[GridRun]) -> str:
    """Return the number of runs of each method, as a line of text."""
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.name] = counts.get(run.name, 0) + 1
    return json.dumps(counts)[1:-1].replace('"', "")
