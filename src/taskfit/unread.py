"""Which of the settings given a method does not read, and what is said of them.

A setting that would do nothing is refused, with the methods that do read it. Two things are not:
a value that the setting has anyway, since settings files of earlier versions hold every setting of
every method; and what stands in the settings of a finished run, or in what the methods of a grid
share, where it is left out.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from taskfit.method_base import GUARDED, MethodSettings
from taskfit.method_settings import METHOD_SETTINGS, method_settings
from taskfit.settings import RunSettings

Settings = Mapping[str, Any]


def method_of(data: Settings) -> type[MethodSettings] | None:
    """Return the class of the method that nested settings name; None if there is no such method."""
    return METHOD_SETTINGS.get(str(_section(data, "method").get("name", "auto")))


def unread_of_method(data: Settings) -> dict[str, Any]:
    """Return the settings of section `method` that are for other methods than the one named."""
    kind = method_of(data)
    if kind is None:
        return {}
    return {
        key: value
        for key, value in _section(data, "method").items()
        if key not in kind.model_fields and readers_of(f"method.{key}")
    }


def without_unread(data: Settings) -> dict[str, Any]:
    """Return nested settings without those of other methods; other sections stay whole."""
    unread = unread_of_method(data)
    if not unread:
        return dict(data)
    kept = {k: v for k, v in _section(data, "method").items() if k not in unread}
    return {**data, "method": kept}


def changed_unread(data: Settings) -> dict[str, Any]:
    """Return what of `unread_of_method` has another value than its default, as settings hold it."""
    found = {}
    for key, value in unread_of_method(data).items():
        reader = readers_of(f"method.{key}")[0]
        try:
            typed = method_settings(reader, **{key: value}).model_dump(mode="json")[key]
        except ValidationError:
            typed = value
        if typed != METHOD_SETTINGS[reader].model_fields[key].default:
            found[key] = typed
    return found


def refusals(data: Settings, asked: Settings) -> list[str]:
    """Return a sentence for each setting asked for that the method does not read.

    Args:
        data: All nested settings.
        asked: Those of them that a user asks for now.
    """
    kind = method_of(data)
    if kind is None:
        return []
    name = str(_section(data, "method").get("name", "auto"))
    own = ", ".join(key for key in kind.model_fields if key != "name")
    told = []
    for setting in unread_settings(data, asked):
        reads = f", which reads: {own or 'none of this section'}" * setting.startswith("method.")
        told.append(f"{_read_by(setting)}, not by {name}{reads}.")
    return told


def unread_settings(data: Settings, asked: Settings) -> list[str]:
    """Return each `section.key` asked for that the method does not read; see `refusals`."""
    kind = method_of(data)
    if kind is None:
        return []
    name = str(_section(data, "method").get("name", "auto"))
    found = [f"method.{key}" for key in changed_unread(data) if key in _section(asked, "method")]
    for section in GUARDED:
        usual = _usual(name, section)
        for key, value in _section(asked, section).items():
            setting = f"{section}.{key}"
            # What is no setting at all is told elsewhere.
            is_idle = not is_read(setting, kind, _section(data, "method"))
            if key in usual and is_idle and value not in usual[key]:
                found.append(setting)
    return found


def read_only(settings: RunSettings) -> RunSettings:
    """Return settings in which what the method does not read of other sections is as usual."""
    name, kind = settings.method.name, type(settings.method)
    method, changed = dict(settings.method), {}
    for section in GUARDED:
        found, usual = getattr(settings, section), _usual(name, section)
        update = {
            key: values[1]
            for key, values in usual.items()
            if not is_read(f"{section}.{key}", kind, method) and getattr(found, key) not in values
        }
        changed[section] = found.model_copy(update=update)
    return settings.model_copy(update=changed)


def told_of_none(unread: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return a sentence for each setting of section `method` that none of some methods reads."""
    methods = ", ".join(dict.fromkeys(names))
    return [f"{_read_by(f'method.{key}')}, not by any method here: {methods}." for key in unread]


def is_read(
    setting: str, kind: type[MethodSettings], method: Settings = MappingProxyType({})
) -> bool:
    """Return whether a method reads `section.key`, with settings of its own such as these."""
    section, _, key = setting.partition(".")
    if section == "method":
        return key in kind.model_fields
    if section in kind.reads_with:
        own, value = kind.reads_with[section]
        return bool(method.get(own) == value)
    return section not in GUARDED or section in kind.reads or setting in kind.reads


def readers_of(setting: str) -> list[str]:
    """Return the names of the methods that read `section.key`."""
    return [name for name, kind in METHOD_SETTINGS.items() if is_read(setting, kind)]


def takers_of(setting: str, value: object) -> list[str]:
    """Return the methods that take a value as setting `method.key`."""
    key, found = setting.removeprefix("method."), []
    for name in readers_of(setting):
        try:
            method_settings(name, **{key: value})
        except ValidationError:
            continue
        found.append(name)
    return found


def _read_by(setting: str) -> str:
    return f"{setting} is read by {', '.join(readers_of(setting))}"


@cache
def _usual(name: str, section: str) -> dict[str, tuple[Any, Any]]:
    """Return what each setting of a section is where nothing is given, at first and resolved."""
    first = RunSettings.model_validate({"method": {"name": name}})
    before, after = getattr(first, section), getattr(first.resolved(), section)
    return {key: (getattr(before, key), getattr(after, key)) for key in type(before).model_fields}


def _section(data: Settings, name: str) -> Settings:
    found = data.get(name)
    return found if isinstance(found, Mapping) else {}
