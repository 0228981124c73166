"""What all methods share that train a causal language model through the token tree."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from taskfit.data import Example
from taskfit.methods.losses import balanced_weights
from taskfit.methods.method import FloatArray, MethodContext, TrainedMethod
from taskfit.methods.objective import Item
from taskfit.models import (
    add_adapter,
    count_parameters,
    enable_gradient_checkpointing,
    save_weights,
    trainable_parameters,
)
from taskfit.tasks import BareEncoder, EncodedExample, PromptEncoder, Task


class TreeMethod(TrainedMethod):
    """A trained method on a causal language model.

    Attributes:
        model: The model.
        encoder: Turns examples into prompts.
    """

    def __init__(self, context: MethodContext, encoder: PromptEncoder | BareEncoder) -> None:
        """Bind model and encoder."""
        super().__init__(context)
        self.model = context.need_model()
        self.encoder = encoder
        self.class_weights: FloatArray | None = None
        self._adapter: PeftModel | None = None

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

    def rehearse(self, examples: Sequence[Example]) -> None:
        """Predict a few examples with the weights as they are."""
        self.probabilities(examples)

    @property
    def module(self) -> nn.Module:
        """Return transformers' model."""
        module: nn.Module = self.model.tree.model
        return module

    def make_trainable(self) -> dict[str, nn.Parameter]:
        """Put adapters on the model, or make all its weights trainable."""
        settings = self.context.settings
        self._adapter = add_adapter(self.model.tree.model, settings.adapter, seed=settings.seed)
        if settings.training.gradient_checkpointing:
            enable_gradient_checkpointing(self.model.tree.model)
        return trainable_parameters(self.model.tree.model)

    def encode(self, examples: Sequence[Example]) -> Sequence[Item]:
        """Return prompts with completions as token ids."""
        return self.encoder.encode(examples)

    def tokens_run(self) -> int:
        """Return the unique tokens run through the decoder so far."""
        return self.model.tree.num_tokens_run

    def compile(self) -> None:
        """Compile the decoder layers."""
        self.model.tree.compile_layers()

    def release(self) -> bool:
        """Unload the adapter; the model is as before unless all its weights were trained."""
        if self._adapter is None:
            return False
        self._adapter.unload()
        self.model.tree.model.requires_grad_(False)
        self._adapter = None
        return True

    def save_weights(self, folder: Path) -> None:
        """Write the adapter in PEFT's layout, or the whole model."""
        save_weights(self.model.tree.model, self._adapter, self.model.tokenizer, folder)

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

    def supervised_word(self, item: EncodedExample) -> str:
        """Return the gold label's first word, each token between guillemets."""
        owners = [candidate.label_index for candidate in self.encoder.candidates]
        gold = next((c for c, label in enumerate(owners) if label == item.label_index), 0)
        decode = self.model.tokenizer.decode
        return "".join(f"«{decode([int(i)])}»" for i in item.completions[gold])

    @property
    def num_parameters(self) -> int:
        """Return the number of the model's weights, adapters with them."""
        return count_parameters(self.model.tree.model)


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
