"""Fit a pretrained language model to a text task, and measure it."""

import logging
from typing import TYPE_CHECKING

# Where bitsandbytes is installed, every import of PEFT would name a package that nobody needs here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

if TYPE_CHECKING:
    from pathlib import Path

    from taskfit.estimator import TextClassifier
    from taskfit.runs.tuning.model import TunedModel

__all__ = ["TextClassifier", "load"]


def load(
    run: "str | Path", *, device: str = "auto", allow_other_base: bool = False
) -> "TextClassifier | TunedModel":
    """Load a finished run: `taskfit.load("runs/mine")("a text")`, or `.predict("a text")`.

    Args:
        run: Its folder.
        device: Where to put the model; auto, cpu, cuda or cuda:N.
        allow_other_base: Whether a base model will do that is not the one the run was made from.

    Returns:
        A `TextClassifier`, which gives the probability of every label when it is called and has
        scikit-learn's methods; of a tuning run (sft, dpo) its `TunedModel`.

    Raises:
        CheckpointError: If the folder holds no finished run, or one of several questions, or if its
            base model is not there or another one.
    """
    from pathlib import Path

    from taskfit.estimator import TextClassifier
    from taskfit.runs.load import load_run
    from taskfit.runs.records import TUNED_FILE
    from taskfit.runs.tuning.model import TunedModel

    folder = Path(run)
    if (folder / TUNED_FILE).is_file():
        found = load_run(folder, device=device, allow_other_base=allow_other_base)
        assert isinstance(found, TunedModel)
        return found
    return TextClassifier.load(folder, device=device, allow_other_base=allow_other_base)


def __getattr__(name: str) -> object:
    """Load the estimator, and PyTorch with it, only when it is asked for."""
    if name == "TextClassifier":
        from taskfit.estimator import TextClassifier

        return TextClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
