"""Fit a pretrained language model to a text task, and measure it."""

import logging
from typing import TYPE_CHECKING

# Where bitsandbytes is installed, every import of PEFT would name a package that nobody needs here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

if TYPE_CHECKING:
    from taskfit.estimator import TextClassifier

__all__ = ["TextClassifier"]


def __getattr__(name: str) -> object:
    """Load the estimator, and PyTorch with it, only when it is asked for."""
    if name == "TextClassifier":
        from taskfit.estimator import TextClassifier

        return TextClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
