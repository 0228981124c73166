"""Decide whether compiling the decoder layers pays for itself."""

import json
import shutil
from pathlib import Path

import torch

from taskfit.errors import SettingsError
from taskfit.files import write_json_atomic
from taskfit.settings import RunSettings
from taskfit.training.length import count_steps

# Compiling takes about a minute and saves about a fifth of each later step (see benchmarks/), so it
# pays from some ten thousand examples on; a decision by size, not by a stopwatch, is the same on
# resuming.
MIN_STEPS = 1000
FILE = "compile.json"


def compile_pays(settings: RunSettings, num_items: int, folder: Path, device: torch.device) -> bool:
    """Return whether to compile; a resumed run does as the run before it did.

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
    long_job = count_steps(num_items, settings.training) >= MIN_STEPS
    decision = asked == "on" or (asked == "auto" and has_compiler and long_job)
    write_json_atomic(path, {"compile": decision})
    return decision
