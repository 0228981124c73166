"""Read and write settings: defaults < file < command line. Knows no setting by name."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from taskfit.errors import SettingsError
from taskfit.files import write_text_atomic
from taskfit.settings import RunSettings
from taskfit.yaml_text import parse_yaml

PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Return the names of the ready settings files."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def find_settings(name_or_path: str) -> Path:
    """Return the path of a settings file, or of the ready one of this name.

    Raises:
        SettingsError: If there is neither.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if name_or_path in preset_names():
        return PRESETS / f"{name_or_path}.yaml"
    raise SettingsError(
        f"There is no settings file {name_or_path}, and no ready one of this name "
        f"({', '.join(preset_names())})."
    )


def load_settings(
    path: Path | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> RunSettings:
    """Merge defaults, a settings file, command-line flags and `--set` overrides, in that order.

    Args:
        path: A YAML file with any of the settings, or None.
        flags: Nested dictionary of the settings given as flags.
        overrides: `section.key=value` texts; values are read as YAML.

    Raises:
        SettingsError: Listing everything that is wrong.
    """
    merged: dict[str, Any] = {}
    problems: list[str] = []
    if path is not None:
        merged = _read(path)
    merge_settings(merged, flags or {})
    _merge_overrides(merged, overrides, problems)
    return settings_from_dict(merged, problems)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return `section.key=value` texts as nested settings.

    Raises:
        SettingsError: If one is not of this form.
    """
    merged: dict[str, Any] = {}
    problems: list[str] = []
    _merge_overrides(merged, overrides, problems)
    if problems:
        raise SettingsError("\n".join(problems))
    return merged


def _merge_overrides(merged: dict[str, Any], overrides: Sequence[str], problems: list[str]) -> None:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            problems.append(f"--set {override}: write it as section.key=value")
            continue
        merge_settings(merged, _nested(key.strip(), value))


def _nested(key: str, value: str) -> dict[str, Any]:
    """Return a dotted key with its value, read as YAML, as nested dictionaries."""
    try:
        nested: Any = parse_yaml(value)
    except yaml.YAMLError:
        nested = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return dict(nested)


def settings_from_dict(data: Mapping[str, Any], problems: Sequence[str] = ()) -> RunSettings:
    """Check a nested dictionary.

    Args:
        data: Settings by section.
        problems: What is wrong already, told together with the rest.

    Raises:
        SettingsError: One line for each unknown key and each value that does not fit.
    """
    known, unknown = _split_known(data, RunSettings, "")
    lines = [*problems, *unknown]
    try:
        settings = RunSettings.model_validate(known)
    except ValidationError as error:
        lines += _misfits(error)
    if lines:
        raise SettingsError("\n".join(lines))
    return settings


def _misfits(error: ValidationError) -> list[str]:
    """Return a sentence for each value that does not fit, whichever of its types it was held to."""
    found: dict[str, tuple[Any, dict[str, None]]] = {}
    for problem in error.errors():
        # Behind the setting's own path pydantic names the type of a union that was tried.
        path = _setting_path(problem["loc"])
        message = f"{problem['msg'][0].lower()}{problem['msg'][1:]}"
        found.setdefault(path, (problem["input"], {}))[1].setdefault(message)
    return [f"{path} is {value!r}: {', or '.join(told)}." for path, (value, told) in found.items()]


def _setting_path(loc: Sequence[str | int]) -> str:
    """Return the part of an error's location that is in the settings as a user writes them."""
    model: type[BaseModel] | None = RunSettings
    parts: list[str] = []
    is_union = False
    for part in loc:
        if model is None:
            if is_union:
                break
            parts.append(str(part))
            continue
        info = model.model_fields.get(str(part))
        parts.append(str(part))
        kind = None if info is None else info.annotation
        is_union = get_origin(kind) in (Union, UnionType)
        model = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    return ".".join(parts)


def dump_settings(settings: RunSettings, path: Path) -> None:
    """Write every resolved setting as YAML."""
    text = yaml.safe_dump(settings.model_dump(), sort_keys=False, allow_unicode=True)
    write_text_atomic(path, text)


def settings_differences(old: RunSettings, new: RunSettings) -> list[str]:
    """Return what differs, such as `training.learning_rate: 0.0005 -> 0.001`."""
    before, after = _flatten(old.model_dump()), _flatten(new.model_dump())
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def settings_reference() -> str:
    """Return a Markdown table of every setting, for `docs/settings.md`."""
    lines = [
        "# Settings",
        "",
        "Every setting, as `--set section.key=value` or in a settings file (`--config run.yaml`).",
        "Precedence: defaults < file < command line. Made by `python -m taskfit.settings_file`.",
        "",
        "| setting | default | meaning |",
        "|---|---|---|",
    ]
    lines += _rows(RunSettings, "")
    return "\n".join(lines) + "\n"


def _rows(model: type[BaseModel], prefix: str) -> list[str]:
    rows = []
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            rows += _rows(info.annotation, f"{prefix}{name}.")
        else:
            default = info.get_default(call_default_factory=True)
            meaning = " ".join((info.description or "").split()).replace("|", "\\|")
            rows.append(f"| `{prefix}{name}` | `{default}` | {meaning} |")
    return rows


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SettingsError(f"There is no settings file {path}.")
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise SettingsError(f"{path} holds no settings; see docs/settings.md.")
    return data


def merge_settings(target: dict[str, Any], extra: Mapping[str, Any]) -> None:
    """Put nested settings over others, in place; what is not mentioned stays."""
    for key, value in extra.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            merge_settings(target[key], value)
        else:
            target[key] = dict(value) if isinstance(value, Mapping) else value


def _split_known(
    data: Mapping[str, Any], model: type[BaseModel], prefix: str
) -> tuple[dict[str, Any], list[str]]:
    """Return what the model knows, and a sentence for each key that it does not."""
    known: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in data.items():
        info = model.model_fields.get(str(key))
        if info is None:
            names = list(model.model_fields)
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f" Did you mean {prefix}{close[0]}?" if close else ""
            where = prefix.rstrip(".") or "the top level"
            problems.append(
                f"Unknown setting {prefix}{key}.{hint} {where} has: {', '.join(names)}."
            )
        elif isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            if isinstance(value, Mapping):
                known[key], found = _split_known(value, info.annotation, f"{prefix}{key}.")
                problems += found
            else:
                problems.append(
                    f"{prefix}{key} is {value!r}, but it is a section with the settings "
                    f"{', '.join(info.annotation.model_fields)}."
                )
        else:
            known[key] = value
    return known, problems


def _flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


if __name__ == "__main__":
    import sys

    sys.stdout.write(settings_reference())
