"""Options that several commands share, and their way into nested settings."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from taskfit.errors import SettingsError

DataOption = Annotated[str | None, typer.Option("--data", help="Training table or hub id.")]
TextOption = Annotated[list[str] | None, typer.Option("--text", help="Text column; repeatable.")]
LabelOption = Annotated[str | None, typer.Option("--label", help="Label column.")]
TaskOption = Annotated[str | None, typer.Option("--task", help="Built-in task or task file.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Hub id, folder or packaged model.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value; repeatable; see docs.")
]
ConfigOption = Annotated[
    str | None, typer.Option("--config", help="Settings file, or a ready one; see taskfit methods.")
]
TestOption = Annotated[
    list[str] | None, typer.Option("--test", help="NAME=FILE, a further evaluation set.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
EncodingOption = Annotated[str, typer.Option("--encoding", help="Text encoding of the file.")]


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


def parse_options(entries: Sequence[str]) -> dict[str, list[str]]:
    """Read options of questions, each `QUESTION=a,b,c`.

    Raises:
        SettingsError: If an entry is not written so, or a question stands twice.
    """
    options: dict[str, list[str]] = {}
    for entry in entries:
        question, equals, names = entry.partition("=")
        found = [name.strip() for name in names.split(",")]
        if not equals or not question.strip() or not all(found):
            raise SettingsError(f"--options {entry}: write it as QUESTION=a,b,c.")
        if question.strip() in options:
            raise SettingsError(f"--options names {question.strip()} twice; name it once.")
        options[question.strip()] = found
    return options
