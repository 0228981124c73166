"""The table of methods: where each class is. It is imported when it is first asked for."""

import ast
from collections import UserDict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskfit.errors import SettingsError
from taskfit.method_settings import TUNING

if TYPE_CHECKING:
    from taskfit.methods.method import Method, MethodTraits


class MethodTable(UserDict[str, Any]):
    """The classes of methods by name, made of `module:class` by name."""

    def __getitem__(self, name: str) -> "type[MethodTraits]":
        """Return the class of a method."""
        module, _, class_name = self.data[name].partition(":")
        found: type[MethodTraits] = getattr(import_module(f"taskfit.methods.{module}"), class_name)
        return found

    def summary(self, name: str) -> str:
        """Return the first line of a method's docstring; its module is read, not imported."""
        module, _, class_name = self.data[name].partition(":")
        tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
        kinds = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        found = next(kind for kind in kinds if kind.name == class_name)
        return (ast.get_docstring(found) or "").splitlines()[0]


# Methods that learn from no labels beyond their demonstrations; known without importing them.
WITHOUT_LEARNING = ("in_context", "remote")
METHODS = MethodTable(
    {
        "in_context": "in_context:InContext",
        "label_words": "label_words:LabelWords",
        "head": "head:Head",
        "label_text": "label_text:LabelText",
        "distill": "distill:Distill",
        "probe": "probe:Probe",
        "knn": "knn:NearestNeighbors",
        "majority": "majority:Majority",
        "tfidf": "tfidf:Tfidf",
        "encoder": "encoder:Encoder",
        "remote": "remote:Remote",
        "sft": "sft:Sft",
        "dpo": "dpo:Dpo",
    }
)
# What `taskfit compare` runs where nothing is chosen: everything that needs no endpoint.
DEFAULT_METHODS: dict[str, dict[str, Any]] = {
    "majority": {"method": {"name": "majority"}},
    "tfidf": {"method": {"name": "tfidf"}},
    "zero-shot": {"method": {"name": "in_context", "num_demonstrations": 0}},
    "few-shot": {"method": {"name": "in_context", "num_demonstrations": 8, "calibration": "batch"}},
    "probe": {"method": {"name": "probe"}},
    "probe-minilm": {"method": {"name": "probe", "features": "minilm"}},
    "encoder": {"method": {"name": "encoder"}},
    "head": {"method": {"name": "head"}},
    "label_words": {"method": {"name": "label_words"}},
    # What `taskfit fit` does where nothing is chosen.
    "auto": {"method": {"name": "auto"}},
}


def label_method(name: str) -> "type[Method]":
    """Return the class of a method that answers with labels.

    Raises:
        SettingsError: If the method learns from rows of text.
    """
    if name in TUNING:
        raise SettingsError(f"method {name} answers with text, and labels are asked for here.")
    found: type[Method] = METHODS[name]  # type: ignore[assignment]
    return found
