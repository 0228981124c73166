"""Weights in `pytorch_model.bin`, saved once as safetensors in the cache.

A `.bin` file is a pickle, which can hold code. It is read with PyTorch's loader for weights, which
knows tensors alone and runs nothing; a file that needs more is refused. What is read from then on
is a model folder in the cache, called by what the files of the first one hold.
"""

import hashlib
import json
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from taskfit.data.fetch import cache_folder, move_into_cache, scratch_folder, writing_to_cache
from taskfit.errors import ModelError, first_line
from taskfit.models.kept import kept_digests, short_digest
from taskfit.screen import announce

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
BIN_WEIGHTS = "pytorch_model.bin"
BIN_INDEX = f"{BIN_WEIGHTS}.index.json"
BIN_FILES = (BIN_WEIGHTS, BIN_INDEX, "pytorch_model-*.bin")
# What makes a model beside its weights: configuration, tokenizer, an encoder's modules.
SMALL_FILES = (
    *("*config.json", "modules.json", "*/config.json"),
    *("tokenizer*", "*token*.json", "vocab.*", "merges.txt", "*.model", "chat_template*"),
)
# How a file of Git LFS begins that was not fetched.
POINTER = b"version https://git-lfs"
# Of the tensors in one of the files that are written.
SHARD_BYTES = 2**30


def holds_bin(folder: Path) -> bool:
    """Return whether a folder's weights are in `.bin` files, and nowhere else."""
    files = {name for name in (WEIGHTS, INDEX, BIN_WEIGHTS, BIN_INDEX) if (folder / name).is_file()}
    return bool(files) and not files & {WEIGHTS, INDEX}


def safetensors_folder(folder: Path) -> Path:
    """Return a model folder whose weights are safetensors: the same, or its copy in the cache.

    Args:
        folder: A model folder.

    Raises:
        ModelError: If its `.bin` files are damaged, or hold more than tensors by name.
        WriteError: If the cache cannot be written.
    """
    if not holds_bin(folder):
        return folder
    files = _bin_files(folder)
    found = {path for pattern in SMALL_FILES for path in folder.glob(pattern)}
    copied = sorted(path for path in found if path.is_file())
    names = [str(path.relative_to(folder)) for path in (*copied, *files)]
    digests = [kept_digests(p, _hash_file, kind="file")["file"] for p in (*copied, *files)]
    key = short_digest(json.dumps(list(zip(names, digests, strict=True))).encode())
    ready = cache_folder() / "converted" / key
    if (ready / "config.json").is_file():
        return ready
    announce(f"{files[0]} is no safetensors file; its weights are saved as such once, in {ready}")
    with writing_to_cache(ready), scratch_folder(ready.parent, prefix=f".{key}-") as scratch:
        new = Path(scratch) / "ready"
        new.mkdir()
        for path in copied:
            target = new / path.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
        _convert(files, new)
        move_into_cache(new, ready, sign="config.json")
    return ready


def fetched_bin(name: str, revision: str | None) -> Path | None:
    """Return the folder in the hub's cache of a model that has no safetensors, files and all.

    Args:
        name: Its id.
        revision: Branch, tag or commit.

    Returns:
        None where it has safetensors, or no weights that are known here.

    Raises:
        OSError: If the hub does not have the model.
    """
    from huggingface_hub import snapshot_download
    from transformers.utils import cached_file

    for file in (WEIGHTS, INDEX, BIN_WEIGHTS, BIN_INDEX):
        found = cached_file(
            name, file, revision=revision, _raise_exceptions_for_missing_entries=False
        )
        if found is not None:
            break
    if found is None or file in (WEIGHTS, INDEX):
        return None
    # By the commit, so that all files are of one state.
    commit = Path(found).parent.name
    return Path(snapshot_download(name, revision=commit, allow_patterns=[*BIN_FILES, *SMALL_FILES]))


def _bin_files(folder: Path) -> list[Path]:
    """Return the `.bin` files of a model folder.

    Raises:
        ModelError: If one that the index names is not there.
    """
    if (folder / BIN_WEIGHTS).is_file():
        return [folder / BIN_WEIGHTS]
    index = folder / BIN_INDEX
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(named.values()))
        files = [folder / Path(name).name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{index} is no index of weights ({type(error).__name__}: {first_line(error)}). Copy "
            "it anew, or save the model with `model.save_pretrained(folder)`."
        ) from error
    missing = [path.name for path in files if not path.is_file()]
    if missing or not files:
        what = f"names {', '.join(missing[:3])}, not there" if missing else "names no files"
        raise ModelError(f"{index} {what}. Copy all files of the model into one folder.")
    return files


def _hash_file(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        return {"file": hashlib.file_digest(file, "sha256").hexdigest()}


def _convert(files: list[Path], target: Path) -> None:
    """Save the tensors of `.bin` files as safetensors, in files of a bounded size."""
    from safetensors.torch import save_file

    places: dict[str, str] = {}
    total, shards = 0, 0
    for path in files:
        tensors = _read_tensors(path)
        for names in _cut(tensors):
            shards += 1
            file = f"model-{shards:05d}.safetensors"
            plain = _apart({name: tensors[name] for name in names})
            save_file(plain, target / file, metadata={"format": "pt"})
            places |= dict.fromkeys(names, file)
            total += sum(tensor.nbytes for tensor in plain.values())
        del tensors, plain  # before the next file is read
    if shards == 1:
        (target / file).rename(target / WEIGHTS)
        return
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (target / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _apart(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Copy tensors that share memory, such as tied weights: safetensors has each of them."""
    plain: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in tensors.items():
        own = tensor.contiguous()
        place = own.untyped_storage().data_ptr()
        plain[name] = own.clone() if place in seen else own
        seen.add(place)
    return plain


def _cut(tensors: "Mapping[str, Tensor]") -> Iterator[list[str]]:
    """Yield names of tensors that together are not larger than `SHARD_BYTES`, but one at least."""
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if names and size + tensor.nbytes > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    yield names


def _read_tensors(path: Path) -> "dict[str, Tensor]":
    """Return the tensors of a `.bin` file; nothing that stands in it is run.

    Raises:
        ModelError: If it holds anything else, or is damaged.
    """
    import torch

    with path.open("rb") as file:
        start = file.read(len(POINTER))
    # Files of PyTorch before 1.6 are no archives, of which parts could be read.
    mapped = zipfile.is_zipfile(path)
    if start == POINTER or (start[:2] == b"PK" and not mapped):
        raise _damaged(path, "it is a pointer of Git LFS" if start == POINTER else "it was cut off")
    try:
        with warnings.catch_warnings(action="ignore"):  # of other pickles, which end below
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        # PyTorch's own advice, around what it found, is to run the code after all.
        needs = re.search(r"(?:GLOBAL|function|class) '?([\w.]+)", str(error))
        if needs is None:
            told = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
            raise _damaged(path, told[1] if told else "it is no such file") from error
        raise ModelError(
            f"{path} needs code to be read ({needs[1]}), and code of a file of weights is never "
            "run here. If you trust it, load it elsewhere and save the model with "
            "`model.save_pretrained(folder)`, which writes safetensors."
        ) from error
    except MemoryError:
        raise
    # A damaged pickle can fail in any other way.
    except Exception as error:
        raise _damaged(path, first_line(error)) from error
    others = [
        str(name)
        for name, value in (found.items() if isinstance(found, dict) else [("all of it", found)])
        if not (isinstance(name, str) and isinstance(value, torch.Tensor))
        or value.layout != torch.strided
        or value.is_quantized
    ]
    if others or not found:
        what = f"{', '.join(others[:3])} is no plain tensor" if others else "it is empty"
        raise ModelError(
            f"{path} does not hold a model's weights by name: {what}. It may be a checkpoint of a "
            "training; save the model in it with `model.save_pretrained(folder)`."
        )
    return {name: value.detach() for name, value in found.items()}


def _damaged(path: Path, reason: str) -> ModelError:
    first = reason.split(". ")[0].rstrip(".")
    return ModelError(
        f"{path} cannot be read as weights of PyTorch: {first}. Copy it anew, as it may have been "
        "written in part; or load it elsewhere and save the model with "
        "`model.save_pretrained(folder)`."
    )
