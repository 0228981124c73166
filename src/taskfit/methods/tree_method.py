"""What all methods share that train a causal language model through the token tree."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from taskfit.data import Example
from taskfit.method_base import TrainedOnLabels
from taskfit.methods.adapted import AdaptedModel
from taskfit.methods.losses import balanced_weights
from taskfit.methods.method import FloatArray, MethodContext, TrainedMethod
from taskfit.methods.objective import Item
from taskfit.tasks import BareEncoder, EncodedExample, PromptEncoder, Task


class TreeMethod(AdaptedModel, TrainedMethod):
    """A trained classifier on a causal language model.

    Attributes:
        encoder: Turns examples into prompts.
    """

    def __init__(self, context: MethodContext, encoder: PromptEncoder | BareEncoder) -> None:
        """Bind model and encoder."""
        TrainedMethod.__init__(self, context)
        AdaptedModel.__init__(self, context.need_model(), context.settings)
        self.encoder = encoder

    def rehearse(self, examples: Sequence[Example]) -> None:
        """Predict a few examples with the weights as they are."""
        self.probabilities(examples)

    def encode(self, examples: Sequence[Example]) -> Sequence[Item]:
        """Return prompts with completions as token ids."""
        return self.encoder.encode(examples)

    def rendered(self, examples: Sequence[Example]) -> list[str]:
        """Return prompts with what is learned between guillemets."""
        decode = self.model.tokenizer.decode
        return [
            f"{item.id}: {decode(item.prompt_ids.tolist())}{self.supervised(item)}"
            for item in self.encoder.encode(examples)
        ]

    @abstractmethod
    def supervised(self, item: EncodedExample) -> str:
        """Return what is learned of an item, between guillemets."""

    def gold_word(self, item: EncodedExample) -> int:
        """Return the candidate that is the gold label's first word; the first where none is."""
        owners = [candidate.label_index for candidate in self.encoder.candidates]
        return next((c for c, label in enumerate(owners) if label == item.label_index), 0)

    def supervised_word(self, item: EncodedExample) -> str:
        """Return the gold label's first word, each token between guillemets."""
        decode = self.model.tokenizer.decode
        return "".join(f"«{decode([int(i)])}»" for i in item.completions[self.gold_word(item)])


class LabelledTreeMethod(TreeMethod):
    """One that is trained with labels as targets."""

    settings: TrainedOnLabels

    def __init__(self, context: MethodContext, encoder: PromptEncoder | BareEncoder) -> None:
        """Bind model and encoder."""
        super().__init__(context, encoder)
        self.class_weights: FloatArray | None = None

    def prepare(self, train: Sequence[Example], validation: Sequence[Example]) -> None:
        """Measure class weights, where they are wanted."""
        if self.settings.class_weights == "balanced":
            names = self.task.label_names
            targets = [example.target_vector(names) for example in train]
            self.class_weights = balanced_weights(
                np.stack([t for t in targets if t is not None]), multi_label=self.task.multi_label
            )

    def class_weight_tensor(self) -> Tensor | None:
        """Return the class weights on the model's device, (L,)."""
        if self.class_weights is None:
            return None
        return torch.from_numpy(self.class_weights).float().to(self.model.tree.device)


def prompt_encoder(
    context: MethodContext,
    task: Task,
    demonstrations: Sequence[Example],
    *,
    end_id: int | None = None,
) -> PromptEncoder:
    """Return an encoder for the context's model under its limit of length."""
    model = context.need_model()
    limit, wanted = model.tree.max_length, context.settings.model.max_length
    return PromptEncoder(
        model.tokenizer,
        task,
        demonstrations,
        max_length=min(limit, wanted) if wanted else limit,
        end_id=end_id,
    )
