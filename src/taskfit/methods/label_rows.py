"""Rows of a classification head by label: from one set of labels to another.

Legend: K labels before, L labels now.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def fill_label_rows(
    parameter: Tensor, saved: Tensor, before: Sequence[str], now: Sequence[str]
) -> None:
    """Fill a head's weights or bias, (L, ...), with the rows of a saved one, (K, ...).

    Rows of labels that the saved one does not have become zero: undecided.

    Args:
        parameter: Filled in place.
        saved: Its counterpart.
        before: Labels of the saved rows, K.
        now: Labels of the rows, L.
    """
    places = {label: place for place, label in enumerate(before)}
    parameter.zero_()
    for row, label in enumerate(now):
        if label in places:
            parameter[row] = saved[places[label]].to(parameter)


@torch.no_grad()
def fill_encoder_head(
    model: nn.Module,
    saved: Mapping[str, Tensor],
    *,
    body: str,
    before: Sequence[str],
    now: Sequence[str],
) -> None:
    """Fill the head of transformers' classifier with that of one that has other labels.

    Args:
        model: With L labels; what is outside its body is filled.
        saved: Weights by name of the one with K labels.
        body: Prefix of the names that are not of the head.
        before: Labels of the saved one, K.
        now: Labels of the model, L.
    """
    head = [(n, p) for n, p in model.named_parameters() if not n.startswith(f"{body}.")]
    # Several layers may be as wide as there are labels; the last one makes the scores.
    wide = [name.rpartition(".")[0] for name, p in head if p.shape[0] == len(now)]
    for name, parameter in head:
        if name.rpartition(".")[0] == wide[-1]:
            fill_label_rows(parameter, saved[name], before, now)
        else:
            parameter.copy_(saved[name])
