"""Read and write settings: defaults < file < command line.

Of all settings it knows one by name, `method.name`, which decides what section `method` has.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_origin

from pydantic import BaseModel, ValidationError

from taskfit.errors import SettingsError
from taskfit.files import write_text_atomic
from taskfit.method_base import GUARDED, MethodSettings
from taskfit.method_settings import METHOD_SETTINGS
from taskfit.overrides import merge_overrides
from taskfit.settings import RunSettings
from taskfit.settings_base import merge_settings
from taskfit.unread import (
    is_read,
    method_of,
    read_only,
    refusals,
    takers_of,
    unread_settings,
    without_unread,
)
from taskfit.yaml_text import Kind, dump_yaml, members, read_yaml

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
    path: Path | RunSettings | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    lenient_file: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> RunSettings:
    """Merge defaults, a settings file, command-line flags and `--set` overrides, in that order.

    Args:
        path: A YAML file with any of the settings, settings in its place, or None.
        flags: Nested dictionary of the settings given as flags.
        overrides: `section.key=value` texts; a text is taken as it stands, other values are YAML.
        lenient_file: Leave out what the method does not read of the file, and refuse it only where
            it is given now. So it is, too, where another method is given now than the file has.
        note: Called with a line that says what was left out because of another method.

    Raises:
        SettingsError: Listing everything that is wrong.
    """
    given: dict[str, Any] = {}
    problems: list[str] = []
    merge_settings(given, flags or {})
    merge_overrides(given, overrides, problems)
    merged = path.model_dump() if isinstance(path, RunSettings) else {}
    if isinstance(path, Path):
        merged = _read(path)
    before = method_of(merged)
    merge_settings(merged, given)
    changes_method = method_of(merged) not in (None, before) and path is not None
    if not lenient_file and not changes_method:
        return settings_from_dict(merged, problems)
    settings = read_only(settings_from_dict(merged, problems, asked=given))
    if changes_method and not lenient_file:
        typed = unread_settings(merged, given)
        left = [name for name in unread_settings(merged, merged) if name not in typed]
        if left:
            where = path.stem if isinstance(path, Path) and path.parent == PRESETS else path
            note(f"{settings.method.name} does not read {', '.join(left)} of {where}: left out")
    return settings


def load_run_settings(path: Path) -> RunSettings:
    """Return the settings in a run's folder, which an earlier version may have written.

    Raises:
        SettingsError: Listing everything that is wrong.
    """
    return load_settings(path, lenient_file=True)


def settings_from_dict(
    data: Mapping[str, Any],
    problems: Sequence[str] = (),
    *,
    asked: Mapping[str, Any] | None = None,
) -> RunSettings:
    """Check a nested dictionary.

    Args:
        data: Settings by section.
        problems: What is wrong already, told together with the rest.
        asked: The part of the data in which a setting that the method does not read is refused;
            elsewhere it is left out. None: all of it.

    Raises:
        SettingsError: One line for each unknown key, each setting that the method does not read,
            and each value that does not fit.
    """
    lines = [*problems]
    known, unknown = _split_known(without_unread(data), RunSettings, "", method_of(data))
    lines += unknown + refusals(data, data if asked is None else asked)
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
        message = problem["msg"].removeprefix("Value error, ")
        message = f"{message[0].lower()}{message[1:]}"
        found.setdefault(path, (problem["input"], {}))[1].setdefault(message)
    lines = []
    for path, (value, told) in found.items():
        takers = takers_of(path, value) if path.startswith("method.") else []
        others = f" ({', '.join(takers)} may have it)" if takers else ""
        lines.append(f"{path} is {value!r}: {', or '.join(told)}{others}.")
    return lines


def _setting_path(loc: Sequence[str | int]) -> str:
    """Return the part of an error's location that is in the settings as a user writes them."""
    first, *rest = loc
    if first == "method":
        return ".".join(map(str, (first, *rest[1:2])))  # the method's name stands between
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
    write_text_atomic(path, dump_yaml(settings.model_dump()))


def settings_differences(old: RunSettings, new: RunSettings) -> list[str]:
    """Return what differs, such as `training.learning_rate: 0.0005 -> 0.001`."""
    before, after = _flatten(old.model_dump()), _flatten(new.model_dump())
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def settings_reference() -> str:
    """Return a Markdown table of every setting, method by method, for `docs/settings.md`."""
    head = ["| setting | default | meaning |", "|---|---|---|"]
    readers = _readers_by_row()
    shared = [row for row, names in readers.items() if len(names) > 1]
    lines = [
        "# Settings",
        "",
        "Every setting, as `--set section.key=value` or in a settings file (`--config run.yaml`).",
        "Precedence: defaults < file < command line. Made by `python -m taskfit.settings_file`.",
        "",
        "`--set` takes a text as it stands, leading spaces, # and : among it; in parts of prompts",
        "`\\n` is a line break (`\\\\n` the two characters). Quotes around all of it are left out;",
        "`null` is None. Other values are YAML: numbers, true and false, `[a, b]`, `{a: b}`. In a",
        'file texts need quotes as YAML has it (`#`, leading spaces, `"\\n"`), but 010, 12:30, yes',
        "and null stay what they are where a text belongs.",
        "",
        *head,
        *_rows(RunSettings, ""),
        "",
        "## Section `method`",
        "",
        "`method.name` says which other settings the section has, and what is read of the sections",
        f"{', '.join(f'`{section}`' for section in GUARDED)}. A setting that the method does not",
        "read is refused. These are read by several methods, all others stand below by method:",
        "",
        "| setting | default | meaning | read by |",
        "|---|---|---|---|",
        *(f"{row} {', '.join(readers[row])} |" for row in shared),
    ]
    for name, kind in METHOD_SETTINGS.items():
        rows = _rows_of_method(kind)
        common = [row.split()[1] for row in rows if row in shared]
        own = [row for row in rows if row not in shared]
        lines += ["", f"### `method.name={name}`", "", " ".join((kind.__doc__ or "").split())]
        lines += ["", f"Settings from above: {', '.join(common) or 'none'}."]
        lines += [f"Of other sections: {', '.join(_sections_read(kind))}."]
        lines += ["", *head, *own] if own else []
    return "\n".join(lines) + "\n"


def _readers_by_row() -> dict[str, list[str]]:
    """Return the methods that read each setting of section `method`, by its row in the table."""
    found: dict[str, list[str]] = {}
    for name, kind in METHOD_SETTINGS.items():
        for row in _rows_of_method(kind):
            found.setdefault(row, []).append(name)
    return found


def _rows_of_method(kind: type[MethodSettings]) -> list[str]:
    return [row for row in _rows(kind, "method.") if not row.startswith("| `method.name`")]


def _sections_read(kind: type[MethodSettings]) -> list[str]:
    """Return what a method reads of the sections that not every method reads."""
    read = [section for section in GUARDED if section in kind.reads]
    read += [f"{s} ({own}={value})" for s, (own, value) in kind.reads_with.items()]
    read += [
        f"{section}.{key}"
        for section, model in ((section, RunSettings.model_fields[section]) for section in GUARDED)
        for key in type(model.default).model_fields
        if section not in kind.reads and is_read(f"{section}.{key}", kind)
    ]
    return [f"`{setting}`" for setting in read]


def _rows(model: type[BaseModel], prefix: str) -> list[str]:
    rows = []
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            rows += _rows(info.annotation, f"{prefix}{name}.")
        elif f"{prefix}{name}" != "method":
            default = info.get_default(call_default_factory=True)
            meaning = " ".join((info.description or "").split()).replace("|", "\\|")
            rows.append(f"| `{prefix}{name}` | `{default}` | {meaning} |")
    return rows


def _read(path: Path) -> dict[str, Any]:
    data = read_yaml(path, "settings file", SettingsError, RunSettings)
    if not isinstance(data, dict):
        raise SettingsError(f"{path} holds no settings; see docs/settings.md.")
    return data


def _split_known(
    data: Mapping[str, Any],
    model: type[BaseModel],
    prefix: str,
    method: type[BaseModel] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Return what the model knows, and a sentence for each key that it does not.

    Args:
        data: Nested settings.
        model: All sections, or one.
        prefix: What stands before the keys.
        method: What section `method` is; None: its name is unknown.
    """
    known: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in data.items():
        info = model.model_fields.get(str(key))
        kind = info.annotation if info is not None else None
        if f"{prefix}{key}" == "method":
            if method is None:
                problems.append(_unknown_method(value["name"]))
                continue
            kind = method
        if info is None:
            problems.append(_unknown_key(str(key), list(model.model_fields), prefix))
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            if isinstance(value, Mapping):
                known[key], found = _split_known(value, kind, f"{prefix}{key}.")
                problems += found
            else:
                problems.append(
                    f"{prefix}{key} is {value!r}, but it is a section with the settings "
                    f"{', '.join(kind.model_fields)}."
                )
        elif isinstance(value, bool) and not {bool, Any} & {*members(info)} and _is_number(info):
            # Python would count with it.
            problems.append(f"{prefix}{key} is {value}: input should be a number.")
        else:
            known[key] = value
    return known, problems


def _is_number(kind: Kind) -> bool:
    return any(one in (int, float) for one in members(kind))


def _unknown_key(key: str, names: list[str], prefix: str) -> str:
    close = difflib.get_close_matches(key, names, n=1)
    hint = f" Did you mean {prefix}{close[0]}?" if close else ""
    where = prefix.rstrip(".") or "the top level"
    return f"Unknown setting {prefix}{key}.{hint} {where} has: {', '.join(names)}."


def _unknown_method(name: object) -> str:
    *names, last = (repr(known) for known in METHOD_SETTINGS)
    return f"method.name is {name!r}: input should be {', '.join(names)} or {last}."


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
