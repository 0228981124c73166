"""What was compiled outlives the process: the next training of the same layers starts at once.

The compiler keeps its own cache by the code that it makes. A small file beside it notes of which
models layers lie there, so that what is decided by the cost of compiling can ask before.
"""

import hashlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from taskfit.data.fetch import cache_folder

# Where the compiler looks for its own cache; who has set it has chosen.
VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
NOTES = "taskfit_layers"
# Of a configuration, what is no part of a layer.
NOT_IN_LAYERS = ("_name_or_path", "architectures", "vocab_size", "num_hidden_layers")


def use_compile_cache() -> None:
    """Let the compiler keep what it makes in taskfit's cache, where that can be written."""
    folder = cache_folder() / "compiled"
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if os.access(there, os.W_OK):
        os.environ.setdefault(VARIABLE, str(folder))


def layers_key(model: PreTrainedModel, adapter: dict[str, Any], *, checkpointing: bool) -> str:
    """Return what tells compiled layers apart: their shape, their adapters, versions, processor.

    Args:
        model: The model, with or without its adapters.
        adapter: Settings of its adapters.
        checkpointing: Whether layers are computed again in the backward pass.
    """
    config = model.config.get_text_config().to_dict()
    found = {
        "config": {name: config[name] for name in sorted(config) if name not in NOT_IN_LAYERS},
        "dtype": str(model.dtype),
        "adapter": adapter,
        "checkpointing": checkpointing,
        "versions": [metadata.version(name) for name in ("torch", "transformers", "peft")],
        "device": model.device.type,
        "processor": [platform.machine(), torch.backends.cpu.get_cpu_capability()],
    }
    text = json.dumps(found, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_compiled(key: str) -> bool:
    """Return whether layers of this key were compiled on this machine, and lie in the cache."""
    return (_notes() / key).is_file()


def note_compiled(key: str) -> None:
    """Note that layers of this key lie in the cache; where it cannot be written, nothing."""
    folder = _notes()
    if folder.parent.is_dir() and os.access(folder.parent, os.W_OK):
        folder.mkdir(exist_ok=True)
        (folder / key).touch()


def _notes() -> Path:
    return Path(os.environ.get(VARIABLE) or cache_folder() / "compiled") / NOTES
