"""Read YAML as version 1.2 has it: words such as yes, no, on and off are words."""

import re
from typing import Any

import yaml

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
