import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskfit.errors import DataError
from taskfit.tree import TokenTree, attention_blocks, plan_trees, unique_tokens
from taskfit.tree.aligned import GROUP, aligned_blocks

sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=9)


@given(sequences)
def test_every_path_spells_its_sequence_with_depths_as_positions(rows: list[list[int]]) -> None:
    tree = TokenTree.build(rows)
    for row, path in zip(rows, tree.paths, strict=True):
        assert tree.ids[path].tolist() == row
        assert tree.positions[path].tolist() == list(range(len(row)))


@given(sequences)
def test_every_distinct_prefix_stands_exactly_once(rows: list[list[int]]) -> None:
    tree = TokenTree.build(rows)
    prefixes = {tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)}
    assert len(tree) == len(prefixes) == unique_tokens([np.array(row) for row in rows])


@given(sequences)
def test_subtree_ends_say_who_is_an_ancestor_of_whom(rows: list[list[int]]) -> None:
    tree = TokenTree.build(rows)
    ancestors = {
        (int(k), int(q)) for path in tree.paths for i, q in enumerate(path) for k in path[: i + 1]
    }
    by_rule = {
        (k, q) for k in range(len(tree)) for q in range(len(tree)) if k <= q < tree.subtree_end[k]
    }
    assert by_rule == ancestors


@given(sequences, st.integers(1, 9))
def test_blocks_of_any_size_show_each_token_exactly_its_ancestors(
    rows: list[list[int]], block_size: int
) -> None:
    tree = TokenTree.build(rows)
    seen = set()
    for block in attention_blocks(tree, block_size):
        assert block.stop - block.start <= block_size
        keys = [*block.ancestors.tolist(), *range(block.start, block.stop)]
        for query, row in zip(range(block.start, block.stop), block.visible, strict=True):
            seen |= {(keys[i], query) for i in np.flatnonzero(row)}
    expected = {
        (k, q) for k in range(len(tree)) for q in range(len(tree)) if k <= q < tree.subtree_end[k]
    }
    assert seen == expected


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="none may be empty"):
        TokenTree.build([[1], []])


groups = st.lists(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=3),
    min_size=1,
    max_size=9,
)


@given(groups, st.integers(18, 60))
@settings(max_examples=200)
def test_a_plan_keeps_groups_whole_and_every_tree_within_the_budget(
    rows: list[list[list[int]]], budget: int
) -> None:
    arrays = [[np.array(row) for row in group] for group in rows]
    trees = plan_trees(arrays, budget, names=[f"row {i}" for i in range(len(rows))])
    assert sorted(i for tree in trees for i in tree) == list(range(len(rows)))
    for tree in trees:
        assert len(TokenTree.build([row for i in tree for row in arrays[i]])) <= budget


def test_sequences_that_share_a_prefix_are_planned_together() -> None:
    first, second = list(range(100, 130)), list(range(200, 230))
    rows = [[np.array((first if i % 2 else second) + [i])] for i in range(20)]
    trees = plan_trees(rows, 45, names=["x"] * 20)
    assert [sorted({i % 2 for i in tree}) for tree in trees] == [[1], [0]]


def test_a_sequence_over_the_budget_is_named() -> None:
    with pytest.raises(DataError, match=r"b\.csv:7 needs 30 unique tokens.*budget is 20"):
        plan_trees([[np.arange(5)], [np.arange(30)]], 20, names=["b.csv:6", "b.csv:7"])


@given(sequences, st.integers(1, 20))
def test_padding_adds_tokens_that_nobody_sees(rows: list[list[int]], multiple: int) -> None:
    tree = TokenTree.build(rows)
    padded = tree.padded(multiple)
    assert len(padded) % multiple == 0
    assert len(padded) - len(tree) < multiple
    assert padded.subtree_end[: len(tree)].tolist() == tree.subtree_end.tolist()
    for extra in range(len(tree), len(padded)):
        assert padded.ancestors(extra).tolist() == []
        assert padded.subtree_end[extra] == extra + 1


@given(sequences, st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_a_tree_behind_tokens_is_the_tree_of_the_whole_sequences(
    rows: list[list[int]], before: list[int]
) -> None:
    found = TokenTree.build(rows).behind(np.array(before))
    whole = TokenTree.build([before + row for row in rows])
    for name in ("ids", "positions", "subtree_end"):
        assert getattr(found, name).tolist() == getattr(whole, name).tolist()
    assert [p.tolist() for p in found.paths] == [p.tolist() for p in whole.paths]


long_rows = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40), min_size=1, max_size=6)


@given(sequences | long_rows, st.integers(0, 40), st.integers(0, 5), st.sampled_from([7, 64, 999]))
def test_aligned_keys_are_each_path_in_order_and_in_place(
    rows: list[list[int]], before: int, extra: int, block_size: int
) -> None:
    tree = TokenTree.build(rows)
    tail = before % GROUP
    total = len(tree) + extra
    found = aligned_blocks(tree, block_size, prefix_length=before, num_queries=total)
    assert [block.start for block in found] == [0, *(block.stop for block in found[:-1])]
    assert found[-1].stop == total
    for block in found:
        assert block.visible.any(axis=1).all(), "softmax over nothing"
        for query in range(block.start, min(block.stop, len(tree))):
            path = np.append(tree.ancestors(query), query)
            places = np.flatnonzero(block.visible[query - block.start])
            depths = before - tail + np.arange(tail + len(path))
            assert block.keys[places].tolist() == [*range(tail), *(tail + path)]
            assert (block.depths[places] == depths).all()
            assert (places % GROUP == depths % GROUP).all()
            # What is added up at once comes from one group of keys.
            groups = zip((depths // GROUP).tolist(), (places // GROUP).tolist(), strict=True)
            assert len(set(groups)) == len(set(depths // GROUP))
