"""What a search tries: the space of each method, the user's own, and the way back to settings."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from taskfit.errors import SettingsError
from taskfit.method_settings import InContextSettings, KnnSettings
from taskfit.methods.method import TrainedMethod
from taskfit.methods.table import METHODS
from taskfit.runs.prepare import PreparedData
from taskfit.settings import RunSettings, SearchSettings, known
from taskfit.settings_base import merge_settings
from taskfit.settings_file import settings_from_dict
from taskfit.tasks import Task
from taskfit.tasks.variants import AS_GIVEN, NamedTask
from taskfit.unread import is_read, readers_of, told_of_none

Value = bool | int | float | str | None
TEMPLATE = "template"
SECTIONS = ("training", "adapter", "method", "task")
TRAINING = ("training", "adapter")
# They decide which base model is loaded, what is asked, or nothing about the outcome.
FIXED = (
    "method.name",
    "method.retriever",
    "method.features",
    "method.blend",
    "adapter.weights",
    "adapter.double_quantization",
    "task.name",
    "task.multi_label",
    "task.label_words",
    "training.tensorboard",
    "training.trackers",
)
# A few wordings that differ much; a search of some trials cannot rank fifty.
TEMPLATES = (AS_GIVEN, "no instruction", "label", "arrow", "question")
READS_PROMPT = ("label_words", "label_text", "distill", "in_context")
LOG_FROM_RATIO = 10.0  # A range whose ends differ by this much is searched by its logarithm.
SIGNIFICANT_DIGITS = 3  # More would suggest a precision that no search has.


@dataclass(frozen=True, slots=True)
class Dimension:
    """One setting to search.

    Attributes:
        key: `section.name`, or `template`.
        choices: The values to choose from; empty for a range.
        low: Lower end of a range.
        high: Upper end, included.
        is_integer: Whether a range holds whole numbers only.
        is_log: Whether a range is searched by its logarithm.
    """

    key: str
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_integer: bool = False
    is_log: bool = False

    @property
    def size(self) -> float:
        """Return how many values there are; infinity for a range of real numbers."""
        if self.choices:
            return len(self.choices)
        return self.high - self.low + 1 if self.is_integer else math.inf

    def values(self) -> tuple[Value, ...]:
        """Return every value of a finite dimension."""
        return self.choices or tuple(range(int(self.low), int(self.high) + 1))

    @property
    def examples(self) -> tuple[Value, ...]:
        """Return every choice, or the ends of a range, to be checked before anything runs."""
        return self.choices or (self.at(self.low), self.at(self.high))

    def at(self, value: Value) -> Value:
        """Return a value as settings hold it: a few digits of a real number."""
        if self.choices or not isinstance(value, (int, float)):
            return value
        return int(value) if self.is_integer else float(f"{value:.{SIGNIFICANT_DIGITS}g}")

    def holds(self, value: Value) -> bool:
        """Return whether a value lies in the space."""
        if self.choices:
            return value in self.choices
        return isinstance(value, (int, float)) and self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Space:
    """All that a search varies.

    Attributes:
        given: The settings as given.
        dimensions: What is varied.
        templates: Wordings of the task by name.
    """

    given: RunSettings
    dimensions: tuple[Dimension, ...]
    templates: Mapping[str, Task]

    @property
    def size(self) -> float:
        """Return the number of combinations."""
        return math.prod(dimension.size for dimension in self.dimensions)

    def given_values(self, task: Task) -> dict[str, Value] | None:
        """Return the values as given, or None where the space does not hold them."""
        plain = self.given.model_dump()
        plain["method"]["num_demonstrations"] = task.num_demonstrations
        values: dict[str, Value] = {}
        for dimension in self.dimensions:
            section, _, name = dimension.key.partition(".")
            value = AS_GIVEN if dimension.key == TEMPLATE else plain[section][name]
            if not dimension.holds(value):
                return None
            values[dimension.key] = next((one for one in dimension.choices if one == value), value)
        return values

    def settings(self, values: Mapping[str, Value]) -> RunSettings:
        """Return the settings of a trial.

        The scale of the adapters, lora_alpha / lora_rank, stays when only the rank is varied.

        Raises:
            SettingsError: If a value does not fit its setting.
        """
        plain = self.given.model_dump()
        plain["search"] = SearchSettings().model_dump()
        nested: dict[str, Any] = {}
        for key, value in values.items():
            if key == TEMPLATE:
                if value != AS_GIVEN:
                    merge_settings(nested, {"task": wording_settings(self.templates[str(value)])})
                continue
            section, _, name = key.partition(".")
            merge_settings(nested, {section: {name: value}})
        rank = values.get("adapter.lora_rank")
        if isinstance(rank, int) and "adapter.lora_alpha" not in values:
            adapter = self.given.adapter
            alpha = adapter.lora_alpha * rank / adapter.lora_rank
            merge_settings(nested, {"adapter": {"lora_alpha": alpha}})
        merge_settings(plain, nested)
        return settings_from_dict(plain, asked={})


def make_space(settings: RunSettings, data: PreparedData, candidates: Sequence[NamedTask]) -> Space:
    """Return the space that the settings give, or the method's own.

    Args:
        settings: The settings as given.
        data: The run's data.
        candidates: Wordings of the task that the method can read, the task as given first.

    Raises:
        SettingsError: If the method has nothing to search, or the space given is wrong.
    """
    templates = {one.name: one.task for one in candidates}
    flat = _flat(settings.search.space) or default_space(settings, data, list(templates))
    if not flat:
        raise SettingsError(
            f"method {settings.method.name} has nothing to search. Leave the search out, or say "
            "what to try in search.space."
        )
    problems: list[str] = []
    dimensions: list[Dimension] = []
    for key, spec in flat.items():
        try:
            dimensions.append(_dimension(key, spec, settings))
        except SettingsError as error:
            problems.append(f"search.space: {error}")
    space = Space(settings, tuple(dimensions), templates)
    problems += _misfits(space)
    if problems:
        raise SettingsError("\n".join(problems))
    return space


def default_space(
    settings: RunSettings, data: PreparedData, templates: Sequence[str]
) -> dict[str, Any]:
    """Return a method's own space, as a user would write it in `search.space`.

    Ranges lie around the values as given: five times up and down for the learning rate, up to
    four times the epochs.
    """
    name, method, training = settings.method.name, settings.method, settings.training
    space: dict[str, Any] = {}
    if issubclass(METHODS[name], TrainedMethod):
        rate, epochs = known(training.learning_rate), known(training.epochs)
        space["training.learning_rate"] = {"low": rate / 5, "high": rate * 5, "log": True}
        if training.max_steps is None:
            space["training.epochs"] = {"choices": [epochs * n for n in (1, 2, 4)]}
        if settings.adapter.weights != "full":
            ranks = {4, 8, 16, 32, settings.adapter.lora_rank}
            space["adapter.lora_rank"] = {"choices": sorted(ranks)}
    reads_prompt = name in READS_PROMPT or (method.shows_demonstrations and method.reads_model)
    wordings = [one for one in TEMPLATES if one in templates]
    if reads_prompt and name != "remote" and len(wordings) > 1:
        space[TEMPLATE] = {"choices": wordings}
    if name in ("in_context", "probe") and reads_prompt and data.train:
        given = data.task.num_demonstrations
        space["method.num_demonstrations"] = {"choices": sorted({0, 4, 8, given})}
    if isinstance(method, InContextSettings):
        calibrations = ["none", "contextual", "batch" if data.train else "pmi"]
        space["method.calibration"] = {
            "choices": list(dict.fromkeys([method.calibration, *calibrations]))
        }
    if isinstance(method, KnnSettings):
        counts = {1, 4, 8, 16, 32, method.num_neighbors}
        space["method.num_neighbors"] = {"choices": sorted(counts)}
    return space


def wording_settings(task: Task) -> dict[str, Any]:
    """Return the settings of section `task` that turn the task as given into another wording."""
    return {
        **asdict(task.template),
        "label_words": {label.name: list(label.words) for label in task.labels},
    }


def _flat(space: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `section.key` -> specification, however the keys are nested."""
    flat: dict[str, Any] = {}
    for key, value in space.items():
        is_leaf = not isinstance(value, Mapping) or value.keys() & {"low", "high", "choices"}
        flat.update({f"{prefix}{key}": value} if is_leaf else _flat(value, f"{prefix}{key}."))
    return flat


def _dimension(key: str, spec: object, settings: RunSettings) -> Dimension:
    """Return the dimension that a specification describes.

    Raises:
        SettingsError: If it describes none.
    """
    section, _, name = key.partition(".")
    method = settings.method
    if readers_of(key) and not is_read(key, type(method)) and section == "method":
        (message,) = told_of_none([name], [method.name])
        raise SettingsError(message)
    known = key == TEMPLATE or name in settings.model_dump().get(section, {})
    if key in FIXED or not known or (key != TEMPLATE and section not in SECTIONS):
        raise SettingsError(
            f"{key} cannot be searched. It may have {TEMPLATE} and the settings of "
            f"{', '.join(SECTIONS)} but for {', '.join(FIXED)}."
        )
    if section in TRAINING and not issubclass(METHODS[settings.method.name], TrainedMethod):
        raise SettingsError(
            f"{key} has no part in method {settings.method.name}, which is not trained in steps. "
            "Leave it out."
        )
    how = (
        f"{key} is {spec!r}; write a range as [low, high] or {{low: 1, high: 9}}, choices as a "
        "list or {choices: [4, 8]}."
    )
    log: object = None
    if isinstance(spec, Mapping) and {"low", "high"} <= spec.keys() <= {"low", "high", "log"}:
        low, high, log = _number(spec["low"]), _number(spec["high"]), spec.get("log")
    elif isinstance(spec, list) and len(spec) == 2 and None not in map(_number, spec):
        low, high = map(_number, spec)
    else:
        choices = spec["choices"] if isinstance(spec, Mapping) and [*spec] == ["choices"] else spec
        if not isinstance(choices, list) or not choices or not all(map(_is_plain, choices)):
            raise SettingsError(how)
        unique = {json.dumps(one): one for one in choices}
        return Dimension(key, choices=tuple(unique.values()))
    if low is None or high is None or not low < high or not (log is None or isinstance(log, bool)):
        raise SettingsError(f"{how} The low end must be below the high one.")
    if log and low <= 0:
        raise SettingsError(f"{how} A range by logarithm must be above 0.")
    is_integer = (
        isinstance(low, int) and isinstance(high, int) and _is_whole(section, name, settings)
    )
    wide = low > 0 and high / low >= LOG_FROM_RATIO and not is_integer
    return Dimension(
        key, low=low, high=high, is_integer=is_integer, is_log=wide if log is None else log
    )


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _number(value: object) -> int | float | None:
    """Return a number, also of a text such as 1e-4, which YAML does not take for one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value
    try:
        return float(str(value))
    except ValueError:
        return None


def _is_whole(section: str, name: str, settings: RunSettings) -> bool:
    """Return whether a setting takes whole numbers only."""
    half: dict[str, Any] = settings.model_dump()
    merge_settings(half, {section: {name: 1.5}})
    try:
        settings_from_dict(half, asked={})
    except SettingsError:
        return True
    return False


def _misfits(space: Space) -> list[str]:
    """Return what is wrong with single values of a space."""
    keys = [dimension.key for dimension in space.dimensions]
    problems: list[str] = []
    if TEMPLATE in keys and any(key.startswith("task.") for key in keys):
        problems.append(f"search.space: {TEMPLATE} and settings of task exclude each other.")
    for dimension in space.dimensions:
        for value in dimension.examples:
            if dimension.key == TEMPLATE and value not in space.templates:
                problems.append(
                    f"search.space: there is no template {value!r} that this method and model can "
                    f"read; there are: {', '.join(space.templates)}."
                )
                continue
            try:
                space.settings({dimension.key: value})
            except SettingsError as error:
                problems.append(f"search.space: {error}")
    return problems
