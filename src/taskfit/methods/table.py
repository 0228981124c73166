"""The table of methods: where each class is. It is imported when it is first asked for."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskfit.methods.method import Method


class MethodTable(Mapping[str, "type[Method]"]):
    """The classes of methods by name."""

    def __init__(self, places: Mapping[str, str]) -> None:
        """Keep where they are: `module:class` by name."""
        self._places = places

    def __getitem__(self, name: str) -> "type[Method]":
        """Return the class of a method."""
        module, _, class_name = self._places[name].partition(":")
        found: type[Method] = getattr(import_module(f"taskfit.methods.{module}"), class_name)
        return found

    def __contains__(self, name: object) -> bool:
        """Return whether there is a method of this name; imports nothing."""
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        """Return the names."""
        return iter(self._places)

    def __len__(self) -> int:
        """Return how many methods there are."""
        return len(self._places)


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
    }
)
