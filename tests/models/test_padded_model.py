"""Padded batches give what the tree gives, on models that no tree serves and on others."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import tiny
from taskfit.errors import ModelError, SettingsError
from taskfit.models.adapters import add_adapter, enable_gradient_checkpointing, trainable_parameters
from taskfit.models.causal_model import CausalModel
from taskfit.models.engine import causal_engine
from taskfit.models.load import load_model
from taskfit.models.lora_targets import target_modules
from taskfit.models.padded_model import PaddedModel
from taskfit.models.quantize import four_bit_layers
from taskfit.models.tree_model import TreeModel
from taskfit.settings import AdapterSettings, ModelSettings
from taskfit.tree import IntArray, TokenTree
from tiny_hybrids import FORKING
from tiny_states import gradients, states_of

VOCABULARY = 61
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "pad_token_id": 0}
ATTENTION = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1}
# Of each family its configuration, and whether it goes on from its states by several tokens.
FAMILIES: dict[str, tuple[str, dict[str, Any], bool]] = {
    **{
        name: (*FORKING[name], True)
        for name in ("mamba2", "qwen3_next", "falcon_h1", "bamba", "lfm2")
    },
    "mamba": ("MambaConfig", {**SIZES, "num_hidden_layers": 2, "state_size": 8}, False),
    "jamba": (
        "JambaConfig",
        {
            **ATTENTION,
            **EXPERTS,
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        False,
    ),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {
            **ATTENTION,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "attention_window_size": 8,
            "lru_width": 32,
        },
        False,
    ),
    "rwkv": (
        "RwkvConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "attention_hidden_size": 32,
            "intermediate_size": 64,
            "rescale_every": 1,
        },
        False,
    ),
    "bloom": (
        "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        True,
    ),
    "mpt": (
        "MptConfig",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
        True,
    ),
}
generator = np.random.default_rng(0)
STEM, MIDDLE = (generator.integers(3, VOCABULARY, n) for n in (6, 3))
# Over two stems, with shared middles, a repeat and a prefix of another.
ROWS = [
    np.concatenate(parts)
    for parts in (
        (STEM, generator.integers(3, VOCABULARY, 5)),
        (STEM, MIDDLE, generator.integers(3, VOCABULARY, 4)),
        (STEM, MIDDLE, generator.integers(3, VOCABULARY, 2)),
        (generator.integers(3, VOCABULARY, 7),),
    )
]
ROWS += [STEM, ROWS[0]]


def family(name: str, **sizes: int) -> PreTrainedModel:
    """A random model of a few layers in float32."""
    config_class, own, _ = FAMILIES[name]
    config = getattr(transformers, config_class)(**{**own, **sizes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def padded(model: PreTrainedModel) -> PaddedModel:
    """Padded batches, of families too that the tree serves."""
    return PaddedModel(model, refusal="none")


def plain_hidden(model: CausalModel, row: IntArray) -> Tensor:
    ids = torch.from_numpy(row)[None]
    states: Tensor = model.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    return states[0]


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    scale = max(float(g.abs().max()) for g in theirs.values())
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=2e-5 * scale, msg=name)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "opt"])
def test_padded_batches_give_the_tree_s_states_and_gradients(architecture: str) -> None:
    found = []
    for padded in (False, True):
        model = tiny.tiny_model(architecture, VOCABULARY)
        engine = PaddedModel(model, refusal="none") if padded else TreeModel(model)
        states = states_of(engine, ROWS)[1]
        weights = torch.linspace(-1, 1, states.numel()).view_as(states)
        found.append((states.detach(), gradients(model, lambda: (states * weights).sum())[1]))  # noqa: B023
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
    assert_same_gradients(found[1][1], found[0][1])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sequence_says_the_same_alone_and_in_company(name: str) -> None:
    model = padded(family(name))
    assert isinstance(model, PaddedModel)
    assert not model.shares_prefixes
    assert model.refusal
    with torch.no_grad():
        tree, states = states_of(model, ROWS)
        for row, path in zip(ROWS, tree.paths, strict=True):
            torch.testing.assert_close(states[path], plain_hidden(model, row), rtol=1e-4, atol=1e-5)
            ids = torch.from_numpy(row)[None]
            scores = model.model(ids, use_cache=False).logits[0, -1]
            torch.testing.assert_close(
                model.logits(states[path[-1:]])[0], scores.float(), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_the_same_however_a_batch_is_cut(name: str) -> None:
    model = padded(family(name))

    def loss(rows: list[IntArray]) -> Tensor:
        tree = TokenTree.build(rows)
        ends = np.array([path[-1] for path in tree.paths])
        return model.logits(model.hidden(tree, ends)).logsumexp(dim=-1).sum()

    together = gradients(model.model, lambda: loss(ROWS))
    alone = gradients(model.model, lambda: torch.stack([loss([row]) for row in ROWS]).sum())
    torch.testing.assert_close(together[0], alone[0], rtol=1e-5, atol=1e-5)
    assert_same_gradients(together[1], alone[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_what_continues_a_prefix_says_what_the_whole_says(name: str) -> None:
    model = padded(family(name))
    assert isinstance(model, PaddedModel)
    assert model.continues == FAMILIES[name][2]
    tails = [row[6:] for row in ROWS[:3]]
    with torch.no_grad():
        whole, expected = states_of(model, ROWS[:3])
        prefix = model.encode_prefix(np.concatenate((STEM, [9, 9]))).cropped(6)
        before = model.num_tokens_run
        tree = TokenTree.build(tails)
        for _ in range(2):  # states are not changed by who goes on from them
            states = model.hidden(tree, np.arange(len(tree)), prefix=prefix)
            for path, long in zip(tree.paths, whole.paths, strict=True):
                torch.testing.assert_close(states[path], expected[long][6:], rtol=1e-4, atol=1e-5)
        rectangle = len(tails) * max(map(len, tails))
        whole_rectangle = len(tails) * max(map(len, ROWS[:3]))
        run = model.num_tokens_run - before
        assert run == (6 + 2 * rectangle if model.continues else 2 * whole_rectangle)


@pytest.mark.parametrize("name", FAMILIES)
def test_written_on_token_by_token_is_the_whole(name: str) -> None:
    model = padded(family(name))
    row = ROWS[1]
    expected = plain_hidden(model, row)
    hidden, prefix = model.extend(row[:4])
    first = prefix
    for start, stop in ((4, 5), (5, 6), (6, len(row))):
        hidden, prefix = model.extend(row[start:stop], prefix=prefix)
        torch.testing.assert_close(hidden[0], expected[stop - 1], rtol=1e-4, atol=1e-5)
    assert prefix.length == len(row)
    # A prefix is not used up by who goes on from it.
    hidden, _ = model.extend(row[4:6], prefix=first)
    torch.testing.assert_close(hidden[0], expected[5], rtol=1e-4, atol=1e-5)


def adapted(name: str, **settings: object) -> CausalModel:
    """A family with adapters that are away from zero."""
    model = family(name).requires_grad_(False)
    engine = padded(model)
    add_adapter(model, AdapterSettings.model_validate({"lora_dropout": 0.0, **settings}), seed=0)
    disturb(model)
    return engine


def disturb(model: PreTrainedModel) -> None:
    """Give adapters weights that change the output and have gradients everywhere."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)


def end_loss(model: CausalModel, rows: list[IntArray]) -> Tensor:
    tree = TokenTree.build(rows)
    ends = np.array([path[-1] for path in tree.paths])
    return model.logits(model.hidden(tree, ends)).logsumexp(dim=-1).sum()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_every_adapter_has_a_gradient_checkpointed_or_not(name: str) -> None:
    model = adapted(name)
    model.model.train()
    loss = gradients(model.model, lambda: end_loss(model, ROWS))
    assert loss[1].keys() == trainable_parameters(model.model).keys()
    experts = "experts"  # of a few tokens one may get none
    assert not [n for n, g in loss[1].items() if experts not in n and not g.abs().sum() > 0]
    if model.model.supports_gradient_checkpointing:
        enable_gradient_checkpointing(model.model)
        again = gradients(model.model, lambda: end_loss(model, ROWS))
        torch.testing.assert_close(again[0], loss[0])
        assert_same_gradients(again[1], loss[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_cut_kept_and_whole_give_the_same_loss_and_gradients(name: str, tmp_path: Path) -> None:
    model = adapted(name, layers=1)
    whole = gradients(model.model, lambda: end_loss(model, ROWS))
    model.freeze_below(model.num_layers - 1)
    assert model.first_trained == model.num_layers - 1
    cut = gradients(model.model, lambda: end_loss(model, ROWS))
    model.keep_states(memory_bytes=10**6, folder=tmp_path)
    for row in ROWS:  # other trees than that of the step
        model.keep_tree(TokenTree.build([row]))
    # If a lower layer ran again, its broken weights would show.
    with torch.no_grad():
        layer = model.model.get_decoder().get_submodule(first_layer(model.model))
        for parameter in layer.parameters():
            parameter.mul_(float("nan"))
    kept = gradients(model.model, lambda: end_loss(model, ROWS))
    for loss, found in (cut, kept):
        torch.testing.assert_close(loss, whole[0], rtol=1e-5, atol=1e-5)
        assert_same_gradients(found, whole[1])


def first_layer(model: PreTrainedModel) -> str:
    """Return the path of the first layer in the decoder."""
    return next(n for n, _ in model.get_decoder().named_modules() if n.endswith(".0"))


def test_states_behind_a_prefix_are_found_by_all_their_tokens(tmp_path: Path) -> None:
    for name in ("mamba", "bloom"):  # one runs the prefix again, one goes on from its states
        model = adapted(name, layers=1)
        tree = TokenTree.build([row[6:] for row in ROWS[:3]])
        nodes = np.arange(len(tree))
        with torch.no_grad():
            expected = model.hidden(tree, nodes, prefix=model.encode_prefix(STEM))
            model.freeze_below(1)
            prefix = model.encode_prefix(STEM)
            model.keep_states(memory_bytes=10**6, folder=tmp_path)
            model.keep_tree(tree, prefix=prefix)
            torch.testing.assert_close(model.hidden(tree, nodes, prefix=prefix), expected)


def test_layers_that_share_trained_weights_with_lower_ones_are_not_cut() -> None:
    model = adapted("bloom", layers=1)
    shared = model.model.transformer.h
    shared[0].mlp = shared[1].mlp
    model.freeze_below(1)
    assert model.first_trained == 0


def test_a_model_that_cannot_be_cut_runs_whole() -> None:
    model = adapted("bloom", layers=1)
    lower, upper = model.model.transformer.h

    def strict(*_: object) -> None:
        if "forward" in vars(lower):  # it hands on what was kept
            raise ValueError("too many values to unpack")

    expected = end_loss(model, ROWS)
    with upper.register_forward_pre_hook(strict):
        model.freeze_below(1)
        assert model.first_trained == 0
        torch.testing.assert_close(end_loss(model, ROWS), expected)


def test_in_16_bits_a_state_that_is_ignored_is_noticed() -> None:
    for name in ("mamba", "mamba2", "jamba", "lfm2", "bloom"):
        model = padded(family(name).to(torch.bfloat16))
        assert isinstance(model, PaddedModel)
        assert model.continues == FAMILIES[name][2]


def test_weights_that_a_model_reads_itself_take_no_adapter() -> None:
    model = family("mamba")
    assert target_modules(model, "all") == ["mixer.in_proj", "mixer.x_proj"]
    with pytest.raises(SettingsError, match=r"names dt_proj; .*dt_proj takes no adapter"):
        target_modules(model, ["in_proj", "dt_proj"])
    with pytest.raises(SettingsError, match=r"adapter.targets=attention.*Use adapter.targets=all"):
        target_modules(model, "attention")


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed (pip install 'taskfit[qlora]')",
)
@pytest.mark.parametrize("name", ["mamba", "lfm2"])
def test_in_4_bits_weights_that_a_model_reads_itself_stay_and_the_rest_trains(
    name: str, tmp_path: Path, byte_level_tokenizer: PreTrainedTokenizerFast
) -> None:
    family(name, vocab_size=len(byte_level_tokenizer)).save_pretrained(tmp_path)
    byte_level_tokenizer.save_pretrained(tmp_path)
    settings = AdapterSettings(weights="qlora", lora_dropout=0.0)
    loaded = load_model(
        ModelSettings(name=str(tmp_path), dtype="float32", device="cpu"), quantization=settings
    )
    packed = {path.rsplit(".", 1)[-1] for path in four_bit_layers(loaded.tree.model)}
    assert "in_proj" in packed
    assert not packed & {"dt_proj", "lm_head"}
    add_adapter(loaded.tree.model, settings, seed=0)
    disturb(loaded.tree.model)
    found = gradients(loaded.tree.model, lambda: end_loss(loaded.tree, ROWS))[1]
    assert found.keys() == trainable_parameters(loaded.tree.model).keys()
    assert all(gradient.abs().sum() > 0 for gradient in found.values())


def test_predicting_leaves_all_weights_as_they_are() -> None:
    for name in FAMILIES:
        model = family(name)
        before = {key: weight.clone() for key, weight in model.named_parameters()}
        engine = causal_engine(model)
        with torch.no_grad():
            states_of(engine, ROWS)
        for key, weight in model.named_parameters():
            assert torch.equal(weight, before[key]), f"{name}: {key}"


def test_another_object_over_the_same_model_reads_it_in_the_same_way() -> None:
    for name in ("mamba", "bloom"):
        model = padded(family(name))
        assert isinstance(model, PaddedModel)
        other = model.over(model.model, adapter="")
        assert (other.continues, other.refusal) == (model.continues, model.refusal)
        with torch.no_grad():
            assert torch.equal(states_of(other, ROWS)[1], states_of(model, ROWS)[1])


def test_a_model_that_the_tree_does_not_reproduce_runs_padded() -> None:
    model = tiny.tiny_model("llama", VOCABULARY)
    attention = model.model.layers[0].self_attn
    plain = attention.forward

    # What the tree cannot know: queries grow with the length of the row.
    def grown(hidden_states: Tensor, **kwargs: Any) -> object:
        places = torch.arange(hidden_states.shape[1])[None, :, None]
        return plain(hidden_states + 0.1 * places, **kwargs)

    attention.forward = grown
    engine = causal_engine(model)
    assert isinstance(engine, PaddedModel)
    assert "scores that it does not reproduce" in (engine.refusal or "")
    with torch.no_grad():
        tree, states = states_of(engine, ROWS)
        torch.testing.assert_close(states[tree.paths[0]], plain_hidden(engine, ROWS[0]))


def test_a_model_that_reads_what_comes_later_is_refused_in_one_message() -> None:
    model = tiny.tiny_model("llama", VOCABULARY)
    attention = model.model.layers[0].self_attn
    plain = attention.forward

    def mixed(hidden_states: Tensor, **kwargs: Any) -> object:
        return plain(hidden_states + hidden_states.mean(dim=1, keepdim=True), **kwargs)

    attention.forward = mixed
    with pytest.raises(ModelError, match="what comes after a token changes its scores"):
        causal_engine(model)


def test_a_model_whose_code_takes_no_tree_runs_padded_and_one_that_fails_is_one_message() -> None:
    model = tiny.tiny_model("llama", VOCABULARY)
    plain = model.model.forward

    def picky(*, input_ids: Tensor, use_cache: bool, **others: object) -> object:
        if "tree_layout" in others:
            raise TypeError("unexpected argument tree_layout")
        return plain(input_ids=input_ids, use_cache=use_cache, **others)

    model.model.forward = picky
    engine = causal_engine(model)
    assert isinstance(engine, PaddedModel)
    assert engine.refusal == "code that takes no tree (unexpected argument tree_layout)"
    with torch.no_grad():
        tree, states = states_of(engine, ROWS)
        torch.testing.assert_close(states[tree.paths[0]], plain_hidden(engine, ROWS[0]))

    def broken(**_: object) -> object:
        raise IndexError("no such table")

    model.model.forward = broken
    with pytest.raises(ModelError, match=r"neither by .* nor .*: its code ends in 'no such table'"):
        causal_engine(model)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            transformers.BertConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=4,
                intermediate_size=64,
            ),
            "it is an encoder",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value.model_type,
)
def test_other_models_than_causal_ones_stay_refused(config: object, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        causal_engine(AutoModelForCausalLM.from_config(config))


def test_tokens_are_counted_with_their_padding_and_repeats_run_once() -> None:
    model = causal_engine(family("bloom"))
    before = model.num_tokens_run
    tree = TokenTree.build(ROWS)
    model.hidden(tree, np.array([0]))
    # Four distinct sequences; the stem is the start of others.
    assert model.num_tokens_run - before == 4 * max(map(len, ROWS))
    assert causal_engine(family("mamba")).max_length > 10**6
    assert causal_engine(family("mpt")).max_length == 128
