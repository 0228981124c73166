import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from taskfit.errors import ModelError, SettingsError
from taskfit.models.load import load_model, resolve_device, resolve_dtype
from taskfit.plan.model import meta_model
from taskfit.plan.shapes import known_config
from taskfit.settings import ModelSettings


def test_a_local_folder_loads_with_everything_put_right(model_folder: Path) -> None:
    loaded = load_model(ModelSettings(name=str(model_folder), dtype="float32"))
    assert loaded.tree.model.dtype == torch.float32
    assert loaded.tokenizer.pad_token is not None
    assert not any(p.requires_grad for p in loaded.tree.model.parameters())
    assert loaded.tree.max_length == 256


def test_a_folder_without_weights_says_so(
    tmp_path: Path, model_folder: Path, byte_level_tokenizer: PreTrainedTokenizerFast
) -> None:
    byte_level_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"without config\.json"):
        load_model(ModelSettings(name=str(tmp_path)))
    (tmp_path / "config.json").write_bytes((model_folder / "config.json").read_bytes())
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"no \*\.safetensors file.*adapter_model\.bin is not"):
        load_model(ModelSettings(name=str(tmp_path)))


def test_a_folder_that_is_not_there_says_so() -> None:
    with pytest.raises(ModelError, match=r"no folder \./nowhere.*smollm2-135m"):
        load_model(ModelSettings(name="./nowhere"))


def test_a_hub_model_without_a_network_says_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"could not be had from the hub.*give its folder"):
        load_model(ModelSettings(name="no-such-owner/no-such-model"))


def test_damaged_weights_end_in_one_message(tmp_path: Path, model_folder: Path) -> None:
    for file in model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:2000])
    (tmp_path / "config.json").write_bytes((model_folder / "config.json").read_bytes())
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(ModelSettings(name=str(tmp_path)))
    # Now the weights alone are cut short.
    for file in model_folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(ModelSettings(name=str(tmp_path)))


def test_devices_and_formats_are_chosen_or_refused() -> None:
    assert resolve_dtype("float16", torch.device("cpu")) == torch.float16
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(SettingsError, match="allowed are auto, cpu, cuda"):
        resolve_device("mps")
    with pytest.raises(SettingsError, match="PyTorch sees"):
        resolve_device("cuda:99")


def test_models_of_two_threads_do_not_mix(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied = known_config("smollm2-135m")
    begun, make = threading.Event(), LlamaForCausalLM.__init__

    def slow(self, *args, **options) -> None:
        if threading.current_thread() is loading:
            begun.set()
            time.sleep(0.3)  # the other thread would be done by now
        make(self, *args, **options)

    monkeypatch.setattr(LlamaForCausalLM, "__init__", slow)
    loading = threading.Thread(target=load_model, args=[ModelSettings(name=str(model_folder))])
    loading.start()
    assert begun.wait(30)
    model = meta_model(tied, torch.float32)
    loading.join()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
