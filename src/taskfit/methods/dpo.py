"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290).

The prompt is shared by both answers in the token tree. The reference is the model before training:
what it says is scored once, before the first step, so there is no second model in memory, neither
with an adapter nor with full weights.

Legend: N pairs.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from taskfit.methods.adapted import AdaptedModel
from taskfit.methods.method import MethodTraits
from taskfit.methods.objective import TreeObjective
from taskfit.methods.sft import Gather, Reference, learned_log_probs, tokens_to_run
from taskfit.models.causal_model import CausalModel
from taskfit.tasks.chat import EncodedPreference
from taskfit.tree import IntArray


class Dpo(MethodTraits, AdaptedModel):
    """Learns from pairs of a better and a worse answer (direct preference optimization)."""

    def objective(self, *, reference: Reference, gather: Gather) -> "DpoLoss":
        """Return the loss.

        Args:
            reference: What the model said of each pair before training.
            gather: Returns what every process of the run has.
        """
        beta = self._settings.tuning.beta
        return DpoLoss(self.tree, beta=beta, reference=reference, gather=gather)


class DpoLoss(TreeObjective[EncodedPreference]):
    """The paper's equation 7, with the rewards of its equation 5 as metrics of a step.

    Attributes:
        step: The step under way, counted from 1.
    """

    def __init__(
        self,
        model: CausalModel,
        *,
        beta: float,
        reference: Reference,
        gather: Gather = lambda found: [found],
    ) -> None:
        """Bind the loss to a model.

        Args:
            model: The policy.
            beta: Strength of the pull to the reference.
            reference: For the id of every pair the reference's log-probability of the chosen and
                of the rejected answer.
            gather: Returns what every process of the run has.
        """
        self.model = model
        self.beta = beta
        self.reference = reference
        self.step = 0
        self._gather = gather
        self._margins: dict[str, float] = {}

    def start_step(self, step: int) -> None:
        """Count steps, and forget the metrics of the one before."""
        self.step = step + 1
        self._margins = {}

    def sequences(self, item: EncodedPreference) -> Sequence[IntArray]:
        """Return both answers behind their prompt, which a tree runs once."""
        return [tokens_to_run(item.chosen), tokens_to_run(item.rejected)]

    def loss_sum(self, items: Sequence[EncodedPreference]) -> Tensor:
        """Return the summed loss of pairs run as one tree (nats)."""
        answers = [answer for item in items for answer in (item.chosen, item.rejected)]
        log_probs, owners = learned_log_probs(self.model, answers)
        sums = log_probs.new_zeros(len(answers))
        sums = sums.index_add(0, torch.from_numpy(owners).to(log_probs.device), log_probs)
        policy = sums.view(-1, 2)  # (N, 2)
        reference = torch.tensor([self.reference[item.id] for item in items]).to(policy)
        losses = dpo_loss(policy, reference, beta=self.beta)
        with torch.no_grad():
            rewards = self.beta * (policy - reference)
            margins = (rewards[:, 0] - rewards[:, 1]).tolist()
        self._margins |= dict(zip([item.id for item in items], margins, strict=True))
        return losses.sum()

    def step_metrics(self) -> Mapping[str, float]:
        """Return the mean margin of the rewards, and the share of pairs where it is above 0."""
        # By id: with sharding a process may run a pair of another one's share once more.
        found: dict[str, float] = {}
        for part in self._gather(self._margins):
            found |= part
        if not found:
            return {}
        margins = np.array(list(found.values()))
        return {
            "reward_margin": float(margins.mean()),
            "reward_accuracy": float(np.heaviside(margins, 0.5).mean()),
        }


def dpo_loss(policy: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """Return -log sigmoid(beta (log-ratio of the chosen - log-ratio of the rejected)), (N,).

    Equation 7 of the paper.

    Args:
        policy: log p of chosen and rejected answers under the model in training, (N, 2).
        reference: The same under the model before training, (N, 2).
        beta: Strength of the pull to the reference.
    """
    ratios = policy - reference
    return -functional.logsigmoid(beta * (ratios[:, 0] - ratios[:, 1]))
