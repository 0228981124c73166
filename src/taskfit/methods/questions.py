"""Several questions about one text, trained as branches of one token tree.

The prompts of an example's questions share instruction and text, so these run once for all
questions; what comes out is what every question gives alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskfit.data import Example
from taskfit.methods.losses import LossSum, label_targets
from taskfit.methods.objective import TreeObjective
from taskfit.methods.scoring import WordReader, sum_over_words
from taskfit.models.causal_model import CausalModel
from taskfit.tasks import EncodedExample, PromptEncoder
from taskfit.tree import IntArray


@dataclass(frozen=True, slots=True)
class QuestionItem:
    """An example with those of its questions that have a label.

    Attributes:
        id: The example's id.
        branches: Question -> the example encoded as one of it.
    """

    id: str
    branches: Mapping[str, EncodedExample]

    @property
    def num_tokens(self) -> int:
        """Return the tokens of all its questions, each with the whole text."""
        return sum(item.num_tokens for item in self.branches.values())

    @property
    def num_tokens_cut(self) -> int:
        """Return the most tokens by which its text was shortened for a question."""
        return max(item.num_tokens_cut for item in self.branches.values())


def encode_questions(
    encoders: Mapping[str, PromptEncoder], examples: Sequence[Example]
) -> list[QuestionItem]:
    """Encode examples for those of their questions that have a label.

    Examples without any label are left out.

    Args:
        encoders: Question -> its encoder, all of the same tokenizer and limit.
        examples: With the answers that are known.
    """
    branches: list[dict[str, EncodedExample]] = [{} for _ in examples]
    for name, encoder in encoders.items():
        asked = [example.of(name) for example in examples]
        places = [i for i, example in enumerate(asked) if example.label is not None]
        encoded = encoder.encode([asked[i] for i in places])
        for place, item in zip(places, encoded, strict=True):
            branches[place][name] = item
    return [
        QuestionItem(example.id, found)
        for example, found in zip(examples, branches, strict=True)
        if found
    ]


class QuestionLoss(TreeObjective[QuestionItem]):
    """The training objective: cross-entropy over the labels of every question that has one.

    An item is one example with its questions; its loss is the sum over them of
    weight_q * -log(p(w(y_q)) / sum over y of p(w(y))), as `LabelWordLoss` has it for each alone.
    """

    def __init__(
        self,
        model: CausalModel,
        encoders: Mapping[str, PromptEncoder],
        *,
        words: WordReader,
        losses: Mapping[str, LossSum],
    ) -> None:
        """Bind the loss to a model.

        Args:
            model: The model in training.
            encoders: Question -> its encoder.
            words: How label words are read.
            losses: Question -> `classification_loss_sum` with its class weights and focal factor.
        """
        self.model = model
        self.encoders = encoders
        self.words = words
        self.losses = losses

    def sequences(self, item: QuestionItem) -> list[IntArray]:
        """Return all questions of an example with all their label words."""
        return [
            sequence
            for branch in item.branches.values()
            for sequence in self.words.sequences(branch, range(len(branch.completions)))
        ]

    def loss_sum(self, items: Sequence[QuestionItem]) -> Tensor:
        """Return the summed loss of examples and their questions, run as one tree (nats)."""
        owners = [name for item in items for name in item.branches]
        branches = [branch for item in items for branch in item.branches.values()]
        every = [range(len(branch.completions)) for branch in branches]
        # Over single-token labels the normaliser of the vocabulary cancels.
        normalize = any(len(ids) > 1 for branch in branches for ids in branch.completions)
        joint = self.words.log_probs(self.model, branches, every, normalize=normalize)
        words = torch.split(joint, [len(chosen) for chosen in every])
        total = torch.zeros((), device=self.model.device)
        for name, encoder in self.encoders.items():
            own = [place for place, owner in enumerate(owners) if owner == name]
            if not own:
                continue
            scores = sum_over_words(
                torch.stack([words[place] for place in own]),
                [candidate.label_index for candidate in encoder.candidates],
                len(encoder.task.labels),
            )
            targets = label_targets([branches[place].target for place in own], self.model.device)
            total = total + encoder.task.weight * self.losses[name](scores, targets)
        return total
