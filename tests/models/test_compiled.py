"""Compiled decoder layers: one compilation for all layers of a kind, values as without."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from taskfit.models.adapters import add_adapter
from taskfit.models.attention import KeyValueCache
from taskfit.models.tree_model import TreeModel
from taskfit.settings import AdapterSettings
from taskfit.tree import TokenTree

VOCABULARY = 61
NUM_LAYERS = 10
BLOCK_SIZE = 16

# The compiler looks at `.grad` of tensors that are no leaves.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """What is compiled meanwhile; the graphs run as they are, so that it takes no C++ compiler."""
    found: list[torch.fx.GraphModule] = []
    compile_function = torch.compile

    def counting(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        found.append(graph)
        return graph.forward

    def compile_counted(function: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]:
        return compile_function(function, dynamic=dynamic, backend=counting)

    monkeypatch.setattr(torch, "compile", compile_counted)
    monkeypatch.setitem(
        __import__("taskfit.models.tree_model", fromlist=["x"]).BLOCK_SIZE, "cpu", BLOCK_SIZE
    )
    return found


def deep_model(monkeypatch: pytest.MonkeyPatch, architecture: str = "llama") -> TreeModel:
    config_class, settings = tiny.ARCHITECTURES[architecture]
    deep = {**settings, "num_hidden_layers": NUM_LAYERS}
    monkeypatch.setitem(tiny.ARCHITECTURES, architecture, (config_class, deep))
    return TreeModel(tiny.tiny_model(architecture, VOCABULARY))


def a_tree(num_rows: int, length: int) -> TokenTree:
    """Rows over a stem; of 16 tokens and less in all it is one block, else several."""
    generator = np.random.default_rng([num_rows, length])
    stem = generator.integers(3, VOCABULARY, 3)
    rows = [
        np.concatenate((stem, generator.integers(3, VOCABULARY, length + i % 2)))
        for i in range(num_rows)
    ]
    return TokenTree.build(rows)


TREES = {
    "one block": [a_tree(2, 3), a_tree(1, 9)],
    "several": [a_tree(4, 7), a_tree(3, 30)],
}


def passes(
    trees: TreeModel, tree: TokenTree, prefix: KeyValueCache | None, *, train: bool
) -> list[torch.Tensor]:
    """Return the states at all nodes, in training with the gradient of all that is trained."""
    trees.model.train(train)
    trees.model.zero_grad()
    with torch.set_grad_enabled(train):
        states = trees.hidden(tree, np.arange(len(tree)), prefix=prefix)
    if not train:
        return [states]
    states.square().sum().backward()
    gradients = [p.grad.clone() for p in trees.model.parameters() if p.grad is not None]
    return [states.detach(), *gradients]


@pytest.mark.parametrize(
    ("kind", "train"), [("one block", True), ("several", True), ("several", False)]
)
def test_all_layers_and_lengths_of_a_kind_of_pass_are_one_compilation(
    kind: str, train: bool, graphs: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, compiled = (deep_model(monkeypatch) for _ in range(2))
    ids = np.random.default_rng(1).integers(3, VOCABULARY, 11)
    prefixes = [plain.encode_prefix(ids[:length]) for length in (5, 8, 11)]
    for one in (plain, compiled):
        add_adapter(
            one.model, AdapterSettings(layers="all", targets=["q_proj"], lora_dropout=0), seed=0
        )
    compiled.compile_layers()
    for with_prefix in (False, True):
        graphs.clear()
        for place, tree in enumerate(TREES[kind]):
            prefix = prefixes[place % 3] if with_prefix else None
            expected = passes(plain, tree, prefix, train=train)
            found = passes(compiled, tree, prefix, train=train)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert len(graphs) == 1


def test_layers_with_a_window_are_a_kind_of_their_own(
    graphs: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, compiled = (deep_model(monkeypatch, "gemma3") for _ in range(2))
    compiled.compile_layers()
    for tree in TREES["several"]:
        expected = passes(plain, tree, None, train=False)
        found = passes(compiled, tree, None, train=False)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert len(graphs) == 2


def test_a_pass_that_records_a_prefix_is_not_compiled(
    graphs: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = deep_model(monkeypatch)
    ids = np.arange(3, 12)
    expected = trees.encode_prefix(ids)
    trees.compile_layers()
    found = trees.encode_prefix(ids)
    assert not graphs
    assert found.keys.keys() == expected.keys.keys()
    torch.testing.assert_close([*found.keys.values()], [*expected.keys.values()])


def test_layers_below_training_run_as_they_are(
    graphs: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, cut = (deep_model(monkeypatch) for _ in range(2))
    for one in (plain, cut):
        add_adapter(
            one.model, AdapterSettings(layers="half", targets=["q_proj"], lora_dropout=0), seed=0
        )
    cut.freeze_below(NUM_LAYERS // 2)
    cut.compile_layers()
    for tree in TREES["several"]:
        expected = passes(plain, tree, None, train=True)
        torch.testing.assert_close(
            passes(cut, tree, None, train=True), expected, rtol=1e-4, atol=1e-4
        )
    assert len(graphs) == 1
