"""Settings as they are typed: `section.key=value`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_origin

import yaml

from taskfit.errors import SettingsError
from taskfit.settings import RunSettings
from taskfit.settings_base import LineBreaks, merge_settings
from taskfit.yaml_text import Word, as_kind, inside, members, parse_words

QUOTES = ("'", '"')
# Line break and tab as they are typed; with one more backslash they are two characters.
LINE_BREAK = re.compile(r"\\(\\?)([nt])")


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return `section.key=value` texts as nested settings.

    Raises:
        SettingsError: If one is not of this form.
    """
    merged: dict[str, Any] = {}
    problems: list[str] = []
    merge_overrides(merged, overrides, problems)
    if problems:
        raise SettingsError("\n".join(problems))
    return merged


def merge_overrides(merged: dict[str, Any], overrides: Sequence[str], problems: list[str]) -> None:
    r"""Put `section.key=value` texts into nested settings, in place; what is wrong, into problems.

    A setting that is a text takes the value as it stands, but for quotes around all of it, and
    `null` where it may be None; in parts of prompts \n is a line break. Other values are YAML.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            problems.append(f"--set {override}: write it as section.key=value")
            continue
        parts, kinds = _place(key.strip())
        if str in kinds:
            value = _as_typed(text, kinds)
            if value == "" and not _is_prompt(kinds):
                problems.append(f"--set {override}: there is no value behind the =")
                continue
        else:
            value = _as_yaml(text)
        for part in reversed(parts):
            value = {part: value}
        merge_settings(merged, as_kind(value, RunSettings))


def nested_setting(key: str, value: object) -> dict[str, Any]:
    """Return a setting named `section.key`, or an entry of one, as nested settings.

    Args:
        key: Its name.
        value: As Python has it; names of labels may be numbers, places paths.
    """
    nested = _as_read(value)
    for part in reversed(_place(key)[0]):
        nested = {part: nested}
    return dict(nested)


def _as_read(value: object) -> Any:  # noqa: ANN401 - whatever settings hold
    """Return a value of Python as a settings file would have it."""
    if isinstance(value, Mapping):
        return {str(key): _as_read(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_read(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _place(key: str) -> tuple[list[str], tuple[Any, ...]]:
    """Return the parts of a dotted key, and the types of what may stand there.

    In a dictionary of texts all the rest is one key: a label may have dots in it.
    """
    names, parts, kinds = key.split("."), list[str](), members(RunSettings)
    for number, name in enumerate(names, start=1):
        inner = inside(kinds, name)
        if str in inner and any(get_origin(kind) is dict for kind in kinds):
            rest = ".".join(names[number - 1 :])
            return [*parts, rest], inner
        parts.append(name)
        kinds = inner
    return parts, kinds


def _as_yaml(text: str) -> Any:  # noqa: ANN401 - whatever the text holds
    """Return a value of --set as YAML, or the text if it is none."""
    try:
        return parse_words(text)
    except yaml.YAMLError:
        return text


def _as_typed(text: str, kinds: Sequence[Any]) -> Any:  # noqa: ANN401 - or a list, or None
    """Return a value of --set for a setting that is a text: as it stands, without its quotes."""
    if text == "null" and NoneType in kinds:
        return None
    found = _as_yaml(text) if text[:1] in QUOTES else text
    if text[:1] in QUOTES and isinstance(found, str) and not isinstance(found, Word):
        return found
    if text[:1] == "[" and any(get_origin(kind) is list for kind in kinds):
        found = _as_yaml(text)
        # One text in brackets is a text in brackets.
        if isinstance(found, list) and len(found) > 1:
            return found
    return LINE_BREAK.sub(_written, text) if _is_prompt(kinds) else text


def _written(escape: re.Match[str]) -> str:
    return {"n": "\n", "t": "\t"}[escape[2]] if not escape[1] else f"\\{escape[2]}"


def _is_prompt(kinds: Sequence[Any]) -> bool:
    return any(isinstance(kind, LineBreaks) for kind in kinds)
