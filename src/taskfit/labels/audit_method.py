"""The method that judges labels where none is chosen; read by the command line before all else."""

from typing import Any

# What finds most planted errors; see docs/labels.md. Demonstrations would put labels that may be
# wrong into every prompt, and other ones into those of each fold.
DEFAULT_METHOD: dict[str, Any] = {"name": "probe", "features": "both", "num_demonstrations": 0}
