"""A model is the same wherever it lies, and another one after any change that counts."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from taskfit.models.identity import Identity, identify, weight_files
from taskfit.models.load import load_model
from taskfit.settings import ModelSettings

WEIGHTS = "model.safetensors"


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target, dirs_exist_ok=True))


def differences(one: Path | Identity, other: Path, *, chat_template: bool = True) -> list[str]:
    first = identify(one) if isinstance(one, Path) else one
    return first.differences(identify(other), chat_template=chat_template)


def test_a_copy_a_copy_in_shards_and_one_saved_again_are_the_same_model(
    model_folder: Path, tmp_path: Path
) -> None:
    model = load_model(ModelSettings(name=str(model_folder), dtype="float32")).tree.model
    model.save_pretrained(copied(model_folder, tmp_path / "again"))
    shards = copied(model_folder, tmp_path / "shards")
    (shards / WEIGHTS).unlink()
    model.save_pretrained(shards, max_shard_size="20KB")
    assert len(weight_files(shards)) > 1
    for other in (copied(model_folder, tmp_path / "copy"), tmp_path / "again", shards):
        assert differences(model_folder, other) == []
        assert identify(other).digest == identify(model_folder).digest


def test_one_bit_of_any_weight_makes_another_model(model_folder: Path, tmp_path: Path) -> None:
    before, folder = identify(model_folder), copied(model_folder, tmp_path / "m")
    for key in load_file(folder / WEIGHTS):
        weights = load_file(model_folder / WEIGHTS)
        flat = weights[key].view(torch.uint8).view(-1)
        flat[len(flat) // 3] ^= 1
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        assert differences(before, folder) == ["other weights"], key


def test_what_changes_ids_or_computation_is_told_and_nothing_else(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = copied(model_folder, tmp_path / "m")

    def edit(file: str, **changes: object) -> list[str]:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=1))
        return differences(model_folder, folder)

    no_effect = {"transformers_version": "9.9", "dtype": "float16", "use_cache": False}
    assert edit("config.json", **no_effect) == []
    assert edit("tokenizer.json", truncation=None, padding=None) == []
    assert edit("tokenizer_config.json", model_max_length=7, pad_token="</s>") == []
    assert edit("tokenizer_config.json", add_bos_token=True) == ["another tokenizer"]
    (found,) = edit("config.json", rms_norm_eps=0.5)[:1]
    assert found == "another config.json (rms_norm_eps 0.5, not 1e-06)"
    shutil.copy(model_folder / "config.json", folder)
    shutil.copy(model_folder / "tokenizer_config.json", folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert differences(model_folder, folder) == ["another chat template"]
    assert differences(model_folder, folder, chat_template=False) == []
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    vocabulary["model"]["merges"].pop()
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    assert "another tokenizer" in differences(model_folder, folder)


def test_what_is_kept_of_a_large_file_is_not_taken_for_another_of_its_name_size_and_time(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskfit.models.kept.CACHED_BYTES", 0)
    monkeypatch.setattr("taskfit.models.kept.SETTLED_SECONDS", -1.0)
    monkeypatch.setattr("taskfit.models.kept.cache_folder", lambda: tmp_path / "cache")
    folder = copied(model_folder, tmp_path / "m")
    path, before = folder / WEIGHTS, identify(folder)
    assert any((tmp_path / "cache").rglob("*.json"))
    assert differences(before, folder) == []
    monkeypatch.setattr("taskfit.models.identity._hash_tensors", lambda path: {"": "kept"})
    assert differences(before, folder) == []  # nothing was hashed
    monkeypatch.undo()
    monkeypatch.setattr("taskfit.models.kept.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("taskfit.models.kept.CACHED_BYTES", 0)
    weights, times = load_file(path), path.stat()
    weights["model.norm.weight"] += 1
    save_file(weights, path, metadata={"format": "pt"})
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    assert differences(before, folder) == ["other weights"]


def test_a_cache_that_cannot_be_written_is_done_without(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("taskfit.models.kept.CACHED_BYTES", 0)
    monkeypatch.setattr("taskfit.models.kept.SETTLED_SECONDS", -1.0)
    monkeypatch.setattr("taskfit.models.kept.cache_folder", lambda: tmp_path / "file")
    assert identify(model_folder).weights
