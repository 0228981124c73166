"""Measured numbers as JSON types."""

import dataclasses
import math
from typing import Any

import numpy as np


def as_json(value: object) -> Any:  # noqa: ANN401
    """Return JSON types: dicts for data classes, None for what JSON has no number for.

    Fields of a data class that its `repr` leaves out, since they are large, are left out too.
    """
    if dataclasses.is_dataclass(value):
        shown = [field.name for field in dataclasses.fields(value) if field.repr]
        value = {name: getattr(value, name) for name in shown}
    if isinstance(value, dict):
        return {key: as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [as_json(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
