"""Every family of causal models gets the engine that serves it, and an exact one."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from taskfit.errors import ModelError
from taskfit.models.adapters import add_adapter
from taskfit.models.engine import causal_engine
from taskfit.models.load import load_model
from taskfit.models.padded_model import PaddedModel
from taskfit.models.tree_model import TreeModel
from taskfit.settings import AdapterSettings, ModelSettings
from taskfit.tree import TokenTree
from tiny_families import (
    VOCABULARY,
    causal_types,
    decoder_setting,
    difference_behind_a_prefix,
    difference_to_plain_passes,
    idle_adapters,
    multimodal_types,
    plain_scores,
    tiny_config,
    tiny_family,
)

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
TREE = {
    "afmoe": "attention that views what it is given",
    "falcon_h1": "attention beside recurrent state that forks",
    "lfm2": "attention and convolutions",
    "qwen3_next": "attention and a recurrent matrix",
    "deepseek_v3": "compressed keys and values, experts",
    "gemma3": "the text part of a multimodal model",
    "gemma4_text": "heads of two widths",
    "gpt_oss": "sinks, windows, experts",
    "mimo_v2_flash": "values of a width of their own",
    "minicpm3": "a factor before the head",
    "modernbert-decoder": "layers between decoder and head",
    "mistral3": "images and text, not in the table of causal models",
    "opt": "the 350m shape: projections and norms after layers",
}
PADDED = {
    "blt": "bytes in patches",
    "bloom": "biases by distance",
    "inkling_text": "a vocabulary that is filled up",
    "jamba": "attention, recurrent state, experts",
    "llama4_text": "attention within chunks",
    "mamba": "recurrent state alone",
    "nemotron": "layers that keep the tree from their attention",
    "rwkv": "recurrent state alone",
    "unlimited_ocr": "windows that keep the tokens of the first call",
    "zamba2": "layers that share weights",
}


@pytest.mark.parametrize("model_type", [*TREE, *PADDED])
def test_scores_equal_plain_passes_alone_in_company_and_behind_a_prefix(model_type: str) -> None:
    engine = causal_engine(tiny_family(model_type))
    assert isinstance(engine, TreeModel if model_type in TREE else PaddedModel)
    assert difference_to_plain_passes(engine) < 1e-4
    assert difference_behind_a_prefix(engine) < 1e-4


@pytest.mark.parametrize("model_type", ["gpt_oss", "mimo_v2_flash", "modernbert-decoder"])
def test_gradients_equal_those_of_plain_passes(model_type: str) -> None:
    model = tiny_family(model_type)
    engine = causal_engine(model)
    generator = np.random.default_rng(1)
    stem, *tails = (generator.integers(3, VOCABULARY, n) for n in (9, 3, 6))
    texts = [np.concatenate((stem, tail)) for tail in tails]
    tree = TokenTree.build(texts)
    leaves = np.array([path[-1] for path in tree.paths])
    engine.logits(engine.hidden(tree, leaves)).square().sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with engine.plain_attention() as plain:
        for text in texts:
            plain(torch.from_numpy(text)[None], use_cache=False).logits[
                0, -1
            ].square().sum().backward()
    theirs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(
            ours[name],
            gradient,
            rtol=1e-3,
            atol=1e-4 * float(gradient.abs().max() + 1e-6),
            msg=name,
        )


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm"])
def test_an_encoder_is_refused_and_a_decoder_of_its_type_served(model_type: str) -> None:
    assert decoder_setting(model_type)
    with pytest.raises(ModelError, match="an encoder") as caught:
        causal_engine(tiny_family(model_type))
    assert "Use a causal language model" in str(caught.value)
    engine = causal_engine(tiny_family(model_type, as_decoder=True))
    assert difference_to_plain_passes(engine) < 1e-4


@pytest.mark.parametrize("model_type", ["cpmant", "xlnet"])
def test_a_model_whose_scores_change_with_later_tokens_is_refused(model_type: str) -> None:
    with pytest.raises(ModelError, match="what comes after a token changes its scores"):
        causal_engine(tiny_family(model_type))


def test_an_encoder_decoder_and_hashed_attention_are_refused() -> None:
    sizes = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=64, **sizes))
    with pytest.raises(ModelError, match="is an encoder-decoder"):
        causal_engine(t5)
    with pytest.raises(ModelError, match="hashed"):
        causal_engine(tiny_family("reformer"))


def test_a_window_that_layers_do_not_tell_is_not_left_to_the_tree() -> None:
    model = tiny_family("qwen2_moe")
    engine = causal_engine(model)
    assert engine.refusal == "a sliding window of which layers do not tell their attention"
    assert difference_to_plain_passes(engine) < 1e-4
    # As long as the longest text, it hides nothing.
    model.config.sliding_window = model.config.max_position_embeddings
    for layer in model.model.layers:
        layer.self_attn.sliding_window = model.config.sliding_window
    assert isinstance(causal_engine(model), TreeModel)


def test_what_a_vocabulary_is_filled_up_with_gets_no_score() -> None:
    engine = causal_engine(tiny_family("inkling_text"))
    hidden = torch.randn(3, engine.model.config.hidden_size)
    assert engine.logits(hidden).shape == (3, tiny_config("inkling_text").unpadded_vocab_size)


def test_a_model_whose_head_was_read_scores_as_before() -> None:
    text = np.arange(5, 14)
    engine = causal_engine(tiny_family("modernbert-decoder"))
    (before,) = plain_scores(engine, [text])
    engine.hidden(TokenTree.build([text]), np.arange(len(text)))
    (after,) = plain_scores(engine, [text])
    assert torch.equal(before, after)


def test_a_model_of_images_and_text_is_loaded_and_adapted_as_a_language_model(
    tmp_path: Path, byte_level_tokenizer: transformers.PreTrainedTokenizerFast
) -> None:
    tiny_family("qwen2_5_vl").save_pretrained(tmp_path)
    byte_level_tokenizer.save_pretrained(tmp_path)
    engine = load_model(ModelSettings(name=str(tmp_path), device="cpu", dtype="float32")).tree
    assert isinstance(engine, TreeModel)
    add_adapter(engine.model, AdapterSettings(lora_dropout=0.0), seed=0)
    adapted = {name for name, p in engine.model.named_parameters() if p.requires_grad}
    assert adapted
    assert not any("visual" in name for name in adapted)
    assert idle_adapters(engine) == []


def test_the_page_of_models_names_the_types_of_the_version_that_it_was_made_with() -> None:
    page = PAGE.read_text(encoding="utf-8")
    (version,) = re.findall(r"in transformers ([\d.]+\d) ", page)
    if version != transformers.__version__:
        pytest.skip(f"docs/models.md is about transformers {version}")
    named = set(re.findall(r"^\| `([^`]+)`", page, flags=re.MULTILINE))
    untried = set(re.findall(r"`([^`]+)`", page.partition("Not tried")[2].partition(".\n")[0]))
    assert set(causal_types()) <= named
    assert named | untried == {*causal_types(), *multimodal_types()}
