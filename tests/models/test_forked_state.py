"""Hybrids of attention and recurrences under the tree say what they say padded."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from taskfit.models.adapters import add_adapter, enable_gradient_checkpointing, trainable_parameters
from taskfit.models.engine import causal_engine
from taskfit.models.padded_model import PaddedModel
from taskfit.models.tree_model import TreeModel
from taskfit.settings import AdapterSettings
from taskfit.tree import TokenTree
from tiny_hybrids import FORKING, VOCABULARY, tiny_hybrid
from tiny_states import gradients, states_of

generator = np.random.default_rng(0)
STEM, LONG, *TAILS = (generator.integers(3, VOCABULARY, n) for n in (37, 41, 3, 1, 5, 2, 9))
# One state with three answers, a longer one on it with two, a text of its own, a repeat.
ROWS = [np.concatenate((STEM, tail)) for tail in TAILS[:3]]
ROWS += [np.concatenate((STEM, LONG, tail)) for tail in TAILS[2:4]] + [TAILS[4], ROWS[0]]
# Kinds of recurrences: gated delta rule, Mamba 2 beside attention, convolutions alone.
KINDS = ["qwen3_5_text", "falcon_h1", "lfm2"]


def assert_same(
    ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]
) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-4)
    assert ours[1].keys() == theirs[1].keys()
    scale = max(float(g.abs().max()) for g in theirs[1].values())
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=1e-3, atol=1e-4 * scale, msg=name)


def spread(states: Tensor) -> Tensor:
    """A loss that every state counts in."""
    return (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum()


@pytest.mark.parametrize("name", FORKING)
def test_forked_states_and_gradients_are_those_of_padded_rows(name: str) -> None:
    found = []
    for engine in (causal_engine(tiny_hybrid(name)), PaddedModel(tiny_hybrid(name), refusal="")):
        tree, states = states_of(engine, ROWS)
        found.append((states.detach(), gradients(engine.model, lambda: spread(states))[1]))  # noqa: B023
        if engine.shares_prefixes:
            assert isinstance(engine, TreeModel)
            engine.num_tokens_run = 0
            engine.hidden(tree, np.arange(3))
            assert engine.num_tokens_run == len(tree)
    assert_same(found[0], found[1])


@pytest.mark.parametrize("name", [*KINDS, "kimi_linear", "mamba2"])
def test_a_prefix_kept_cropped_or_written_token_by_token_is_as_if_run(name: str) -> None:
    model = causal_engine(tiny_hybrid(name))
    with torch.no_grad():
        whole, expected = states_of(model, ROWS[:3])
        tree = TokenTree.build([row[12:] for row in ROWS[:3]])
        start = ROWS[0][:12]
        written = None
        for token in start:
            hidden, written = model.extend(np.array([token]), prefix=written)
        torch.testing.assert_close(hidden[0], expected[11], rtol=1e-4, atol=1e-4)
        kept = model.encode_prefix(start)
        # Twice: states are not changed by who goes on from them.
        for prefix in (kept, model.encode_prefix(ROWS[0][:20]).cropped(12), written, kept):
            states = model.hidden(tree, np.arange(len(tree)), prefix=prefix)
            for path, long in zip(tree.paths, whole.paths, strict=True):
                torch.testing.assert_close(states[path], expected[long][12:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_a_sequence_says_the_same_alone_and_in_company(name: str) -> None:
    model = causal_engine(tiny_hybrid(name))
    with torch.no_grad():
        tree, together = states_of(model, ROWS)
        for row, path in zip(ROWS, tree.paths, strict=True):
            alone = states_of(model, [row])[1]
            torch.testing.assert_close(together[path], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_adapters_learn_the_same_checkpointed_cut_and_kept(name: str, tmp_path: Path) -> None:
    model = causal_engine(tiny_hybrid(name).requires_grad_(False))
    settings = AdapterSettings(lora_dropout=0.0, layers=1)
    add_adapter(model.model, settings, seed=0)
    with torch.no_grad():
        for parameter in trainable_parameters(model.model).values():
            parameter.add_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
    model.model.train()

    def loss() -> Tensor:
        return spread(states_of(model, ROWS)[1])

    whole = gradients(model.model, loss)
    assert all(gradient.abs().sum() > 0 for gradient in whole[1].values())
    model.freeze_below(model.num_layers - 1)
    assert_same(gradients(model.model, loss), whole)
    model.keep_states(memory_bytes=10**6, folder=tmp_path)
    for row in ROWS:
        model.keep_tree(TokenTree.build([row]))
    assert_same(gradients(model.model, loss), whole)
    enable_gradient_checkpointing(model.model)
    assert_same(gradients(model.model, loss), whole)


def test_a_copy_forks_its_own_states_and_the_model_generates_as_before() -> None:
    stock = tiny_hybrid("qwen3_next")
    ids = torch.from_numpy(STEM)[None]
    expected = stock.generate(ids, max_new_tokens=4, do_sample=False)
    model = causal_engine(stock)
    twin = model.over(copy.deepcopy(model.model))
    with torch.no_grad():
        before = states_of(twin, ROWS)[1]
        for parameter in model.model.parameters():
            parameter.mul_(0.5)
        torch.testing.assert_close(states_of(twin, ROWS)[1], before, rtol=0, atol=0)
        assert not torch.allclose(states_of(model, ROWS)[1], before)
        with twin.plain_attention() as plain:
            found = plain.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", KINDS)
def test_in_bfloat16_forked_scores_are_near_those_of_float32(name: str) -> None:
    scores = []
    for dtype in (torch.float32, torch.bfloat16):
        model = causal_engine(tiny_hybrid(name).to(dtype))
        assert model.shares_prefixes
        with torch.no_grad():
            scores.append(model.logits(states_of(model, ROWS)[1]))
    assert float((scores[0] - scores[1]).std() / scores[0].std()) < 0.05
