"""Flags that several commands share, as nested settings."""

from typing import Any

from taskfit.errors import SettingsError


def data_flags(
    *,
    data: str | None,
    text: list[str] | None,
    label: str | None,
    task: str | None,
    model: str | None,
    test: list[str] | None,
) -> dict[str, Any]:
    """Turn the common flags into nested settings."""
    tests = {}
    for entry in test or []:
        name, equals, source = entry.partition("=")
        if not equals or not name or not source:
            raise SettingsError(f"--test {entry}: write it as NAME=FILE.")
        tests[name] = source
    return nested(
        {
            "data.train": data,
            "data.text": text or None,
            "data.label": label,
            "data.tests": tests or None,
            "task.name": task,
            "model.name": model,
        }
    )


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested dictionaries, leaving out what was not given."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        if value is None:
            continue
        *sections, name = key.split(".")
        target = nested
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = value
    return nested
