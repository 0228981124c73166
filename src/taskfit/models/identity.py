"""Which model lies in a folder, by what its files hold: weights, configuration, tokenizer.

A model that is copied elsewhere, or cut into other files, stays the same; one in which a single
number of a weight changed is another. All weights are hashed, each tensor by itself (270 MB in
0.2 s on a core, several cores at once); of files that have not changed since, what they hold is
kept in the cache folder.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from taskfit.errors import ModelError, TaskfitError
from taskfit.models.bin_weights import INDEX, WEIGHTS, fetched_bin, safetensors_folder
from taskfit.models.kept import kept_digests, short_digest
from taskfit.models.packaged import locate_model

# Keys of config.json that change nothing in what is computed here.
WITHOUT_EFFECT = (
    *("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype"),
    *("use_cache", "id2label", "label2id", "problem_type"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)
# Keys of tokenizer_config.json by which a tokenizer makes other tokens of a text.
OF_TOKENS = (
    *("add_bos_token", "add_eos_token", "add_prefix_space", "bos_token", "eos_token", "unk_token"),
    *("split_special_tokens", "do_lower_case", "strip_accents", "tokenize_chinese_chars"),
)
VOCABULARIES = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a model's files hold.

    Attributes:
        weights: Digest of all tensors: names, formats, shapes and numbers.
        config: The configuration, with its defaults.
        tokenizer: Digest of what makes tokens of texts.
        chat_template: Digest of the chat template; empty where there is none.
    """

    weights: str
    config: Mapping[str, Any]
    tokenizer: str
    chat_template: str

    def differences(self, other: "Identity", *, chat_template: bool) -> list[str]:
        """Say in what another model differs from this one; empty: in nothing that counts.

        Args:
            other: The other model.
            chat_template: Whether its template counts.
        """
        found = ["other weights"] if self.weights != other.weights else []
        # Keys of one alone are defaults that another version of transformers added.
        changed = [
            f"{key} {other.config[key]}, not {value}"
            for key, value in self.config.items()
            if key in other.config and other.config[key] != value
        ]
        if changed:
            found.append(f"another config.json ({', '.join(sorted(changed)[:3])})")
        if self.tokenizer != other.tokenizer:
            found.append("another tokenizer")
        if chat_template and self.chat_template != other.chat_template:
            found.append("another chat template")
        return found

    @property
    def digest(self) -> str:
        """Return one digest of all."""
        parts = [self.weights, self.config, self.tokenizer, self.chat_template]
        return short_digest(json.dumps(parts, sort_keys=True).encode())


def identify(folder: Path) -> Identity:
    """Return which model lies in a folder.

    Raises:
        ModelError: If its files cannot be read.
        WriteError: If its weights are to be saved in the cache, which cannot be written.
    """
    try:
        tokenizer, template = _tokenizer(folder)
        return Identity(_weights(folder), _config(folder), tokenizer, template)
    except TaskfitError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"The files of the model in {folder} cannot be read: {error}.") from error


def model_folder(name: str, revision: str | None, *, located: str | None = None) -> Path:
    """Return the folder with a model's files: local, of a package, or of the hub's cache.

    Files of the hub that are not there yet are fetched, those that loading needs.

    Args:
        name: As the user gave it.
        revision: Branch, tag or commit of a hub model.
        located: What `locate_model` or `locate_encoder` returned; None: it is a causal model.

    Raises:
        TaskfitError: If there is no such model.
        OSError: If the hub does not have it.
    """
    source = located or locate_model(name)
    if Path(source).is_dir():
        return Path(source)
    from transformers.utils import cached_file
    from transformers.utils.hub import get_checkpoint_shard_files

    config = cached_file(source, "config.json", revision=revision)
    if config is None:
        raise ModelError(f"{name} has no config.json.")
    folder = Path(config).parent
    # By the commit, so that all files are of one state.
    options = {"revision": folder.name, "_raise_exceptions_for_missing_entries": False}
    if cached_file(source, WEIGHTS, **options) is None:
        index = cached_file(source, INDEX, **options)
        if index is not None:
            get_checkpoint_shard_files(source, index, revision=folder.name)
        elif (whole := fetched_bin(source, folder.name)) is not None:
            return whole
    for file in ("tokenizer_config.json", "chat_template.jinja"):
        cached_file(source, file, **options)
    if cached_file(source, "tokenizer.json", **options) is None:
        for file in VOCABULARIES:
            cached_file(source, file, **options)
    return folder


def describe_model(name: str, revision: str | None) -> str:
    """Return one digest of all that a causal language model's files hold; see `model_folder`."""
    return identify(model_folder(name, revision)).digest


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights that loading reads of a model's folder: all in safetensors.

    Raises:
        ModelError: As `safetensors_folder`.
    """
    folder = safetensors_folder(folder)
    if (folder / WEIGHTS).is_file():
        files = [folder / WEIGHTS]
    elif (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        files = [folder / name for name in sorted(set(index["weight_map"].values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    adapter = folder / "adapter_model.safetensors"
    return [*files, adapter] if adapter.is_file() and adapter not in files else files


def _weights(folder: Path) -> str:
    tensors: dict[str, str] = {}
    for path in weight_files(folder):
        tensors |= kept_digests(path, _hash_tensors, kind="tensors")
    return short_digest(json.dumps(tensors, sort_keys=True).encode())


def _hash_tensors(path: Path) -> dict[str, str]:
    """Return a digest of each tensor of a safetensors file: format, shape and numbers."""
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as whole:
        length = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + length])
        header.pop("__metadata__", None)
        view = memoryview(whole)

        def digest(entry: dict[str, Any]) -> str:
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            found = hashlib.sha256(f"{entry['dtype']} {entry['shape']}".encode())
            with view[start:end] as numbers:
                found.update(numbers)
            return found.hexdigest()[:16]

        try:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                return dict(zip(header, pool.map(digest, header.values()), strict=True))
        finally:
            view.release()


def _config(folder: Path) -> dict[str, Any]:
    """Return the configuration as transformers completes it, so that defaults do not matter."""
    from transformers import AutoConfig

    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with suppress(ValueError, KeyError, TypeError, AttributeError, OSError):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        raw = json.loads(config.to_json_string(use_diff=False))
    return _effective(raw)


def _effective(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _effective(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in WITHOUT_EFFECT and value is not None
    }


def _tokenizer(folder: Path) -> tuple[str, str]:
    """Return the digests of the tokenizer and of its chat template."""
    path, config = folder / "tokenizer_config.json", dict[str, Any]()
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
    template = config.get("chat_template") or ""
    if (own := folder / "chat_template.jinja").is_file():
        template = own.read_text(encoding="utf-8")
    chosen = {key: _content(config[key]) for key in OF_TOKENS if config.get(key)}
    found = [json.dumps(chosen, sort_keys=True)]
    if (path := folder / "tokenizer.json").is_file():
        found.append(kept_digests(path, _hash_tokenizer, kind="tokenizer")["tokenizer"])
    else:
        paths = [folder / name for name in VOCABULARIES]
        found += [hashlib.sha256(p.read_bytes()).hexdigest() for p in paths if p.is_file()]
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return short_digest("\n".join(found).encode()), short_digest(text.encode()) if text else ""


def _hash_tokenizer(path: Path) -> dict[str, str]:
    """Return the digest of a tokenizer, without what only the last call of it left there."""
    plain = json.loads(path.read_text(encoding="utf-8"))
    for key in ("truncation", "padding"):
        plain.pop(key, None)
    return {"tokenizer": short_digest(json.dumps(plain, sort_keys=True).encode())}


def _content(token: object) -> object:
    return token.get("content") if isinstance(token, Mapping) else token
