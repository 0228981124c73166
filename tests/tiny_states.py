"""States and gradients of models over trees, for laws that hold of every engine."""

from collections.abc import Callable

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from taskfit.models.causal_model import CausalModel
from taskfit.tree import TokenTree


def states_of(model: CausalModel, rows: list[np.ndarray]) -> tuple[TokenTree, Tensor]:
    tree = TokenTree.build(rows)
    return tree, model.hidden(tree, np.arange(len(tree)))


def gradients(
    model: PreTrainedModel, loss: Callable[[], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    value = loss()
    value.backward()  # type: ignore[no-untyped-call]
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return value.detach(), found
