"""Label-word fine-tuning: cross-entropy of the label's word at its place in the prompt."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from taskfit.data import Example
from taskfit.method_settings import LabelWordsSettings
from taskfit.methods.branches import BranchWords, word_reader
from taskfit.methods.calibration import apply_prior
from taskfit.methods.losses import classification_loss_sum, label_targets, likelihood_loss_sum
from taskfit.methods.method import Advance, FloatArray, MethodContext
from taskfit.methods.objective import Objective, TreeObjective
from taskfit.methods.scoring import JointWords, LabelScorer, read_plan, sum_over_words
from taskfit.methods.tree_method import LabelledTreeMethod, prompt_encoder
from taskfit.models.tree_model import TreeModel
from taskfit.tasks import EncodedExample
from taskfit.tree.build import IntArray

# A log-probability that no word has, finite so that 0 times it is 0.
FLOOR = -1e30


class LabelWords(LabelledTreeMethod):
    """Trains the label words in their prompt; reads them off the LM head."""

    settings: LabelWordsSettings

    def __init__(self, context: MethodContext) -> None:
        """Make encoder and scorer."""
        encoder = prompt_encoder(context, context.task, context.demonstrations)
        super().__init__(context, encoder)
        budget = context.settings.training.score_token_budget
        words = word_reader(self.settings, end_id=self.model.tokenizer.eos_token_id)
        self.scorer = LabelScorer(self.model.tree, encoder, token_budget=budget, words=words)

    def probabilities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> FloatArray:
        """Return each label's share of the probability of all label words, (N, L).

        Words are read as the loss reads them: by their joint probability, or branch by branch.
        """
        return apply_prior(self.scorer.log_probs(examples, advance=advance), None)

    def objective(self) -> Objective[EncodedExample]:
        """Return the cross-entropy over labels, vocabulary or branches."""
        return LabelWordLoss(
            self.model.tree,
            self.scorer.label_of_candidate,
            over=self.settings.word_loss,
            end_id=self.model.tokenizer.eos_token_id,
            class_weights=self.class_weight_tensor(),
            focal_gamma=self.settings.focal_gamma,
        )

    def weights_changed(self) -> None:
        """Drop the cached prefix."""
        self.scorer.forget_prefix()

    def supervised(self, item: EncodedExample) -> str:
        """Return the label's word; what decides between words stands between guillemets."""
        if not isinstance(self.scorer.words, BranchWords):
            return self.supervised_word(item)
        gold, decode = self.gold_word(item), self.model.tokenizer.decode
        decisive = self.scorer.words.decisive(item, gold)
        tokens = [decode([int(i)]) for i in item.completions[gold]]
        return "".join(f"«{t}»" if depth in decisive else t for depth, t in enumerate(tokens))


class LabelWordLoss(TreeObjective[EncodedExample]):
    """The training objective of `label_words`.

    With `over="labels"` the loss of an example is -log of the label's share among all labels,
    p(w(y)) / sum over y' of p(w(y')); with `over="vocabulary"` it is -log p(w(y)) itself, as in the
    published recipe. p(w) is the joint of the word's tokens, and a label's words add up. With
    `over="branches"` it is -log p(w(y)) with p as in `BranchWords`. A target that is a distribution
    counts each label with its share.
    """

    def __init__(
        self,
        model: TreeModel,
        label_of_candidate: Sequence[int],
        *,
        over: Literal["labels", "vocabulary", "branches"],
        end_id: int | None = None,
        class_weights: Tensor | None = None,
        focal_gamma: float = 0.0,
    ) -> None:
        """Bind the loss to a model.

        Args:
            model: The model in training.
            label_of_candidate: For every candidate word the index of its label.
            over: What the probabilities are normalised over.
            end_id: The tokenizer's end token, for `over="branches"`.
            class_weights: Weight of each label, (L,); None: all 1.
            focal_gamma: Exponent of the focal factor, see `classification_loss_sum`.
        """
        self.model = model
        self.label_of_candidate = list(label_of_candidate)
        self.num_labels = max(self.label_of_candidate) + 1
        self.over = over
        self.words = BranchWords(end_id) if over == "branches" else JointWords()
        self.class_weights = class_weights
        self.focal_gamma = focal_gamma

    def sequences(self, item: EncodedExample) -> list[IntArray]:
        """Return the prompt with the words that the loss compares."""
        return self.words.sequences(item, self._wanted(item))

    def num_normalized(self, items: Sequence[EncodedExample]) -> int:
        """Return the nodes of a forward pass at which the whole vocabulary is scored."""
        if self.over == "branches" or self._cancels(items):
            return 0
        return len(read_plan(items, [self._wanted(item) for item in items]).nodes)

    def loss_sum(self, items: Sequence[EncodedExample]) -> Tensor:
        """Return the summed loss of examples with known labels, run as one tree (nats).

        Every example counts once, however many tokens its label's word has.
        """
        wanted = [self._wanted(item) for item in items]
        targets = label_targets([item.target for item in items], self.model.device)
        if self.over != "labels":
            found = self.words.log_probs(self.model, items, wanted)
            return likelihood_loss_sum(
                self._of_labels(found, wanted),
                targets,
                class_weights=self.class_weights,
                focal_gamma=self.focal_gamma,
            )
        joint = self.words.log_probs(self.model, items, wanted, normalize=not self._cancels(items))
        scores = sum_over_words(
            joint.view(len(items), -1), self.label_of_candidate, self.num_labels
        )  # (N, L)
        return classification_loss_sum(
            scores, targets, class_weights=self.class_weights, focal_gamma=self.focal_gamma
        )

    def _of_labels(self, log_probs: Tensor, wanted: Sequence[Sequence[int]]) -> Tensor:
        """Add up the words that were scored to log p(w(y)) of each label, (N, L)."""
        counts = [len(chosen) for chosen in wanted]
        rows = np.repeat(np.arange(len(wanted)), counts)
        columns = np.concatenate([np.asarray(chosen, np.int64) for chosen in wanted])
        place = tuple(torch.from_numpy(index).to(log_probs.device) for index in (rows, columns))
        # Words without a share are not scored; their weight of 0 leaves nothing of the floor.
        table = log_probs.new_full((len(wanted), len(self.label_of_candidate)), FLOOR)
        return sum_over_words(
            table.index_put(place, log_probs), self.label_of_candidate, self.num_labels
        )

    def _cancels(self, items: Sequence[EncodedExample]) -> bool:
        """Whether the normaliser of the vocabulary cancels: over labels of a single token."""
        return self.over == "labels" and all(len(ids) == 1 for ids in items[0].completions)

    def _wanted(self, item: EncodedExample) -> list[int]:
        """Return the candidates that an example's loss needs."""
        if self.over == "labels":
            return list(range(len(self.label_of_candidate)))
        assert item.target is not None
        return [c for c, label in enumerate(self.label_of_candidate) if item.target[label] > 0]
