"""Task files: YAML in, YAML-ready dictionaries out."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field

from taskfit.errors import PromptError, suggestion
from taskfit.tasks.entries import Entry, Texts
from taskfit.tasks.task import Label, Task
from taskfit.tasks.template import Template
from taskfit.yaml_text import parse_yaml, read_yaml


class _Label(Entry):
    name: str
    words: Texts | None = None
    values: Texts = Field([])
    description: str = ""


class _Template(Entry):
    instruction: str = ""
    line: str
    separator: str = "\n"


class _Task(Entry):
    name: str
    version: int = Field(1, strict=True)
    text: Texts
    label: str = "label"
    labels: list[_Label]
    template: _Template
    metric: str = "accuracy"
    num_demonstrations: int = Field(0, strict=True)
    chat: bool = Field(False, strict=True)
    multi_label: bool = Field(False, strict=True)
    allow_control_tokens: bool = Field(False, strict=True)
    coarse: dict[str, Texts] = Field({})
    listed: Texts = Field([])


def load_task(name_or_path: str) -> Task:
    """Load a built-in task by name, or a task file.

    Raises:
        PromptError: If there is no such task, or the file is not a sound one.
    """
    folder = resources.files("taskfit.tasks") / "builtin"
    builtin = sorted(Path(e.name).stem for e in folder.iterdir() if e.name.endswith(".yaml"))
    path = Path(name_or_path).expanduser()
    if name_or_path in builtin:
        text = (folder / f"{name_or_path}.yaml").read_text(encoding="utf-8")
        data = parse_yaml(text, _Task)
    elif path.is_file():
        data = read_yaml(path, "task file", PromptError, _Task)
    else:
        raise PromptError(
            f"There is no task {name_or_path!r}: neither a file nor one of the built-in tasks "
            f"({', '.join(builtin)}).{suggestion(name_or_path, builtin)}"
        )
    if not isinstance(data, dict):
        raise PromptError(
            f"Task file {name_or_path} holds no settings; it needs: "
            f"{', '.join(_Task.model_fields)}."
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
    found = _Task.read(data)
    values: dict[str, str] = {}
    for label in found.labels:
        for value in label.values:
            if (other := values.setdefault(value, label.name)) != label.name:
                raise PromptError(f"value {value!r} stands for {other!r} and for {label.name!r}.")
    return Task(
        name=found.name,
        version=found.version,
        text=tuple(found.text),
        label_column=found.label,
        labels=tuple(
            Label(
                one.name,
                (f" {one.name}",) if one.words is None else tuple(one.words),
                one.description.strip(),
            )
            for one in found.labels
        ),
        values=values,
        template=Template(**found.template.model_dump()),
        metric=found.metric,
        num_demonstrations=found.num_demonstrations,
        chat=found.chat,
        multi_label=found.multi_label,
        allow_control_tokens=found.allow_control_tokens,
        coarse={name: tuple(members) for name, members in found.coarse.items()},
        listed=tuple(found.listed),
    )


def task_to_dict(task: Task) -> dict[str, Any]:
    """Return the contents of a task file; `task_from_dict` gives the same task again."""
    # Said only where it is so: tasks of earlier versions have the same contents.
    rare: dict[str, Any] = {"allow_control_tokens": True} if task.allow_control_tokens else {}
    if task.coarse:
        rare["coarse"] = {name: list(members) for name, members in task.coarse.items()}
    if task.listed:
        rare["listed"] = list(task.listed)
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
                **({"description": label.description} if label.description else {}),
            }
            for label in task.labels
        ],
        "template": asdict(task.template),
        "metric": task.metric,
        "num_demonstrations": task.num_demonstrations,
        "chat": task.chat,
        "multi_label": task.multi_label,
        **rare,
    }
