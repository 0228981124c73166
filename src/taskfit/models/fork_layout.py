"""A tree's segments as tensors, and the states that recurrent layers keep between them.

Legend: T tokens of a tree, B rows of a step, L their length, C channels and K width of a
convolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskfit.models.transfer import on_device
from taskfit.tree import Segments


@dataclass(frozen=True, slots=True)
class State:
    """What a recurrent layer keeps of the tokens before, for each of B rows.

    Attributes:
        inputs: The last K inputs of its convolution, (B, C, K).
        recurrent: Its recurrent state, (B, ...), or None where it has none.
    """

    inputs: Tensor
    recurrent: Tensor | None

    @staticmethod
    def of_rows(states: Sequence["State"], rows: Tensor) -> "State | None":
        """Return rows of several states, counted through one behind the other, (B,)."""
        if not states:
            return None
        recurrent = [one.recurrent for one in states if one.recurrent is not None]
        return State(
            torch.cat([one.inputs for one in states]).index_select(0, rows),
            torch.cat(recurrent).index_select(0, rows) if recurrent else None,
        )


@dataclass(frozen=True, slots=True)
class ForkLayout:
    """A tree's segments on the model's device.

    Attributes:
        segments: The steps.
        nodes: Of each step the nodes of its cells, (B, L).
        rows: Of each step where its rows go on from, (B,).
        cells: Where each node is read, (T,).
    """

    segments: Segments
    nodes: Sequence[Tensor]
    rows: Sequence[Tensor]
    cells: Tensor


def fork_layout(segments: Segments, device: torch.device) -> ForkLayout:
    """Bring a tree's segments to a device."""
    return ForkLayout(
        segments,
        [on_device(step.nodes, device) for step in segments.steps],
        [on_device(step.rows, device) for step in segments.steps],
        on_device(segments.cells, device),
    )
