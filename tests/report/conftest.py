"""Figures that are drawn but not written."""

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of every figure; nothing is written, which would take most of the time."""
    seen: list[Axes] = []

    def savefig(figure: Figure, *_: object, **__: object) -> None:
        seen.extend(axes for axes in figure.axes if axes not in seen)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return seen
