"""What all sections of the settings are made of."""

from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

Auto = Literal["auto"]
T = TypeVar("T")


def known(value: T | Auto) -> T:
    """Return a setting that `auto` has been replaced in, see `training/length.py`."""
    assert value != "auto", "a setting is still auto where its value is needed"
    return value


def check_set_name(name: str) -> str:
    """Return the name of an evaluation set, which is also the name of its files.

    Raises:
        ValueError: If no file can be called so.
    """
    if not name or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise ValueError(
            f"an evaluation set cannot be called {name!r}, as its files take its name. Give a "
            "name without / and \\ that does not start with a dot"
        )
    return name


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused, texts below fields are their help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
