"""The classes of a run that `TextClassifier` fitted, in the type that they were given in."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskfit.errors import CheckpointError, DataError
from taskfit.files import write_json_atomic
from taskfit.runs.origin import read_task

CLASSES_FILE = "estimator.json"


def write_classes(
    run: Path, classes: NDArray[Any], names: Sequence[str], columns: Sequence[str] | None
) -> None:
    """Write the classes in their own type, and the DataFrame's columns, into a run's folder.

    Args:
        run: The folder.
        classes: As they were given to `fit`, (L,).
        names: What the run calls them, in the same order.
        columns: Of the DataFrame that was fitted on; None: it was none.
    """
    by_name = dict(zip(names, classes.tolist(), strict=True))
    dtype = classes.dtype.str
    write_json_atomic(
        run / CLASSES_FILE, {"classes": by_name, "dtype": dtype, "feature_names_in": columns}
    )


def read_classes(run: Path, names: Sequence[str]) -> tuple[NDArray[Any], list[str] | None]:
    """Return the classes of a run in the order of its labels, and the columns it was fitted on.

    Those of a run that no estimator fitted are the labels' names.

    Raises:
        CheckpointError: If the file cannot be read, or holds other labels.
    """
    path = run / CLASSES_FILE
    if not path.is_file():
        return np.array(names), None
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        values = [saved["classes"][name] for name in names]
        return np.array(values, dtype=np.dtype(saved["dtype"])), saved["feature_names_in"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}.") from error


def with_earlier(start: Path | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return classes by name: those given now, and those of the run that is gone on from.

    Args:
        start: The folder of that run; None: there is none.
        given: Name -> class as it was given to `fit`.

    Raises:
        DataError: If the earlier ones are of another type.
    """
    task = None if start is None else read_task(start)
    if start is None or task is None:
        return dict(given)
    kind = type(next(iter(given.values())))
    earlier = read_classes(start, task.label_names)[0].tolist()
    try:
        # A run keeps names alone; beside numbers they were numbers.
        found = {name: kind(v) for name, v in zip(task.label_names, earlier, strict=True)}
    except ValueError:
        found = {}
    if not found or (kind is bool and not isinstance(earlier[0], bool)):
        raise DataError(
            f"Labels are {kind.__name__} now, and the classes of {start} are "
            f"{', '.join(map(repr, earlier[:5]))}. Give labels of the same type."
        )
    return found | dict(given)
