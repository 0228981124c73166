"""Label-word fine-tuning: cross-entropy of the label's word at its place in the prompt."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from taskfit.data import Example
from taskfit.methods.calibration import apply_prior
from taskfit.methods.losses import classification_loss_sum, label_targets
from taskfit.methods.method import Advance, FloatArray, MethodContext
from taskfit.methods.objective import Objective
from taskfit.methods.scoring import (
    LabelScorer,
    candidate_log_probs,
    sequences_of,
    sum_over_words,
)
from taskfit.methods.tree_method import TreeMethod, prompt_encoder
from taskfit.models import TreeModel
from taskfit.tasks import EncodedExample
from taskfit.tree import plan_trees, unique_tokens
from taskfit.tree.build import IntArray


class LabelWords(TreeMethod):
    """Trains the label words in their prompt; reads them off the LM head."""

    def __init__(self, context: MethodContext) -> None:
        """Make encoder and scorer."""
        encoder = prompt_encoder(context, context.task, context.demonstrations)
        super().__init__(context, encoder)
        budget = context.settings.training.score_token_budget
        self.scorer = LabelScorer(self.model.tree, encoder, token_budget=budget)

    def probabilities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> FloatArray:
        """Return each label's share of the probability of all label words, (N, L)."""
        return apply_prior(self.scorer.log_probs(examples, advance=advance), None)

    def objective(self) -> Objective[EncodedExample]:
        """Return the cross-entropy over labels or vocabulary."""
        return LabelWordLoss(
            self.model.tree,
            self.scorer.label_of_candidate,
            over=self.settings.loss,
            class_weights=self.class_weight_tensor(),
            focal_gamma=self.settings.focal_gamma,
        )

    def weights_changed(self) -> None:
        """Drop the cached prefix."""
        self.scorer.forget_prefix()

    def supervised(self, item: EncodedExample) -> str:
        """Return the label's word."""
        return self.supervised_word(item)


class LabelWordLoss(Objective[EncodedExample]):
    """The training objective of `label_words`.

    With `over="labels"` the loss of an example is -log of the label's share among all labels,
    p(w(y)) / sum over y' of p(w(y')); with `over="vocabulary"` it is -log p(w(y)) itself, as in the
    published recipe. p(w) is the joint of the word's tokens, and a label's words add up. A target
    that is a distribution counts each label with its share.
    """

    def __init__(
        self,
        model: TreeModel,
        label_of_candidate: Sequence[int],
        *,
        over: Literal["labels", "vocabulary"],
        class_weights: Tensor | None = None,
        focal_gamma: float = 0.0,
    ) -> None:
        """Bind the loss to a model.

        Args:
            model: The model in training.
            label_of_candidate: For every candidate word the index of its label.
            over: What the probabilities are normalised over.
            class_weights: Weight of each label, (L,); None: all 1.
            focal_gamma: Exponent of the focal factor, see `classification_loss_sum`.
        """
        self.model = model
        self.label_of_candidate = list(label_of_candidate)
        self.num_labels = max(self.label_of_candidate) + 1
        self.over = over
        self.class_weights = class_weights
        self.focal_gamma = focal_gamma

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
        wanted = self._wanted(items)
        # Over single-token labels the normaliser of the vocabulary cancels.
        single = all(len(completion) == 1 for completion in items[0].completions)
        joint = candidate_log_probs(
            self.model, items, wanted, normalize=not (single and self.over == "labels")
        )
        targets = label_targets([item.target for item in items], self.model.device)
        if self.over == "vocabulary":
            return self._vocabulary_loss(joint, wanted, targets)
        scores = sum_over_words(
            joint.view(len(items), -1), self.label_of_candidate, self.num_labels
        )  # (N, L)
        return classification_loss_sum(
            scores, targets, class_weights=self.class_weights, focal_gamma=self.focal_gamma
        )

    def _vocabulary_loss(
        self, joint: Tensor, wanted: Sequence[Sequence[int]], targets: Tensor
    ) -> Tensor:
        """Return the sum of -w_y t_y (1 - p(w(y)))^gamma log p(w(y))."""
        total = joint.new_zeros(())
        words = torch.split(joint, [len(chosen) for chosen in wanted])
        for scores, chosen, target in zip(words, wanted, targets, strict=True):
            owners = [self.label_of_candidate[c] for c in chosen]
            for label in dict.fromkeys(owners):
                own = [place for place, owner in enumerate(owners) if owner == label]
                log_prob = torch.logsumexp(scores[own], dim=0)
                weight = target[label].to(log_prob.dtype)
                if self.class_weights is not None:
                    weight = weight * self.class_weights[label]
                if self.focal_gamma:
                    weight = weight * (1 - log_prob.exp()).clamp_min(0).pow(self.focal_gamma)
                total = total - weight * log_prob
        return total

    def _groups(self, items: Sequence[EncodedExample]) -> list[list[IntArray]]:
        return [
            sequences_of(item, wanted)
            for item, wanted in zip(items, self._wanted(items), strict=True)
        ]

    def _wanted(self, items: Sequence[EncodedExample]) -> list[list[int]]:
        """Return the candidates that each example's loss needs."""
        if self.over == "labels":
            return [list(range(len(self.label_of_candidate)))] * len(items)
        wanted = []
        for item in items:
            assert item.target is not None
            has_share = item.target > 0
            wanted.append(
                [c for c, label in enumerate(self.label_of_candidate) if has_share[label]]
            )
        return wanted
