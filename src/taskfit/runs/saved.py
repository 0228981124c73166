"""What a finished run's folder holds, read with what may be wrong with it in one message."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from taskfit.errors import CheckpointError, TaskfitError
from taskfit.runs.bases import Found, find_bases, with_found
from taskfit.runs.file_names import SETTINGS_FILE
from taskfit.settings import RunSettings
from taskfit.settings_base import check_device
from taskfit.settings_file import load_run_settings, settings_from_dict

if TYPE_CHECKING:
    from taskfit.models.load import LoadedModel
    from taskfit.runs.shared_bases import SharedBases

ADAPTER = "adapter"
MODEL = "model"
Weights = Literal["none", "lora", "qlora", "full"]


@contextmanager
def saved_run(
    folder: Path,
    file: str,
    *,
    what: str = "finished run",
    hint: str = "Give the folder that `taskfit fit --out` made.",
) -> Iterator[dict[str, Any]]:
    """Lend what a finished run wrote in a JSON file; what is missing or wrong in it is one message.

    Args:
        folder: The run's folder.
        file: Name of the file.
        what: What the folder should hold.
        hint: What to do where there is no run at all.

    Raises:
        CheckpointError: If the file is not there, or does not hold what is read from it.
    """
    path = folder / file
    if not path.is_file():
        if (folder / SETTINGS_FILE).is_file():
            hint = f"If it was interrupted, continue with `taskfit fit --resume {folder}`."
        raise CheckpointError(f"{folder} holds no {what}: no {file} in it. {hint}")
    try:
        yield json.loads(path.read_text(encoding="utf-8"))
    except TaskfitError:
        raise
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}.") from error


def check_arrays(arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Raise if numbers of a fitted method are not finite.

    Raises:
        CheckpointError: Naming the arrays.
    """
    bad = [n for n, a in arrays.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]
    if bad:
        raise CheckpointError(
            f"{path} holds numbers that are not finite, in {', '.join(bad)}: its training went "
            "wrong, or the file was damaged. Copy the run's folder again, or train it again."
        )


@contextmanager
def explain_arrays(path: Path, method: str) -> Iterator[None]:
    """Turn what a method cannot be restored from into one message.

    Raises:
        CheckpointError: If arrays or values are missing, or of another shape.
    """
    try:
        yield
    except TaskfitError:
        raise
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not hold what a run of {method} predicts with ({error}): it was changed, "
            "or copied in part. Copy the run's folder again."
        ) from error


def load_fitted_model(
    settings: RunSettings, folder: Path, weights: Weights, *, bases: "SharedBases | None" = None
) -> "LoadedModel":
    """Load the model of a run, with the adapter that lies in its folder where there is one.

    Args:
        settings: Of the run, with the place of its model.
        folder: Of the run.
        weights: Which weights lie in it.
        bases: Models in memory, to share one with other runs; None: a model of its own.

    Raises:
        TaskfitError: If the model cannot be had, or files of the run were damaged.
    """
    from taskfit.models.adapters import load_adapter
    from taskfit.models.load import load_model
    from taskfit.models.out_of_memory import is_out_of_memory

    try:
        if bases is not None and weights != "full":
            adapter = folder / ADAPTER if weights in ("lora", "qlora") else None
            return bases.lend(settings, adapter=adapter)
        model = load_model(settings.model, quantization=settings.adapter)
        if weights in ("lora", "qlora"):
            load_adapter(model.tree.model, folder / ADAPTER)
            model.tree.model.eval()
    except TaskfitError:
        raise
    except (KeyError, ValueError, OSError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"The model of the run in {folder} cannot be loaded: {first_line} Its files were "
            "changed or copied in part, or its base model is another one now."
        ) from error
    return model


def settings_for_prediction(
    folder: Path, saved: dict[str, Any], *, device: str, allow_other_base: bool = False
) -> tuple[RunSettings, dict[str, Found]]:
    """Return the run's settings, with the models that prediction takes, and where these were found.

    Raises:
        CheckpointError: If a base is not there, or another one.
        SettingsError: If a device cannot be called so, also for methods without a model.
    """
    check_device(device)
    if "settings" in saved:  # several questions have theirs beside them
        settings = settings_from_dict(saved["settings"], asked={})
    else:
        settings = load_run_settings(folder / SETTINGS_FILE)
    changed: dict[str, Any] = {"device": device}
    if saved["dtype"] is not None:
        changed |= {"dtype": saved["dtype"], "name": saved["model"], "revision": saved["revision"]}
    is_whole = saved["weights"] == "full"
    found = find_bases(folder, settings, own_weights=is_whole, allow_other=allow_other_base)
    settings = with_found(
        settings.model_copy(update={"model": settings.model.model_copy(update=changed)}), found
    )
    if is_whole and saved["model"] is not None:
        changed = {"name": str(folder / MODEL), "revision": None}
        settings = settings.model_copy(update={"model": settings.model.model_copy(update=changed)})
    return settings, found
