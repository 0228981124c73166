"""Label-word fine-tuning: cross-entropy of the label's word at its place in the prompt."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from taskfit.methods.scoring import candidate_log_probs, sequences_of, sum_over_words
from taskfit.models import TreeModel
from taskfit.tasks import EncodedExample
from taskfit.tree import plan_trees, unique_tokens
from taskfit.tree.build import IntArray


class LabelWordLoss:
    """The training objective of `label_words`.

    With `over="labels"` the loss of an example is -log of the label's share among all labels,
    p(w(y)) / sum over y' of p(w(y')); with `over="vocabulary"` it is -log p(w(y)) itself, as in the
    published recipe. p(w) is the joint of the word's tokens, and a label's words add up.
    """

    def __init__(
        self,
        model: TreeModel,
        label_of_candidate: Sequence[int],
        *,
        over: Literal["labels", "vocabulary"],
    ) -> None:
        """Bind the loss to a model.

        Args:
            model: The model in training.
            label_of_candidate: For every candidate word the index of its label.
            over: What the probabilities are normalised over.
        """
        self.model = model
        self.label_of_candidate = list(label_of_candidate)
        self.num_labels = max(self.label_of_candidate) + 1
        self.over = over

    def plan(self, items: Sequence[EncodedExample], token_budget: int) -> list[list[int]]:
        """Cut examples into forward passes of at most `token_budget` unique tokens."""
        return plan_trees(self._groups(items), token_budget, names=[item.id for item in items])

    def largest(self, items: Sequence[EncodedExample]) -> int:
        """Return the unique tokens that the largest example needs in one forward pass."""
        return max(unique_tokens(group) for group in self._groups(items))

    def loss_sum(self, items: Sequence[EncodedExample]) -> Tensor:
        """Return the summed loss of examples with known labels, run as one tree (nats).

        Every example counts once, however many tokens its label's word has.
        """
        gold = torch.tensor([item.label_index for item in items], device=self.model.device)
        wanted = self._wanted(items)
        # Over single-token labels the normaliser of the vocabulary cancels.
        single = all(len(completion) == 1 for completion in items[0].completions)
        joint = candidate_log_probs(
            self.model, items, wanted, normalize=not (single and self.over == "labels")
        )
        if self.over == "vocabulary":
            words = torch.split(joint, [len(chosen) for chosen in wanted])
            return -torch.stack([torch.logsumexp(scores, dim=0) for scores in words]).sum()
        scores = sum_over_words(
            joint.view(len(items), -1), self.label_of_candidate, self.num_labels
        )  # (N, L)
        return torch.nn.functional.cross_entropy(scores, gold, reduction="sum")

    def _groups(self, items: Sequence[EncodedExample]) -> list[list[IntArray]]:
        return [
            sequences_of(item, wanted)
            for item, wanted in zip(items, self._wanted(items), strict=True)
        ]

    def _wanted(self, items: Sequence[EncodedExample]) -> list[list[int]]:
        """Return the candidates that each example's loss needs."""
        if self.over == "labels":
            return [list(range(len(self.label_of_candidate)))] * len(items)
        return [
            [c for c, label in enumerate(self.label_of_candidate) if label == item.label_index]
            for item in items
        ]
