"""Read YAML as version 1.2 has it: words such as yes, no, on and off are words."""

import re
from pathlib import Path
from typing import Any

import yaml

from taskfit.errors import TaskfitError

BOOLEAN = "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):
    """Reads on, off, yes and no as texts: settings and labels are so called."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != BOOLEAN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    BOOLEAN, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def parse_yaml(text: str) -> Any:  # noqa: ANN401 - whatever the text holds
    """Return what a YAML text holds; true and false alone are booleans.

    Raises:
        yaml.YAMLError: If it is no YAML.
    """
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path, what: str, error_type: type[TaskfitError]) -> Any:  # noqa: ANN401
    """Return what a YAML file holds.

    Args:
        path: The file, in UTF-8.
        what: What it is, for messages, such as `task file`.
        error_type: Raised if there is no such file, it cannot be read, or it is no YAML.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise error_type(f"There is no {what} {path}.") from error
    except OSError as error:
        raise error_type(f"The {what} {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise error_type(
            f"The {what} {path} is not UTF-8 (byte {error.start}). Save it as UTF-8."
        ) from error
    except yaml.YAMLError as error:
        raise error_type(f"The {what} {path} is not YAML: {error}") from error
