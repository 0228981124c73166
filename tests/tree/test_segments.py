"""A recurrence over the segments of a tree is that over each of its paths."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from taskfit.tree import IntArray, Segments, TokenTree, cut_at_branches

MODULUS = 1_000_003


def step(states: IntArray, ids: IntArray) -> IntArray:
    """A recurrence in which every token before counts, and their order."""
    return (states * 31 + ids + 1) % MODULUS


def over_segments(tree: TokenTree, segments: Segments, before: int) -> tuple[IntArray, IntArray]:
    """Return the value at each node, and the states behind the last step."""
    behind: list[IntArray] = []
    cells = []
    for one in segments.steps:
        known = [behind[i] if i >= 0 else np.array([before]) for i in one.sources]
        zeros = np.zeros(len(one.nodes), np.int64)
        states = np.concatenate(known)[one.rows] if known else zeros
        columns = []
        for ids in tree.ids[one.nodes].T:
            states = step(states, ids)
            columns.append(states)
        behind.append(states)
        cells.append(np.stack(columns, axis=1).ravel())
    return np.concatenate(cells)[segments.cells], behind[-1]


@st.composite
def trees(draw: st.DrawFn) -> TokenTree:
    """Trees that branch early and late, with long runs and short ones."""
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    rows: list[IntArray] = []
    for _ in range(draw(st.integers(1, 25))):
        start = rows[generator.integers(len(rows))] if rows and draw(st.booleans()) else []
        kept = start[: generator.integers(0, len(start) + 1)]
        added = generator.integers(0, draw(st.sampled_from([2, 50])), draw(st.integers(1, 90)))
        rows.append(np.concatenate((kept, added)).astype(np.int64))
    return TokenTree.build(rows)


@settings(max_examples=60, deadline=None)
@given(trees(), st.booleans())
def test_values_at_nodes_are_those_of_their_paths(tree: TokenTree, goes_on: bool) -> None:
    before = 77 if goes_on else 0
    found, _ = over_segments(tree, cut_at_branches(tree, goes_on=goes_on), before)
    for path in tree.paths:
        state = np.array(before)
        for node in path:
            state = step(state, tree.ids[node])
            assert found[node] == state


@settings(max_examples=40, deadline=None)
@given(trees(), st.booleans())
def test_rows_that_others_go_on_from_are_not_padded_nor_single_tokens(
    tree: TokenTree, goes_on: bool
) -> None:
    for one in cut_at_branches(tree, goes_on=goes_on).steps:
        assert one.nodes.shape[1] >= 2
        if one.keeps:
            assert all(len(set(row)) == len(row) for row in one.nodes.tolist())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 200), st.booleans())
def test_the_state_behind_a_path_is_that_of_its_last_token(length: int, goes_on: bool) -> None:
    tree = TokenTree.build([np.arange(length)])
    segments = cut_at_branches(tree, goes_on=goes_on, state_wanted=True)
    found, behind = over_segments(tree, segments, 77 if goes_on else 0)
    assert behind.tolist() == [found[-1]]


def test_what_is_shared_runs_once_where_that_saves_more_than_a_call() -> None:
    generator = np.random.default_rng(0)
    text, *labels = (generator.integers(9, 99, n) for n in (200, *[3] * 77))
    rows = [np.concatenate((text, [i], label)) for i, label in enumerate(labels)]
    segments = cut_at_branches(TokenTree.build(rows), goes_on=False)
    assert [one.nodes.shape for one in segments.steps] == [(1, 200), (77, 4)]
    short = cut_at_branches(TokenTree.build([[1, 2, 3], [1, 2, 4]]), goes_on=False)
    assert [one.nodes.shape for one in short.steps] == [(2, 3)]


def test_texts_of_many_lengths_run_in_few_calls() -> None:
    generator = np.random.default_rng(0)
    texts = [generator.integers(9, 99, n) for n in range(40, 140, 2)]
    rows = [np.concatenate((text, [i])) for text in texts for i in (1, 2)]
    tree = TokenTree.build(rows)
    segments = cut_at_branches(tree, goes_on=False)
    assert len(segments.steps) < 20
    assert sum(one.nodes.size for one in segments.steps) < 1.1 * len(tree)
