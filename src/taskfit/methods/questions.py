"""Several questions about one text, scored and trained as branches of one token tree.

The prompts of an example's questions share instruction and text, so these run once for all
questions; what comes out is what every question gives alone.

Legend: N examples, Q questions, L_q labels of question q, C_q its candidates (label words).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskfit.data import Example
from taskfit.methods.losses import classification_loss_sum, label_targets
from taskfit.methods.method import Advance
from taskfit.methods.objective import TreeObjective
from taskfit.methods.reading import PrefixCache, run_in_trees
from taskfit.methods.scoring import JOINT, WordReader, sum_over_words
from taskfit.models.attention import KeyValueCache
from taskfit.models.tree_model import TreeModel
from taskfit.tasks import EncodedExample, PromptEncoder
from taskfit.tasks.questions import AnsweredExample
from taskfit.tree import IntArray

FloatArray = NDArray[np.float64]


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


class QuestionEncoders:
    """One encoder a question.

    Attributes:
        by_name: Question -> its encoder, in order.
        label_of_candidate: Question -> for every candidate word the index of its label.
        num_labels: Question -> L_q.
        words: How label words are read.
    """

    def __init__(
        self, by_name: Mapping[str, PromptEncoder], *, words: WordReader | None = None
    ) -> None:
        """Take over encoders of the same tokenizer and limit.

        Args:
            by_name: Question -> its encoder.
            words: How label words are read. None: their joint probability.
        """
        self.words = words or JOINT
        self.by_name = dict(by_name)
        self.label_of_candidate = {
            name: [candidate.label_index for candidate in encoder.candidates]
            for name, encoder in self.by_name.items()
        }
        self.num_labels = {name: len(encoder.task.labels) for name, encoder in self.by_name.items()}

    def encode(self, examples: Sequence[Example]) -> list[QuestionItem]:
        """Encode texts for all questions, labels not looked at."""
        columns = {name: encoder.encode(examples) for name, encoder in self.by_name.items()}
        return [
            QuestionItem(example.id, {name: column[i] for name, column in columns.items()})
            for i, example in enumerate(examples)
        ]

    def encode_answered(self, examples: Sequence[AnsweredExample]) -> list[QuestionItem]:
        """Encode examples for those of their questions that have a label.

        Examples without any label are left out.
        """
        branches: list[dict[str, EncodedExample]] = [{} for _ in examples]
        for name, encoder in self.by_name.items():
            places = [i for i, example in enumerate(examples) if name in example.answers]
            encoded = encoder.encode([examples[i].example(name) for i in places])
            for place, item in zip(places, encoded, strict=True):
                branches[place][name] = item
        return [
            QuestionItem(example.id, found)
            for example, found in zip(examples, branches, strict=True)
            if found
        ]

    def sequences(self, item: QuestionItem, *, skip: int = 0) -> list[IntArray]:
        """Return what must run to score all candidates of an item's questions, as one group."""
        return [
            sequence
            for branch in item.branches.values()
            for sequence in self.words.sequences(branch, range(len(branch.completions)), skip=skip)
        ]


class Branches:
    """The questions of several items laid side by side, to be run as one tree.

    Attributes:
        rows: Question -> the places of the items that ask it.
    """

    def __init__(self, encoders: QuestionEncoders, items: Sequence[QuestionItem]) -> None:
        """Collect the branches, item by item."""
        self._encoders = encoders
        self.rows: dict[str, list[int]] = {name: [] for name in encoders.by_name}
        self._encoded: list[EncodedExample] = []
        self._owners: list[str] = []
        for place, item in enumerate(items):
            for name, branch in item.branches.items():
                self.rows[name].append(place)
                self._encoded.append(branch)
                self._owners.append(name)

    @property
    def all_single(self) -> bool:
        """Return whether every candidate is one token."""
        return all(len(ids) == 1 for branch in self._encoded for ids in branch.completions)

    def scores(
        self, model: TreeModel, *, prefix: KeyValueCache | None = None, normalize: bool = True
    ) -> dict[str, Tensor]:
        """Run the tree; return log p(label words | prompt) of every question that is asked.

        Args:
            model: The model.
            prefix: Keys and values of what all prompts start with.
            normalize: See `WordReader.log_probs`.

        Returns:
            Question -> (rows of the question, L_q), with gradient where enabled.
        """
        wanted = [list(range(len(branch.completions))) for branch in self._encoded]
        joint = self._encoders.words.log_probs(
            model, self._encoded, wanted, prefix=prefix, normalize=normalize
        )
        words: dict[str, list[Tensor]] = {name: [] for name in self.rows}
        for name, found in zip(
            self._owners, torch.split(joint, [len(chosen) for chosen in wanted]), strict=True
        ):
            words[name].append(found)
        return {
            name: sum_over_words(
                torch.stack(rows),
                self._encoders.label_of_candidate[name],
                self._encoders.num_labels[name],
            )
            for name, rows in words.items()
            if rows
        }


class QuestionScorer:
    """Scores texts against the labels of all questions, a text and its questions in one tree.

    The keys and values of what all prompts start with are kept across calls; call `forget_prefix`
    when the weights have changed.
    """

    def __init__(
        self, model: TreeModel, encoders: QuestionEncoders, *, token_budget: int | None = None
    ) -> None:
        """Bind a model to the encoders of the questions.

        Args:
            model: The model.
            encoders: One a question.
            token_budget: Most unique tokens in one forward pass (tokens), prefix not counted.
                None: 1,024, or what the largest example with all its questions needs.
        """
        self.model = model
        self.encoders = encoders
        self.token_budget = token_budget
        # What is static in the prompts of one question is so in all, up to where they part.
        self._prefixes = PrefixCache(model, next(iter(encoders.by_name.values())))

    def forget_prefix(self) -> None:
        """Drop the cached keys and values."""
        self._prefixes.forget()

    def log_probs(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> dict[str, FloatArray]:
        """Return log p(label words | prompt) of every label of every question.

        Args:
            examples: Texts; labels are not looked at.
            advance: Called with the number of examples just finished.

        Returns:
            Question -> (N, L_q).
        """
        result = {n: np.empty((len(examples), k)) for n, k in self.encoders.num_labels.items()}
        if not examples:
            return result
        items = self.encoders.encode(examples)
        branches = [branch for item in items for branch in item.branches.values()]
        prefix = self._prefixes.shared_by(branches)
        skip = prefix.length if prefix else 0

        def score(chosen: list[int]) -> None:
            found = Branches(self.encoders, [items[i] for i in chosen])
            for name, scores in found.scores(self.model, prefix=prefix).items():
                result[name][chosen] = scores.double().cpu().numpy()
            if advance is not None:
                advance(len(chosen))

        run_in_trees(
            self.model,
            [self.encoders.sequences(item, skip=skip) for item in items],
            score,
            token_budget=self.token_budget,
            names=[item.id for item in items],
        )
        return result


class QuestionLoss(TreeObjective[QuestionItem]):
    """The training objective: cross-entropy over the labels of every question that has one.

    An item is one example with its questions; its loss is the sum over them of
    weight_q * -log(p(w(y_q)) / sum over y of p(w(y))), as `LabelWordLoss` has it for each alone.
    """

    def __init__(
        self,
        model: TreeModel,
        encoders: QuestionEncoders,
        *,
        weights: Mapping[str, float],
        class_weights: Mapping[str, Tensor] | None = None,
        focal_gamma: float = 0.0,
    ) -> None:
        """Bind the loss to a model.

        Args:
            model: The model in training.
            encoders: One a question.
            weights: Question -> factor of its loss.
            class_weights: Question -> weight of each label, (L_q,); None: all 1.
            focal_gamma: Exponent of the focal factor, see `classification_loss_sum`.
        """
        self.model = model
        self.encoders = encoders
        self.weights = dict(weights)
        self.class_weights = dict(class_weights or {})
        self.focal_gamma = focal_gamma

    def sequences(self, item: QuestionItem) -> Sequence[IntArray]:
        """Return all questions of an example with all their label words."""
        return self.encoders.sequences(item)

    def loss_sum(self, items: Sequence[QuestionItem]) -> Tensor:
        """Return the summed loss of examples and their questions, run as one tree (nats)."""
        branches = Branches(self.encoders, items)
        # Over single-token labels the normaliser of the vocabulary cancels.
        scores = branches.scores(self.model, normalize=not branches.all_single)
        total = torch.zeros((), device=self.model.device)
        for name, found in scores.items():
            targets = [items[i].branches[name].target for i in branches.rows[name]]
            loss = classification_loss_sum(
                found,
                label_targets(targets, self.model.device),
                class_weights=self.class_weights.get(name),
                focal_gamma=self.focal_gamma,
            )
            total = total + self.weights[name] * loss
        return total
