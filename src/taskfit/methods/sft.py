"""Supervised fine-tuning on texts: the cross-entropy of chosen tokens, packed by the token tree.

Completion-only loss over the assistant's turns, or every token of a raw text. Rows that start
alike (a system prompt, an instruction) share these tokens; nothing else of one row is visible to
another.

Legend: N rows, R nodes that predict something, Y predicted tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskfit.methods.adapted import AdaptedModel
from taskfit.methods.method import MethodTraits
from taskfit.methods.objective import TreeObjective
from taskfit.methods.reading import nodes_to_read, run_in_trees
from taskfit.methods.targets import FloatArray
from taskfit.models.causal_model import LOGIT_ROWS, CausalModel
from taskfit.models.whole import require_finite
from taskfit.tasks.chat import EncodedText
from taskfit.tree import IntArray, TokenTree, unique_tokens

# Returns what every process of a run has.
Gather = Callable[[dict[str, float]], list[dict[str, float]]]
# Of each pair by its id: log-probability of the chosen and of the rejected answer.
Reference = Mapping[str, tuple[float, float]]


class Sft(MethodTraits, AdaptedModel):
    """Learns answers, or whole texts, as they are."""

    def objective(self, *, reference: Reference, gather: Gather) -> "SftLoss":
        """Return the loss; what the model said before training does not matter to it."""
        return SftLoss(self.tree)


class SftLoss(TreeObjective[EncodedText]):
    """Minus the log-likelihood of the learned tokens; a step counts tokens, not rows.

    Attributes:
        step: The step under way, counted from 1.
    """

    def __init__(self, model: CausalModel) -> None:
        """Bind the loss to a model."""
        self.model = model
        self.step = 0

    def start_step(self, step: int) -> None:
        """Count steps."""
        self.step = step + 1

    def sequences(self, item: EncodedText) -> list[IntArray]:
        """Return the row up to the last token that predicts something."""
        return [tokens_to_run(item)]

    def count(self, items: Sequence[EncodedText]) -> int:
        """Return the learned tokens of the rows."""
        return sum(item.num_learned for item in items)

    def loss_sum(self, items: Sequence[EncodedText]) -> Tensor:
        """Return the summed loss of the learned tokens of rows run as one tree (nats)."""
        log_probs, _ = learned_log_probs(self.model, items)
        return -log_probs.sum()


def tokens_to_run(item: EncodedText) -> IntArray:
    """Return a row's tokens up to the last that predicts something."""
    return item.ids[: int(np.flatnonzero(item.is_learned)[-1])]


def learned_log_probs(model: CausalModel, items: Sequence[EncodedText]) -> tuple[Tensor, IntArray]:
    """Return the log-probability of every learned token, with gradient where enabled.

    Args:
        model: The model.
        items: Rows with at least one learned token each; they run as one tree.

    Returns:
        log p(token | what stands before it), (Y,), and the index of each token's row.
    """
    tree = TokenTree.build([tokens_to_run(item) for item in items])
    learned = [np.flatnonzero(item.is_learned) for item in items]
    nodes, rows = nodes_to_read(tree, [places - 1 for places in learned])
    targets = np.concatenate([item.ids[p] for item, p in zip(items, learned, strict=True)])
    hidden = model.hidden(tree, nodes)  # (R, D)
    on_device = (torch.from_numpy(a).to(model.device) for a in (rows, targets))
    owners = np.repeat(np.arange(len(items)), [len(places) for places in learned])
    return _token_log_probs(model, hidden, *on_device), owners


def _token_log_probs(model: CausalModel, hidden: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """Return what `CausalModel.token_log_probs` does, with less work where the head is not trained.

    A frozen head's normalizer has a gradient in the hidden states alone, of their size, so it is
    taken at once, while the scores are there; computing them again would cost a third product.
    """
    head = model.model.get_output_embeddings()
    is_frozen = not any(p.requires_grad for p in head.parameters())
    if not (torch.is_grad_enabled() and hidden.requires_grad and is_frozen):
        return model.token_log_probs(hidden, rows, targets)

    def normalizer(part: Tensor) -> Tensor:
        return torch.logsumexp(model.logits(part), dim=-1)

    normalizers = [
        _EagerGradient.apply(part, normalizer)  # type: ignore[no-untyped-call]
        for part in torch.split(hidden, LOGIT_ROWS)
    ]
    return model.token_scores(hidden, rows, targets) - torch.cat(normalizers)[rows]


class _EagerGradient(torch.autograd.Function):
    """A function of rows, one number each, whose gradient is taken in the forward pass."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: ANN401
        with torch.enable_grad():
            own = rows.detach().requires_grad_()
            values: Tensor = function(own)  # (R,)
            (gradient,) = torch.autograd.grad(values.sum(), own)  # (R, D)
        ctx.save_for_backward(gradient)
        return values.detach()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        return (outputs[0][:, None] * gradient).to(gradient.dtype), None


def sequence_log_probs(
    model: CausalModel,
    items: Sequence[EncodedText],
    *,
    token_budget: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> FloatArray:
    """Return the summed log-probability of each row's learned tokens, without gradients, (N,).

    Args:
        model: The model.
        items: Rows with at least one learned token each.
        token_budget: Most unique tokens in one forward pass (tokens); see `run_in_trees`.
        advance: Called with the number of rows just finished.

    Raises:
        NotFiniteError: If scores are not finite.
    """
    result = np.empty(len(items))

    def score(chosen: list[int]) -> None:
        rows = [items[i] for i in chosen]
        log_probs, owners = learned_log_probs(model, rows)
        require_finite(log_probs, [rows[i].id for i in owners.tolist()])
        sums = np.bincount(owners, weights=log_probs.double().cpu().numpy(), minlength=len(chosen))
        result[chosen] = sums
        if advance is not None:
            advance(len(chosen))

    run_in_trees(
        model,
        [[tokens_to_run(item)] for item in items],
        score,
        token_budget=token_budget,
        names=[item.id for item in items],
    )
    return result


def share_of_tokens_saved(items: Sequence[EncodedText]) -> float:
    """Return the share of tokens that rows have in common at their start, in [0, 1)."""
    sequences = [tokens_to_run(item) for item in items]
    return 1 - unique_tokens(sequences) / sum(map(len, sequences))
