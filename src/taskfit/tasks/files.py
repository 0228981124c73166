"""Task files: YAML in, YAML-ready dictionaries out."""

import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from taskfit.errors import PromptError
from taskfit.tasks.task import Label, Task
from taskfit.tasks.template import Template
from taskfit.yaml_text import parse_yaml

KEYS = (
    "name",
    "version",
    "text",
    "label",
    "labels",
    "template",
    "metric",
    "num_demonstrations",
    "chat",
    "multi_label",
)
TEMPLATE_KEYS = ("instruction", "line", "separator")
LABEL_KEYS = ("name", "words", "values")


def load_task(name_or_path: str) -> Task:
    """Load a built-in task by name, or a task file.

    Raises:
        PromptError: If there is no such task, or the file is not a sound one.
    """
    folder = resources.files("taskfit.tasks") / "builtin"
    builtin = sorted(
        entry.name.removesuffix(".yaml")
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )
    if name_or_path in builtin:
        text = (folder / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    else:
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            close = difflib.get_close_matches(name_or_path, builtin, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise PromptError(
                f"There is no task {name_or_path!r}: neither a file nor one of the built-in tasks "
                f"({', '.join(builtin)}).{hint}"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise PromptError(
                f"Task file {name_or_path} is not UTF-8 (byte {error.start}). Save it as UTF-8."
            ) from error
    try:
        data = parse_yaml(text)
    except yaml.YAMLError as error:
        raise PromptError(f"Task file {name_or_path} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise PromptError(
            f"Task file {name_or_path} holds no settings; it needs: {', '.join(KEYS)}."
        )
    try:
        return task_from_dict(data)
    except PromptError as error:
        raise PromptError(f"{name_or_path}: {error}") from error


def task_from_dict(data: Mapping[str, Any]) -> Task:
    """Make a task from the contents of a task file.

    Raises:
        PromptError: Listing everything that is wrong.
    """
    problems = _unknown(data, KEYS, "")
    # A key with nothing behind it is a key that is not there.
    data = {key: value for key, value in data.items() if value is not None}
    problems += [
        f"{key} is missing" for key in ("name", "text", "labels", "template") if key not in data
    ]
    template = data.get("template", {})
    if not isinstance(template, dict) or not isinstance(template.get("line"), str):
        problems.append("template needs a line, such as '{text}\\nLabel:{label}'")
        template = {}
    problems += _unknown(template, TEMPLATE_KEYS, "template.")
    template = {key: value for key, value in template.items() if value is not None}
    labels, values = _labels(data.get("labels", []), problems)
    for key in ("chat", "multi_label"):
        if not isinstance(data.get(key, False), bool):
            problems.append(f"{key} is {data[key]!r}; allowed are true and false")
    name = _text(data.get("name", ""), "name", problems)
    text = _texts(data.get("text", []), "text", problems)
    label_column = _text(data.get("label", "label"), "label", problems)
    metric = _text(data.get("metric", "accuracy"), "metric", problems)
    version = _whole(data.get("version", 1), "version", problems)
    num_demonstrations = _whole(data.get("num_demonstrations", 0), "num_demonstrations", problems)
    parts = {
        key: _text(template.get(key, default), f"template.{key}", problems)
        for key, default in (("instruction", ""), ("line", ""), ("separator", "\n"))
    }
    if problems:
        raise PromptError("; ".join(problems) + ".")
    return Task(
        name=name,
        version=version,
        text=text,
        label_column=label_column,
        labels=tuple(labels),
        values=values,
        template=Template(**parts),
        metric=metric,
        num_demonstrations=num_demonstrations,
        chat=data.get("chat", False),
        multi_label=data.get("multi_label", False),
    )


def _labels(entries: Any, problems: list[str]) -> tuple[list[Label], dict[str, str]]:  # noqa: ANN401
    """Return labels and the values that stand for them; add what is wrong to `problems`."""
    labels: list[Label] = []
    values: dict[str, str] = {}
    if not isinstance(entries, list):
        problems.append(f"labels is {entries!r}; it needs a list of labels, each with a name")
        entries = []
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("name") is None:
            problems.append(f"labels: {entry!r} needs a name (and words, values)")
            continue
        problems += _unknown(entry, LABEL_KEYS, "labels.")
        name = _text(entry["name"], "labels.name", problems)
        words = entry.get("words")
        words = " " + name if words is None else words
        labels.append(Label(name, _texts(words, f"words of label {name!r}", problems)))
        given = entry.get("values")
        given = [] if given is None else given
        for value in _texts(given, f"values of label {name!r}", problems):
            if values.setdefault(value, name) != name:
                problems.append(f"value {value!r} stands for {values[value]!r} and for {name!r}")
    return labels, values


def _text(value: Any, where: str, problems: list[str]) -> str:  # noqa: ANN401 - from a file
    # YAML reads true and false without quotes as truth values; those are common words.
    if isinstance(value, bool):
        problems.append(
            f"{where}: YAML reads a word of yours as {value}; put it into quotes, as in 'true'"
        )
    elif not isinstance(value, str | int | float):
        problems.append(f"{where} is {value!r}; it needs text")
    return str(value)


def _texts(value: Any, where: str, problems: list[str]) -> tuple[str, ...]:  # noqa: ANN401
    entries = value if isinstance(value, list | tuple) else [value]
    return tuple(_text(entry, where, problems) for entry in entries)


def _whole(value: Any, where: str, problems: list[str]) -> int:  # noqa: ANN401 - from a file
    if isinstance(value, bool) or not isinstance(value, int):
        problems.append(f"{where} is {value!r}; it needs a whole number")
        return 0
    return value


def task_to_dict(task: Task) -> dict[str, Any]:
    """Return the contents of a task file; `task_from_dict` gives the same task again."""
    return {
        "name": task.name,
        "version": task.version,
        "text": list(task.text),
        "label": task.label_column,
        "labels": [
            {
                "name": label.name,
                "words": list(label.words),
                "values": [value for value, name in task.values.items() if name == label.name],
            }
            for label in task.labels
        ],
        "template": {
            "instruction": task.template.instruction,
            "line": task.template.line,
            "separator": task.template.separator,
        },
        "metric": task.metric,
        "num_demonstrations": task.num_demonstrations,
        "chat": task.chat,
        "multi_label": task.multi_label,
    }


def _unknown(data: Mapping[str, Any], known: tuple[str, ...], where: str) -> list[str]:
    problems = []
    for key in data:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f", did you mean {close[0]}?" if close else ""
            problems.append(f"unknown key {where}{key}{hint} (allowed: {', '.join(known)})")
    return problems
