"""The tree equals plain forward passes of the same model, in values and gradients."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BloomConfig, MambaConfig, MiniMaxConfig, PreTrainedModel

import tiny
from taskfit.errors import ModelError
from taskfit.models.attention import tree_attention
from taskfit.models.tree_model import TreeModel
from taskfit.tree import TokenTree

VOCABULARY = 61


def random_sequences(seed: int = 0) -> list[np.ndarray]:
    """Six sequences over two stems, with shared middles, a repeat and a prefix of another."""
    generator = np.random.default_rng(seed)

    def draw(n: int) -> np.ndarray:
        return generator.integers(3, VOCABULARY, n)

    stem, middle = draw(6), draw(3)
    rows = [np.concatenate(parts) for parts in ((stem, draw(5)), (stem, middle, draw(4)))]
    rows += [np.concatenate((stem, middle, draw(2))), stem, rows[0], draw(7)]
    return rows


def plain_hidden(model: PreTrainedModel, row: np.ndarray) -> torch.Tensor:
    ids = torch.from_numpy(row)[None]
    return model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_scores_at_every_node_equal_plain_passes(architecture: str) -> None:
    model = tiny.tiny_model(architecture, VOCABULARY)
    trees = TreeModel(model)
    rows = random_sequences()
    tree = TokenTree.build(rows)
    with torch.no_grad():
        ours = trees.logits(trees.hidden(tree, np.arange(len(tree))))
        with trees.plain_attention() as plain:
            for row, path in zip(rows, tree.paths, strict=True):
                theirs = plain(torch.from_numpy(row)[None]).logits[0].float()
                torch.testing.assert_close(ours[path], theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_gradients_equal_those_of_a_padded_batch(architecture: str) -> None:
    model = tiny.tiny_model(architecture, VOCABULARY)
    trees = TreeModel(model)
    rows = random_sequences()
    targets = torch.arange(len(rows)) + 5

    def gradients(scores: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        torch.nn.functional.cross_entropy(scores.float(), targets, reduction="sum").backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    tree = TokenTree.build(rows)
    leaves = np.array([path[-1] for path in tree.paths])
    ours = gradients(trees.logits(trees.hidden(tree, leaves)))
    with trees.plain_attention() as plain:
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.from_numpy(row)
            mask[i, : len(row)] = 1
        logits = plain(input_ids=ids, attention_mask=mask).logits
        last = torch.tensor([len(row) - 1 for row in rows])
        theirs = gradients(logits[torch.arange(len(rows)), last])
    assert ours.keys() == theirs.keys()
    scale = max(float(g.abs().max()) for g in theirs.values())
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=2e-5 * scale, msg=name)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_cached_prefix_changes_nothing(architecture: str) -> None:
    trees = TreeModel(tiny.tiny_model(architecture, VOCABULARY))
    rows = [row for row in random_sequences() if len(row) > 6][:3]
    whole = TokenTree.build(rows)
    rest = TokenTree.build([row[5:] for row in rows])
    with torch.no_grad():
        expected = trees.hidden(whole, np.array([path[-1] for path in whole.paths]))
        prefix = trees.encode_prefix(np.concatenate((rows[0][:5], [9, 9]))).cropped(5)
        leaves = np.array([path[-1] for path in rest.paths])
        found = trees.hidden(rest, leaves, prefix=prefix)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@given(
    rows=st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=9), min_size=1, max_size=8),
    block_size=st.integers(1, 40),
)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_random_trees_cut_into_any_blocks_equal_plain_passes(
    rows: list[list[int]], block_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        __import__("taskfit.models.tree_model", fromlist=["x"]).BLOCK_SIZE, "cpu", block_size
    )
    trees = TreeModel(tiny.tiny_model("gemma2", VOCABULARY), verify=False)
    tree = TokenTree.build(rows)
    with torch.no_grad():
        ours = trees.hidden(tree, np.arange(len(tree)))
        with trees.plain_attention() as plain:
            for row, path in zip(rows, tree.paths, strict=True):
                theirs = plain_hidden(plain, np.array(row))
                torch.testing.assert_close(ours[path], theirs, rtol=1e-4, atol=1e-4)


def test_token_log_probs_are_the_models_log_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskfit.models.causal_model.LOGIT_ROWS", 3)
    trees = TreeModel(tiny.tiny_model("gemma2", VOCABULARY))
    hidden = torch.randn(8, 32, requires_grad=True)
    # A row may have several targets, and the same one twice.
    rows, targets = torch.tensor([0, 0, 3, 7, 2, 7]), torch.tensor([4, 5, 6, 7, 8, 7])
    ours = trees.token_log_probs(hidden, rows, targets)
    (ours_gradient,) = torch.autograd.grad(ours.sum(), hidden)
    theirs = torch.log_softmax(trees.logits(hidden), dim=-1)[rows, targets]
    (their_gradient,) = torch.autograd.grad(theirs.sum(), hidden)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours_gradient, their_gradient)


@pytest.mark.parametrize("rows_at_once", [3, 128])
def test_no_log_probability_is_above_zero_in_bfloat16(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskfit.models.causal_model.LOGIT_ROWS", rows_at_once)
    trees = TreeModel(tiny.tiny_model("llama", VOCABULARY).bfloat16())
    rows = torch.arange(40)
    # States so large that nearly all probability is on one token, and scores are rounded by a lot.
    hidden = (torch.randn(40, 32, generator=torch.Generator().manual_seed(0)) * 400).bfloat16()
    hidden.requires_grad_()
    targets = trees.logits(hidden).argmax(dim=-1)
    found = trees.token_log_probs(hidden, rows, targets)
    assert found.max() <= 0
    assert found.min() > -3
    rounded = trees.token_scores(hidden, rows, targets) - trees.logits(hidden).logsumexp(dim=-1)
    assert rounded.max() > 0  # what the case is about
    found.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


# The compiler looks at `.grad` of tensors that are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_layers_give_the_same_scores_and_gradients() -> None:
    rows = random_sequences()
    tree = TokenTree.build(rows)
    results = []
    for compiled in (False, True):
        model = tiny.tiny_model("llama", VOCABULARY)
        trees = TreeModel(model)
        if compiled:
            trees.compile_layers()
        hidden = trees.hidden(tree, np.arange(len(tree)))
        hidden.square().sum().backward()
        results.append((hidden.detach(), model.get_input_embeddings().weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "vocab_size": VOCABULARY}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BertConfig(**SMALL, num_attention_heads=4, intermediate_size=64), "is an encoder"),
        (BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4), "ALiBi"),
        (MambaConfig(**SMALL), "recurrent or convolutional state"),
        (
            MiniMaxConfig(
                **SMALL,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=64,
                num_local_experts=2,
                num_experts_per_tok=1,
            ),
            "linear_attention",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value.model_type,
)
def test_models_that_a_tree_cannot_serve_are_refused_with_the_reason(
    config: object, reason: str
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=reason) as caught:
        TreeModel(model)
    assert type(model).__name__ in str(caught.value)


def test_a_model_that_does_something_unknown_to_its_scores_is_noticed() -> None:
    model = tiny.tiny_model("llama", VOCABULARY)
    plain_forward = model.forward

    def doubled(*args: object, **kwargs: object) -> object:
        output = plain_forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    model.forward = doubled
    with pytest.raises(ModelError, match=r"LlamaForCausalLM.*scores that it does not reproduce"):
        TreeModel(model)


def test_the_tree_attention_without_a_tree_is_our_own_mistake() -> None:
    with pytest.raises(RuntimeError, match="without a tree"):
        tree_attention(torch.nn.Module(), *[torch.zeros(1, 1, 1, 1)] * 3, None)


def test_a_prefix_is_read_without_dropout_in_the_middle_of_training() -> None:
    model = TreeModel(tiny.tiny_model("gpt2", 61))
    ids = np.array([5, 6, 7])
    expected = model.encode_prefix(ids)
    model.model.train()
    found = model.encode_prefix(ids)
    assert model.model.training
    for layer, keys in expected.keys.items():
        torch.testing.assert_close(found.keys[layer], keys)
