"""Cut a tree into runs of tokens that a recurrent layer reads in batches, each from a known state.

A recurrent layer reads a row of tokens in order, so a tree cannot stand in one row. It is cut where
it branches: what stands before a branch point runs once, and every branch goes on from the state
there. Rows of one batch that others go on from have one length, since padding would change their
state; rows at the ends of paths are padded on the right.

Legend: T tokens of a tree, B rows of a batch, L their length with padding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from taskfit.tree.build import IntArray, TokenTree

# A call of a recurrent layer costs about what so many tokens cost. What branches share of fewer
# runs again with each of them.
CALL_TOKENS = 32
# Rows of more lengths than these run in pieces of so many tokens, those of one length together.
PIECES = (64, 32, 16, 8, 4, 2)


@dataclass(frozen=True, slots=True)
class Step:
    """Rows of tokens that run at once.

    Attributes:
        nodes: The node of each cell; padding repeats the last one of its row, (B, L).
        sources: Of earlier steps those from whose states the rows go on; -1: what stands before the
            tree; empty: all rows begin from nothing.
        rows: Of each row its place in the states of these steps, one behind the other, (B,).
        keeps: Whether later steps, or whoever asked for the state behind the tree, go on from here.
    """

    nodes: IntArray
    sources: tuple[int, ...]
    rows: IntArray
    keeps: bool


@dataclass(frozen=True, slots=True)
class Segments:
    """A tree as steps of a recurrent layer.

    Attributes:
        steps: Each goes on from earlier ones only.
        cells: Where each node is read: its cell in those of all steps, row by row, (T,).
    """

    steps: Sequence[Step]
    cells: IntArray


@dataclass(slots=True)
class _Run:
    """Consecutive tokens of a path: `nodes` behind the state at the end of run `parent` or -1."""

    nodes: IntArray
    parent: int
    is_leaf: bool


def cut_at_branches(tree: TokenTree, *, goes_on: bool, state_wanted: bool = False) -> Segments:
    """Lay out a tree for recurrent layers.

    Args:
        tree: The tree, T >= 1.
        goes_on: Whether something stands before the tree, from whose state its roots go on.
        state_wanted: Keep the state behind the last token; the tree must be a single path.
    """
    runs = _runs(tree)
    if state_wanted:
        runs[-1].is_leaf = False
    levels: list[list[int]] = []
    level_of: list[int] = []
    for place, run in enumerate(runs):
        level_of.append(0 if run.parent < 0 else level_of[run.parent] + 1)
        if level_of[-1] == len(levels):
            levels.append([])
        levels[level_of[-1]].append(place)
    ends: dict[int, tuple[int, int]] = {-1: (-1, 0)}  # by run: step and row of the state behind
    steps: list[Step] = []
    for level in levels:
        for rows, keeps in _batches(runs, level):
            before = [ends[i] if i in ends else ends[runs[i].parent] for i, _ in rows]
            for has_state in (False, True):
                chosen = [
                    k for k, one in enumerate(before) if (goes_on or one[0] >= 0) == has_state
                ]
                if chosen:
                    nodes, states = [rows[k][1] for k in chosen], [before[k] for k in chosen]
                    ends.update({rows[k][0]: (len(steps), row) for row, k in enumerate(chosen)})
                    steps.append(_step(nodes, states if has_state else None, steps, keeps=keeps))
    return Segments(steps, _cells(steps, len(tree)))


def _runs(tree: TokenTree) -> list[_Run]:
    """Cut at branch points, parents first; short runs stand in each of those behind them instead.

    A run that others go on from has at least two tokens: of single ones layers think that they
    write a text token by token.
    """
    starts, parents = _branches(tree)
    forks = np.unique(parents[parents >= 0])
    cuts = np.union1d(starts, forks + 1)
    cuts = cuts[cuts < len(tree)]
    stops = np.append(cuts[1:], len(tree))
    branch_parent = dict(zip(starts.tolist(), parents.tolist(), strict=True))
    before = [branch_parent.get(first, first - 1) for first in cuts.tolist()]
    children = np.zeros(len(tree) + 1, np.int64)  # by the last node of a segment; roots last
    np.add.at(children, before, 1)
    runs: list[_Run] = []
    behind: dict[int, tuple[IntArray, int]] = {-1: (cuts[:0], -1)}  # by node: tokens to repeat, run
    for first, stop, node in zip(cuts.tolist(), stops.tolist(), before, strict=True):
        repeated, parent = behind[node]
        nodes = np.concatenate((repeated, np.arange(first, stop)))
        count = int(children[stop - 1])
        if count and (len(nodes) < 2 or len(nodes) * (count - 1) < CALL_TOKENS):
            behind[stop - 1] = (nodes, parent)
            continue
        behind[stop - 1] = (nodes[:0], len(runs))
        runs.append(_Run(nodes, parent, is_leaf=count == 0))
    return runs


def _branches(tree: TokenTree) -> tuple[IntArray, IntArray]:
    """Return the nodes that do not follow their parent in the tree's order, and their parents.

    Returns:
        First nodes of branches, and the node that each hangs on (-1: none).
    """
    depths = tree.positions
    starts = np.flatnonzero(np.concatenate(([True], depths[1:] != depths[:-1] + 1)))
    parents = []
    path: list[tuple[int, int]] = []  # first node and its depth, of the branches above
    for start, depth in zip(starts.tolist(), depths[starts].tolist(), strict=True):
        while path and path[-1][1] >= depth:
            path.pop()
        parents.append(path[-1][0] + depth - 1 - path[-1][1] if path else -1)
        path.append((start, depth))
    return starts, np.array(parents, np.int64)


def _batches(
    runs: Sequence[_Run], level: Sequence[int]
) -> Iterator[tuple[list[tuple[int, IntArray]], bool]]:
    """Yield rows that go together, as run and nodes, and whether the states behind are kept."""
    inner = [(i, runs[i].nodes) for i in level if not runs[i].is_leaf]
    distinct = sorted({len(nodes) for _, nodes in inner})
    if len(distinct) <= len(PIECES):
        for length in distinct:
            yield [row for row in inner if len(row[1]) == length], True
    else:
        yield from _pieces(inner)
    leaves = [(i, runs[i].nodes) for i in level if runs[i].is_leaf]
    batch: list[tuple[int, IntArray]] = []
    used = 0
    for row in sorted(leaves, key=lambda row: len(row[1]), reverse=True):
        used += len(row[1])
        # Padding may cost a call, or a quarter of the tokens.
        padding = len(batch[0][1]) * (len(batch) + 1) - used if batch else 0
        if padding > max(CALL_TOKENS, used // 4):
            yield batch, False
            batch, used = [], len(row[1])
        batch.append(row)
    if batch:
        yield batch, False


def _pieces(
    rows: Sequence[tuple[int, IntArray]],
) -> Iterator[tuple[list[tuple[int, IntArray]], bool]]:
    """Yield rows of many lengths piece by piece; no piece has one token."""
    left = dict(rows)
    for size in PIECES:
        for length in (size, size + 1):
            # A token more is taken where it would be left alone.
            while fits := [
                i
                for i, nodes in left.items()
                if (
                    len(nodes) == length
                    if length > size
                    else len(nodes) == size or len(nodes) > size + 1
                )
            ]:
                yield [(i, left[i][:length]) for i in fits], True
                left.update({i: left[i][length:] for i in fits})


def _step(
    rows: Sequence[IntArray],
    before: Sequence[tuple[int, int]] | None,
    steps: Sequence[Step],
    *,
    keeps: bool,
) -> Step:
    """Pad rows; `before` are the step and the row of the state that each goes on from."""
    # Of a single token layers think that they write a text, and change states in place.
    width = max(1 if keeps else 2, *map(len, rows))
    nodes = np.stack([np.pad(row, (0, width - len(row)), mode="edge") for row in rows])
    if before is None:
        return Step(nodes, (), np.zeros(len(rows), np.int64), keeps)
    sources = tuple(sorted({step for step, _ in before}))
    sizes = [len(steps[step].nodes) if step >= 0 else 1 for step in sources]
    offsets = dict(zip(sources, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
    return Step(nodes, sources, np.array([offsets[i] + row for i, row in before]), keeps)


def _cells(steps: Sequence[Step], total: int) -> IntArray:
    """Return for each node a cell that holds it, not as padding of another length."""
    flat = np.concatenate([step.nodes.ravel() for step in steps])
    # Padding repeats the last token behind itself: the first cell of a node is never padding.
    cells = np.empty(total, np.int64)
    cells[flat[::-1]] = np.arange(len(flat))[::-1]
    return cells
