"""Decide whether compiling the decoder layers pays for itself."""

import json
import shutil
from pathlib import Path

import torch

from taskfit.errors import SettingsError
from taskfit.files import write_json_atomic
from taskfit.models.causal_model import CausalModel
from taskfit.models.compile_cache import is_compiled, layers_key
from taskfit.settings import RunSettings
from taskfit.training.length import count_steps

# The first compiled step of the 135M model takes 35 s of processor time, of which it is 3.5 s where
# the layers lie in the cache, against 0.45 s of a step as it is; a twentieth (AMD, one thread) to a
# fifth (two threads) of each later step is saved. So the one pays from some 1,000 steps on, the
# other from 150. A decision by size and not by a stopwatch, and the same on resuming.
MIN_STEPS, MIN_STEPS_CACHED = 1000, 150
FILE = "compile.json"


def compile_key(settings: RunSettings, tree: CausalModel | None) -> str | None:
    """Return what tells the compiled layers of a training apart; None: it has none of ours."""
    if tree is None:
        return None
    return layers_key(
        tree.model,
        settings.adapter.model_dump(mode="json"),
        checkpointing=settings.training.gradient_checkpointing,
    )


def compile_pays(
    settings: RunSettings,
    num_items: int,
    *,
    folder: Path,
    device: torch.device,
    key: str | None = None,
) -> bool:
    """Return whether to compile; a resumed run does as the run before it did.

    Args:
        settings: Of the run.
        num_items: Training examples.
        folder: Of the run.
        device: Where the model is.
        key: From `compile_key`.

    Raises:
        SettingsError: If compiling is asked for and there is no C++ compiler.
    """
    path = folder / FILE
    if path.is_file():
        return bool(json.loads(path.read_text(encoding="utf-8"))["compile"])
    asked = settings.model.compile
    has_compiler = device.type != "cpu" or any(map(shutil.which, ("c++", "g++", "clang++")))
    if asked == "on" and not has_compiler:
        raise SettingsError(
            "model.compile=on needs a C++ compiler (c++, g++ or clang++), and none is on the path. "
            "Install one, or leave model.compile=auto."
        )
    cached = key is not None and is_compiled(key)
    least = MIN_STEPS_CACHED if cached else MIN_STEPS
    long_job = count_steps(num_items, settings.training) >= least
    decision = asked == "on" or (asked == "auto" and has_compiler and long_job)
    write_json_atomic(path, {"compile": decision})
    return decision
