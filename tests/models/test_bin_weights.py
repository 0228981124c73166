"""A model whose weights are in pytorch_model.bin is the model that they were saved from."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import constants
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import tiny
from taskfit.data import cache_folder
from taskfit.errors import ModelError, WriteError
from taskfit.models import bin_weights, kept
from taskfit.models.bin_weights import BIN_INDEX, BIN_WEIGHTS, INDEX, WEIGHTS, safetensors_folder
from taskfit.models.encoder import load_encoder
from taskfit.models.identity import identify, model_folder
from taskfit.models.load import load_model
from taskfit.models.packaged import check_place
from taskfit.settings import ModelSettings

Weights = dict[str, Tensor]
Change = Callable[[Weights], Weights]
IDS = torch.arange(3, 60).reshape(3, 19)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TASKFIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "converted"


def save_bin(
    model: PreTrainedModel, folder: Path, change: Change = dict, *, files: int = 1
) -> Path:
    """Save a model as `save_pretrained` did before safetensors; 0 files: as PyTorch before 1.6."""
    model.save_pretrained(folder)
    (folder / WEIGHTS).unlink()
    weights = change(dict(model.state_dict()))
    if files < 2:
        torch.save(weights, folder / BIN_WEIGHTS, _use_new_zipfile_serialization=files == 1)
        return folder
    places = {key: f"pytorch_model-{i % files}.bin" for i, key in enumerate(weights)}
    for file in set(places.values()):
        own = {key: weights[key] for key in places if places[key] == file}
        torch.save(own, folder / file)
    (folder / BIN_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def scores(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def loaded_scores(name: Path | str, revision: str | None = None) -> Tensor:
    settings = ModelSettings(name=str(name), dtype="float32", device="cpu", revision=revision)
    with load_model(settings).tree.plain_attention() as model:
        return scores(model)


def opt_350m(vocab_size: int) -> PreTrainedModel:
    """The shape of OPT-350m: narrow embeddings, norms behind the layers."""
    config = transformers.OPTConfig(
        vocab_size=vocab_size,
        **tiny.ARCHITECTURES["opt"][1],
        do_layer_norm_before=False,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def of_old_opt(weights: Weights) -> Weights:
    return {key.removeprefix("model."): value for key, value in weights.items()}


def of_old_gpt2(weights: Weights) -> Weights:
    mask = torch.ones(256, 256, dtype=torch.uint8).tril()[None, None]
    masks = {f"transformer.h.{i}.attn.bias": mask for i in range(2)}
    return weights | masks | {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}


def without_head(weights: Weights) -> Weights:
    return {
        key.removeprefix("transformer."): weights[key] for key in weights if key != "lm_head.weight"
    }


@pytest.mark.parametrize(
    ("architecture", "change", "files"),
    [
        ("llama", dict, 1),
        ("llama", dict, 3),
        ("llama", dict, 0),
        ("opt", dict, 1),
        ("opt", of_old_opt, 1),
        ("opt_350m", of_old_opt, 2),
        ("gpt2", of_old_gpt2, 1),
        ("gpt2", lambda w: without_head(of_old_gpt2(w)), 0),
    ],
)
def test_it_scores_as_the_model_it_was_saved_from(
    tmp_path: Path,
    byte_level_tokenizer: PreTrainedTokenizerFast,
    architecture: str,
    change: Change,
    files: int,
) -> None:
    size = len(byte_level_tokenizer)
    model = opt_350m(size) if architecture == "opt_350m" else tiny.tiny_model(architecture, size)
    folder = save_bin(model, tmp_path / "m", change, files=files)
    byte_level_tokenizer.save_pretrained(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    torch.testing.assert_close(loaded_scores(folder), scores(model), atol=1e-5, rtol=1e-4)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.fixture
def bin_folder(tmp_path: Path, byte_level_tokenizer: PreTrainedTokenizerFast) -> Path:
    model = tiny.tiny_model("llama", len(byte_level_tokenizer))
    folder = save_bin(model, tmp_path / "model")
    byte_level_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kept_from", [0, kept.CACHED_BYTES])
def test_it_is_the_same_model_as_with_safetensors(
    bin_folder: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, kept_from: int
) -> None:
    monkeypatch.setattr(kept, "CACHED_BYTES", kept_from)
    monkeypatch.setattr(kept, "SETTLED_SECONDS", -1.0)
    assert identify(model_folder).differences(identify(bin_folder), chat_template=True) == []
    assert identify(bin_folder) == identify(safetensors_folder(bin_folder))
    assert safetensors_folder(model_folder) == model_folder


def test_it_is_converted_once_and_said_so_wherever_it_lies(
    bin_folder: Path, cache: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first = safetensors_folder(bin_folder)
    assert capfd.readouterr().err.splitlines() == [
        f"{bin_folder / BIN_WEIGHTS} is no safetensors file; its weights are saved as such once, "
        f"in {first}"
    ]
    shutil.copytree(bin_folder, tmp_path / "copy")
    assert {safetensors_folder(bin_folder), safetensors_folder(tmp_path / "copy")} == {first}
    assert capfd.readouterr() == ("", "")
    assert list(cache.iterdir()) == [first]
    assert {p.name for p in bin_folder.iterdir()} - {BIN_WEIGHTS} == {
        p.name for p in first.iterdir()
    } - {WEIGHTS}


def test_what_changed_is_converted_anew(bin_folder: Path) -> None:
    first, before = safetensors_folder(bin_folder), identify(bin_folder)
    path = bin_folder / BIN_WEIGHTS
    weights, times = torch.load(path), path.stat()
    weights["model.norm.weight"] += 1
    torch.save(weights, path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert safetensors_folder(bin_folder) != first
    assert before.differences(identify(bin_folder), chat_template=True) == ["other weights"]
    (bin_folder / "chat_template.jinja").write_text("{{ messages }}")
    assert (safetensors_folder(bin_folder) / "chat_template.jinja").is_file()


def test_large_models_are_cut_and_shared_memory_is_written_for_each_name(
    bin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = loaded_scores(bin_folder)
    weights = torch.load(bin_folder / BIN_WEIGHTS)
    norms = torch.cat([weights[key] for key in weights if "norm" in key])
    for index, key in enumerate(key for key in weights if "norm" in key):
        weights[key] = norms[32 * index : 32 * index + 32]  # views of one tensor
    weights["model.layers.0.mlp.up_proj.weight"] = (
        weights["model.layers.0.mlp.up_proj.weight"].T.contiguous().T
    )
    torch.save(weights, bin_folder / BIN_WEIGHTS)
    monkeypatch.setattr(bin_weights, "SHARD_BYTES", 30_000)
    folder = safetensors_folder(bin_folder)
    assert (folder / INDEX).is_file()
    assert len(list(folder.glob("*.safetensors"))) > 3
    torch.testing.assert_close(loaded_scores(bin_folder), expected)


class Writes:
    """A pickle of it writes a file when it is read as any other."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("files", [0, 1])
def test_code_in_a_file_is_never_run(bin_folder: Path, cache: Path, files: int) -> None:
    trap = bin_folder / "trap"
    weights = {**torch.load(bin_folder / BIN_WEIGHTS), "more": Writes(trap)}
    path = bin_folder / BIN_WEIGHTS
    torch.save(weights, path, _use_new_zipfile_serialization=files == 1)
    with pytest.raises(ModelError, match=r"needs code to be read \(\w+\.system\).*elsewhere"):
        loaded_scores(bin_folder)
    assert not trap.exists()
    assert not list(cache.iterdir())
    torch.load(path, weights_only=False)  # it would have run
    assert trap.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], "it was cut off.*anew"),
        (lambda whole: whole[:100], "cannot be read as weights of PyTorch"),
        (lambda whole: b"", "cannot be read as weights of PyTorch"),
        (lambda whole: b"x", "cannot be read as weights of PyTorch"),
        (lambda whole: b"version https://git-lfs.github.com", "a pointer of Git LFS"),
    ],
)
def test_a_damaged_file_is_one_message(
    bin_folder: Path, content: Callable[[bytes], bytes], message: str
) -> None:
    path = bin_folder / BIN_WEIGHTS
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(ModelError, match=message) as found:
        loaded_scores(bin_folder)
    assert "\n" not in str(found.value)
    assert "weights_only" not in str(found.value)  # PyTorch would have its code run


@pytest.mark.parametrize(
    "content", [{}, [torch.ones(2)], {"model": {"w": torch.ones(2)}, "epoch": 3}, {"w": 1.5}]
)
def test_a_file_of_other_things_is_refused(bin_folder: Path, content: object) -> None:
    torch.save(content, bin_folder / BIN_WEIGHTS)
    with pytest.raises(ModelError, match="does not hold a model's weights by name"):
        loaded_scores(bin_folder)


def test_shards_that_are_missing_are_named(bin_folder: Path) -> None:
    path = bin_folder / BIN_WEIGHTS
    path.rename(bin_folder / "pytorch_model-1.bin")
    with pytest.raises(ModelError, match=r"no weights.*and no pytorch_model\.bin \(pytorch_mod"):
        check_place(str(bin_folder))
    index = bin_folder / BIN_INDEX
    index.write_text(json.dumps({"weight_map": {"a": "pytorch_model-1.bin", "b": "other.bin"}}))
    check_place(str(bin_folder))
    with pytest.raises(ModelError, match=r"names other\.bin, not there"):
        loaded_scores(bin_folder)
    for content in ("{", "{}", "[]", '{"weight_map": {"a": 1}}', '{"weight_map": {}}'):
        index.write_text(content)
        with pytest.raises(ModelError, match=r"is no index of weights|names no files"):
            loaded_scores(bin_folder)


def test_a_cache_that_cannot_be_written_is_one_message(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TASKFIT_CACHE", str(tmp_path / "file"))
    for work in (loaded_scores, identify):
        with pytest.raises(WriteError, match=r"^\S+ could not be written.*TASKFIT_CACHE"):
            work(bin_folder)


def test_safetensors_come_first(bin_folder: Path, model_folder: Path) -> None:
    shutil.copy(model_folder / WEIGHTS, bin_folder)
    (bin_folder / BIN_WEIGHTS).write_bytes(b"whatever")
    assert safetensors_folder(bin_folder) == bin_folder
    loaded_scores(bin_folder)


def test_a_model_of_the_hub_is_read_at_its_revision(
    bin_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    home, commits = hub / "models--owner--name", {"main": "a" * 40, "other": "b" * 40}
    (home / "refs").mkdir(parents=True)
    for name, commit in commits.items():
        (home / "refs" / name).write_text(commit)
        shutil.copytree(bin_folder, home / "snapshots" / commit)
    path = home / "snapshots" / commits["other"] / BIN_WEIGHTS
    weights = {key: value * 1.1 for key, value in torch.load(path).items()}
    torch.save(weights, path)
    main, other = loaded_scores("owner/name"), loaded_scores("owner/name", "other")
    assert torch.equal(main, loaded_scores(bin_folder))
    assert not torch.allclose(main, other)
    found = model_folder("owner/name", "other")
    assert found == home / "snapshots" / commits["other"]
    assert identify(found) != identify(model_folder("owner/name", None))


def test_encoders_take_the_same_door(encoder_folder: Path, tmp_path: Path) -> None:
    model = transformers.BertModel.from_pretrained(encoder_folder)

    def of_old_bert(weights: Weights) -> Weights:
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        named = {}
        for key, value in weights.items():
            end = next((end for end in old if key.endswith(end)), "")
            named[f"bert.{key.removesuffix(end)}{old.get(end, '')}"] = value
        return named

    folder = tmp_path / "encoder"
    shutil.copytree(encoder_folder, folder)
    save_bin(model, folder, of_old_bert)
    pooling = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
    (folder / "modules.json").write_text(json.dumps([pooling]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    options = {"device": torch.device("cpu"), "dtype": torch.float32, "num_labels": None}
    found, expected = (
        load_encoder(str(folder), **options),
        load_encoder(str(encoder_folder), **options),
    )
    assert found.pooling == "cls"
    for key, value in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[key], value), key
    assert cache_folder() in Path(found.model.name_or_path).parents
