"""A model is what its files hold, or it is refused by name."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import tiny
from taskfit.errors import CheckpointError, ModelError
from taskfit.models.adapters import ADAPTER_WEIGHTS, add_adapter, load_adapter
from taskfit.models.encoder import load_encoder
from taskfit.models.load import LoadedModel, load_model
from taskfit.models.whole import NotFiniteError, check_files, refuse_infinite, require_finite
from taskfit.settings import AdapterSettings, ModelSettings

Weights = dict[str, Tensor]
Change = Callable[[Weights], Weights]
WEIGHTS = "model.safetensors"
HUGE = ("lm_head.weight", "model.norm.weight")


def changed(source: Path, target: Path, change: Change, file: str = WEIGHTS) -> Path:
    """Copy a model and change the tensors of its file."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    weights = {key: tensor.clone() for key, tensor in load_file(source / file).items()}
    save_file(change(weights), target / file, metadata={"format": "pt"})
    return target


def load(folder: Path, weights: str = "lora") -> LoadedModel:
    settings = ModelSettings(name=str(folder), dtype="float32", device="cpu")
    return load_model(settings, quantization=AdapterSettings(weights=weights))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, byte_level_tokenizer: PreTrainedTokenizerFast
) -> dict[str, Path]:
    made = {}
    for name in ("llama", "gpt2", "gpt_neox", "gemma"):
        made[name] = tmp_path_factory.mktemp("whole") / name
        tiny.tiny_model(name, len(byte_level_tokenizer) + 8).save_pretrained(made[name])
        byte_level_tokenizer.save_pretrained(made[name])
    return made


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma"])
def test_a_model_without_any_one_of_its_weights_is_refused_by_its_name(
    architecture: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    source = folders[architecture]
    keys = sorted(load_file(source / WEIGHTS))
    # All kinds of weights: those of a second layer are no others.
    for key in [key for key in keys if ".1." not in key]:
        folder = changed(source, tmp_path / "m", lambda w: {k: w[k] for k in w if k != key})  # noqa: B023
        with pytest.raises(ModelError, match=f"missing: .*{re.escape(key)}"):
            load(folder)


def test_a_number_that_is_not_finite_is_found_in_every_weight(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    source = folders["llama"]
    for place, key in enumerate(sorted(load_file(source / WEIGHTS))):
        bad = (float("nan"), float("inf"), -float("inf"))[place % 3]

        def poison(weights: Weights, key: str = key, bad: float = bad) -> Weights:
            weights[key].view(-1)[-1] = bad
            return weights

        folder = changed(source, tmp_path / "m", poison)
        with pytest.raises(NotFiniteError, match=rf"1 weight of 21, {re.escape(key)} \("):
            load(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, "torch.compile puts there"),
        (lambda w: {f"module.{k}": v for k, v in w.items()}, "DataParallel puts there"),
        (
            lambda w: {**{k: v for k, v in w.items() if k != "lm_head.weight"},
                       "score.weight": torch.zeros(2, 32)},
            "no head that scores tokens .they hold score.weight instead",
        ),
        (
            lambda w: {**w, "model.layers.1.mlp.down_proj.weight": torch.zeros(32, 60)},
            r"another shape: model\.layers\.1\.mlp\.down_proj\.weight \[32, 60\] for \[32, 64\]",
        ),
        (
            lambda w: {**w, **{k.replace("s.1.", "s.2."): v.clone() for k, v in w.items()}},
            r"9 weights that LlamaForCausalLM .* no place for: model\.layers\.2\.",
        ),
        (
            lambda w: {**w, "model.layers.0.self_attn.q_proj.bias": torch.zeros(32)},
            r"no place for: model\.layers\.0\.self_attn\.q_proj\.bias",
        ),
        (
            lambda w: {k: v * (1e38 if k in HUGE else 1) for k, v in w.items()},
            "scores are not finite",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_what_to_do(
    change: Change, said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = changed(folders["llama"], tmp_path / "m", change)
    with pytest.raises(ModelError, match=said):
        load(folder)
    if "not finite" not in said:  # names and shapes say so without the numbers
        with pytest.raises(ModelError, match=said):
            check_files(str(folder), "it", None)


@pytest.mark.parametrize(
    ("architecture", "keys"),
    [
        ("llama", ["model.layers.0.self_attn.rotary_emb.inv_freq"]),
        ("gpt2", ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"]),
        ("gpt_neox", ["gpt_neox.layers.0.attention.bias",
                      "gpt_neox.layers.0.attention.rotary_emb.inv_freq"]),
    ],
)  # fmt: skip
def test_tables_that_are_computed_today_do_no_harm(
    architecture: str, keys: list[str], folders: dict[str, Path], tmp_path: Path
) -> None:
    def add(weights: Weights) -> Weights:
        return {**weights, **{key: torch.zeros(4) for key in keys}}

    assert load(changed(folders[architecture], tmp_path / "m", add)).note is None


def test_a_head_of_another_task_beside_the_model_is_told(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = changed(
        folders["llama"], tmp_path / "m", lambda w: {**w, "score.weight": torch.zeros(2, 32)}
    )
    assert "score.weight" in str(load(folder).note)


@pytest.mark.parametrize("key", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_a_base_in_four_bits_is_checked_as_well(
    key: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")

    def poison(weights: Weights) -> Weights:
        weights[key].view(-1)[-1] = float("nan")
        return weights

    with pytest.raises(NotFiniteError, match=re.escape(key)):
        load(changed(folders["llama"], tmp_path / "a", poison), "qlora")
    folder = changed(folders["llama"], tmp_path / "b", lambda w: {k: w[k] for k in w if k != key})
    with pytest.raises(ModelError, match=f"missing: {re.escape(key)}"):
        load(folder, "qlora")


@pytest.mark.parametrize("num_labels", [None, 2])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, "torch.compile puts there"),
        (
            lambda w: {**w, **{k.replace("r.1.", "r.2."): v.clone() for k, v in w.items()}},
            r"no place for: (bert\.)?encoder\.layer\.2\.",
        ),
        (
            lambda w: {k: v / 0 if "word_embeddings" in k else v for k, v in w.items()},
            r"not finite: 1 weight of \d+, (bert\.)?embeddings\.word_embeddings\.weight",
        ),
    ],
)
def test_encoders_are_checked_as_well(
    change: Change, said: str, num_labels: int | None, encoder_folder: Path, tmp_path: Path
) -> None:
    folder = changed(encoder_folder, tmp_path / "m", change)
    device = torch.device("cpu")
    with pytest.raises(ModelError, match=said):
        load_encoder(str(folder), device=device, dtype=torch.float32, num_labels=num_labels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: dict(sorted(w.items())[1:]), "1 of its weights missing, such as .*lora_A"),
        (
            lambda w: {**w, "base_model.model.model.layers.7.mlp.up_proj.lora_A.weight":
                       torch.zeros(8, 32)},
            r"1 that no layer of this base takes, such as .*layers\.7\.",
        ),
        (lambda w: {k: v / 0 for k, v in w.items()}, "holds numbers that are not finite"),
    ],
)  # fmt: skip
def test_an_adapter_holds_what_its_base_has_places_for(
    change: Change, said: str, loaded: LoadedModel, tmp_path: Path
) -> None:
    adapter = add_adapter(loaded.tree.model, AdapterSettings(), seed=0)
    assert adapter is not None
    adapter.save_pretrained(tmp_path / "good")
    plain = adapter.unload()
    folder = changed(tmp_path / "good", tmp_path / "bad", change, ADAPTER_WEIGHTS)
    with pytest.raises((CheckpointError, NotFiniteError), match=said):
        load_adapter(plain, folder)


def test_numbers_of_texts_are_finite_or_name_the_texts() -> None:
    scores = torch.zeros(3, 2)
    require_finite(scores, ["a", "b", "c"])
    scores[1, 0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"not finite .* for 1 text, b\. .*learning_rate"):
        require_finite(scores, ["a", "b", "c"])


def test_large_numbers_of_sixteen_bits_are_finite() -> None:
    refuse_infinite({"w": torch.full((9,), 60000.0).half(), "none": torch.zeros(0)}, "it")
