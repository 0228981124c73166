"""Label-word fine-tuning: cross-entropy of the label's word at its place in the prompt."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.nn import functional

from taskfit.data import Example
from taskfit.method_settings import LabelWordsSettings
from taskfit.methods.branches import BranchWords, by_branch, word_reader
from taskfit.methods.losses import (
    LossSum,
    classification_loss_sum,
    label_targets,
    likelihood_loss_sum,
)
from taskfit.methods.method import MethodContext
from taskfit.methods.objective import Item, Objective, TreeObjective
from taskfit.methods.questions import QuestionLoss, encode_questions
from taskfit.methods.scoring import JOINT, read_plan, sum_over_words
from taskfit.methods.shuffled import Encoders, ShuffledItem, ShuffledOptions
from taskfit.methods.tree_method import WordMethod, need_options, prompt_encoders
from taskfit.models.causal_model import CausalModel
from taskfit.models.transfer import on_device
from taskfit.tasks import EncodedExample
from taskfit.tasks.questions import Questionnaire
from taskfit.tree import IntArray

# A log-probability that no word has, finite so that 0 times it is 0.
FLOOR = -1e30


class LabelWords(WordMethod):
    """Trains the label words in their prompt; reads them off the LM head as the loss does.

    That is by their joint probability, or branch by branch.
    """

    settings: LabelWordsSettings

    def __init__(self, context: MethodContext) -> None:
        """Make encoders and scorer."""
        end_id = context.need_model().tokenizer.eos_token_id
        super().__init__(
            context,
            prompt_encoders(
                context, context.demonstrations, marks_ends=not by_branch(context.settings.method)
            ),
            word_reader(context.settings.method, end_id=end_id),
        )
        self._asks_several = isinstance(context.asked, Questionnaire)
        if self.settings.shuffle_options:
            need_options(context.asked.tasks.values(), "method.shuffle_options=true")

    def encode(self, examples: Sequence[Example]) -> Sequence[Item]:
        """Return prompts with completions as token ids, several questions of a text together."""
        items = self._encode(self.encoders, examples)
        if not self.settings.shuffle_options:
            return items
        if self._asks_several:  # those without any answer are left out
            examples = [example for example in examples if example.answers]
        return [ShuffledItem(e, item) for e, item in zip(examples, items, strict=True)]

    def objective(self) -> Objective[Any]:
        """Return the cross-entropy over labels, vocabulary or branches."""
        if not self.settings.shuffle_options:
            return self._loss()
        seed = self.context.settings.seed
        return ShuffledOptions(self._loss(), self.encoders, self._encode, seed=seed)

    def _encode(self, encoders: Encoders, examples: Sequence[Example]) -> Sequence[Item]:
        if self._asks_several:
            return encode_questions(encoders, examples)
        (encoder,) = encoders.values()
        return encoder.encode(examples)

    def _loss(self) -> TreeObjective[Any]:
        if self._asks_several:
            return QuestionLoss(
                self.model.tree,
                self.encoders,
                words=self.scorer.words,
                losses={
                    name: self.weighted(classification_loss_sum, question=name)
                    for name in self.encoders
                },
            )
        return LabelWordLoss(
            self.model.tree,
            self.scorer.label_of_candidate,
            over=self.settings.word_loss,
            end_id=self.model.tokenizer.eos_token_id,
            loss=self.weighted(likelihood_loss_sum),
        )

    def rendered(self, examples: Sequence[Example]) -> list[str]:
        """Return prompts with what is learned between guillemets, of each question."""
        if not self._asks_several:
            return super().rendered(examples)
        decode = self.model.tokenizer.decode
        return [
            f"{item.id}: {decode(branch.prompt_ids.tolist())}"
            f"{self.supervised_word(branch, self.encoders[name])}"
            for item in encode_questions(self.encoders, examples)
            for name, branch in item.branches.items()
        ]

    def supervised(self, item: EncodedExample) -> str:
        """Return the label's word; what decides between words stands between guillemets."""
        if not isinstance(self.scorer.words, BranchWords):
            return super().supervised(item)
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
        model: CausalModel,
        label_of_candidate: Sequence[int],
        *,
        over: Literal["labels", "vocabulary", "branches"],
        end_id: int | None = None,
        loss: LossSum = likelihood_loss_sum,
    ) -> None:
        """Bind the loss to a model.

        Args:
            model: The model in training.
            label_of_candidate: For every candidate word the index of its label.
            over: What the probabilities are normalised over.
            end_id: The tokenizer's end token, for `over="branches"`.
            loss: Of log-probabilities and targets, see `likelihood_loss_sum`.
        """
        self.model = model
        self.label_of_candidate = list(label_of_candidate)
        self.num_labels = max(self.label_of_candidate) + 1
        self.over = over
        self.words = BranchWords(end_id) if over == "branches" else JOINT
        self.loss = loss

    def sequences(self, item: EncodedExample) -> list[IntArray]:
        """Return the prompt with the words that the loss compares."""
        return self.words.sequences(item, self._compared(item))

    def num_normalized(self, items: Sequence[EncodedExample]) -> int:
        """Return the nodes of a forward pass at which the whole vocabulary is scored."""
        if self.over == "branches" or self._cancels(items):
            return 0
        return len(read_plan(items, [self._compared(item) for item in items]).nodes)

    def loss_sum(self, items: Sequence[EncodedExample]) -> Tensor:
        """Return the summed loss of examples with known labels, run as one tree (nats).

        Every example counts once, however many tokens its label's word has.
        """
        compared = [self._compared(item) for item in items]
        found = self.words.log_probs(
            self.model, items, compared, normalize=not self._cancels(items)
        )
        log_probs = self._of_labels(found, compared)
        if self.over == "labels":
            log_probs = functional.log_softmax(log_probs, dim=-1)
        return self.loss(
            log_probs, label_targets([item.target for item in items], self.model.device)
        )

    def _of_labels(self, log_probs: Tensor, compared: Sequence[Sequence[int]]) -> Tensor:
        """Add up the words that were scored to log p(w(y)) of each label, (N, L)."""
        rows = np.repeat(np.arange(len(compared)), [len(chosen) for chosen in compared])
        columns = np.concatenate([np.asarray(chosen, np.int64) for chosen in compared])
        place = tuple(on_device(index, log_probs.device) for index in (rows, columns))
        # Words without a share are not scored; their weight of 0 leaves nothing of the floor.
        table = log_probs.new_full((len(compared), len(self.label_of_candidate)), FLOOR)
        return sum_over_words(
            table.index_put(place, log_probs), self.label_of_candidate, self.num_labels
        )

    def _cancels(self, items: Sequence[EncodedExample]) -> bool:
        """Whether the normaliser of the vocabulary cancels: over labels of a single token."""
        return self.over == "labels" and all(len(ids) == 1 for ids in items[0].completions)

    def _compared(self, item: EncodedExample) -> list[int]:
        """Return the candidates that an example's loss needs."""
        if self.over == "labels":
            return list(range(len(self.label_of_candidate)))
        assert item.target is not None
        return [c for c, label in enumerate(self.label_of_candidate) if item.target[label] > 0]
