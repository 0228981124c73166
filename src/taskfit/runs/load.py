"""What a finished run fitted, back from its folder, whatever its kind."""

from pathlib import Path
from typing import TYPE_CHECKING

from taskfit.errors import CheckpointError
from taskfit.runs.classifier import Classifier
from taskfit.runs.records import TUNED_FILE
from taskfit.tasks.questions import Asked

if TYPE_CHECKING:
    from taskfit.runs.shared_bases import SharedBases
    from taskfit.runs.tuning.model import TunedModel


def load_run(
    folder: Path,
    *,
    device: str = "auto",
    allow_other_base: bool = False,
    bases: "SharedBases | None" = None,
) -> "Classifier | TunedModel":
    """Load what a finished run fitted.

    Args:
        folder: The run's folder.
        device: Where to put it; see `model.device`.
        allow_other_base: Whether a base will do that is not the one of the run.
        bases: Models in memory that runs share; None: the run has its own.

    Raises:
        CheckpointError: If the folder holds no finished run, or part of it is missing, or its base
            is not there or another one.
    """
    if (folder / TUNED_FILE).is_file():
        from taskfit.runs.tuning.model import TunedModel

        return TunedModel.load(
            folder, device=device, allow_other_base=allow_other_base, bases=bases
        )
    return Classifier.load(folder, device=device, allow_other_base=allow_other_base, bases=bases)


def load_classifier(
    folder: Path, *, device: str = "auto", allow_other_base: bool = False
) -> Classifier:
    """Load a finished run that answers with labels; see `load_run`.

    Raises:
        CheckpointError: Also if the run answers with text.
    """
    _refuse_tuned(folder)
    return Classifier.load(folder, device=device, allow_other_base=allow_other_base)


def saved_asked(folder: Path) -> Asked:
    """Return what a finished run asks, without loading anything else.

    Raises:
        CheckpointError: If the folder holds no finished run that answers with labels.
    """
    _refuse_tuned(folder)
    return Classifier.saved_asked(folder)


def _refuse_tuned(folder: Path) -> None:
    if (folder / TUNED_FILE).is_file():
        raise CheckpointError(
            f"{folder} is a tuned model, which answers with text: use `taskfit generate {folder}`, "
            f"or measure it with `taskfit judge {folder}`."
        )
