"""What all sections of the settings are made of."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, field_validator

from taskfit.errors import SettingsError
from taskfit.yaml_text import Kind, as_kind, inside, members

Auto = Literal["auto"]
# What NumPy and scikit-learn take.
MAX_SEED = 2**32 - 1
LARGEST = 10**15
DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
DEVICES = "allowed are auto, cpu, cuda and cuda:N"
T = TypeVar("T")


def known(value: T | Auto) -> T:
    """Return a setting that `auto` has been replaced in, see `training/length.py`."""
    assert value != "auto", "a setting is still auto where its value is needed"
    return value


@dataclass(frozen=True, slots=True)
class LineBreaks:
    r"""Beside `str`: a text that may be empty, in which `--set` reads \n as a line break."""


PromptText = Annotated[str, LineBreaks()]


def as_tried(tried: Any, kind: Kind) -> Any:  # noqa: ANN401 - of any kind
    """Return what a search tries, as a file holds it, with choices of the kinds of their settings.

    Args:
        tried: `section.key` -> what to try, also nested; or choices.
        kind: The type of all settings, or of the section or setting that is tried.
    """
    if isinstance(tried, list):
        return [as_kind(one, kind or str) for one in tried]
    if not isinstance(tried, Mapping):
        return as_kind(tried, Any)
    found = {}
    for key, one in tried.items():
        kinds = members(kind)
        for part in () if key == "choices" else str(key).split("."):
            kinds = inside(kinds, part)
        found[str(key)] = as_tried(one, kinds)
    return found


def merge_settings(target: dict[str, Any], extra: Mapping[str, Any]) -> None:
    """Put nested settings over others, in place; what is not mentioned stays."""
    for key, value in extra.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            merge_settings(target[key], value)
        else:
            target[key] = dict(value) if isinstance(value, Mapping) else value


def check_set_name(name: str) -> str:
    """Return the name of an evaluation set, which is also the name of its files.

    Raises:
        ValueError: If no file can be called so.
    """
    if not name or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise ValueError(
            f"an evaluation set cannot be called {name!r}, as its files take its name. Give a "
            "name without / and \\ that does not start with a dot"
        )
    return name


def check_device(name: str) -> str:
    """Return the name of a device.

    Raises:
        SettingsError: If no device that is served is called so, whether this machine has it or not.
    """
    if not DEVICE.fullmatch(name):
        raise SettingsError(f"The device is {name!r}: {DEVICES}.")
    return name


def _check_setting(name: str) -> str:
    """Say of a setting what `check_device` says; the setting is named with it."""
    if not DEVICE.fullmatch(name):
        raise ValueError(DEVICES)
    return name


Device = Annotated[str, AfterValidator(_check_setting)]


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused, texts below fields are their help."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _is_no_overflow(cls, value: object) -> object:
        """Refuse numbers that no array, clock or file can hold."""
        if isinstance(value, (int, float)) and abs(value) > LARGEST:
            raise ValueError(f"numbers go up to {LARGEST}")
        return value
