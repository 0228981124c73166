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
        text = path.read_text(encoding="utf-8")
    try:
        data = yaml.safe_load(text)
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
    problems += [
        f"{key} is missing" for key in ("name", "text", "labels", "template") if key not in data
    ]
    template = data.get("template", {})
    if not isinstance(template, dict) or not isinstance(template.get("line"), str):
        problems.append("template needs a line, such as '{text}\\nLabel:{label}'")
        template = {}
    problems += _unknown(template, TEMPLATE_KEYS, "template.")
    labels, values = [], {}
    for entry in data.get("labels", []):
        if not isinstance(entry, dict) or "name" not in entry:
            problems.append(f"labels: {entry!r} needs a name (and words, values)")
            continue
        problems += _unknown(entry, LABEL_KEYS, "labels.")
        name = str(entry["name"])
        words = entry.get("words", [" " + name])
        labels.append(Label(name, tuple([words] if isinstance(words, str) else map(str, words))))
        values.update({str(value): name for value in entry.get("values", [])})
    if problems:
        raise PromptError("; ".join(problems) + ".")
    text = data["text"]
    return Task(
        name=str(data["name"]),
        version=int(data.get("version", 1)),
        text=tuple([text] if isinstance(text, str) else text),
        label_column=str(data.get("label", "label")),
        labels=tuple(labels),
        values=values,
        template=Template(
            instruction=str(template.get("instruction", "")),
            line=template["line"],
            separator=str(template.get("separator", "\n")),
        ),
        metric=str(data.get("metric", "accuracy")),
        num_demonstrations=int(data.get("num_demonstrations", 0)),
        chat=bool(data.get("chat", False)),
    )


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
    }


def _unknown(data: Mapping[str, Any], known: tuple[str, ...], where: str) -> list[str]:
    problems = []
    for key in data:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f", did you mean {close[0]}?" if close else ""
            problems.append(f"unknown key {where}{key}{hint} (allowed: {', '.join(known)})")
    return problems
