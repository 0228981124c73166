"""A fine-tuned encoder, the classic baseline: its own classification head, all weights trained.

Devlin et al. 2019 (BERT), section 4.1. Texts are padded to batches of like length; the loss is a
sum, so neither padding nor the cut of a step into batches changes the gradient.

Legend: N examples, B examples of a forward pass, L labels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.special import expit, softmax
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_NAME

from taskfit.data import Example
from taskfit.errors import DataError
from taskfit.method_settings import EncoderSettings
from taskfit.methods.label_rows import fill_encoder_head
from taskfit.methods.losses import (
    LossSum,
    classification_loss_sum,
    label_targets,
    multi_label_loss_sum,
)
from taskfit.methods.method import Advance, FloatArray, MethodContext, Reading, TrainedMethod
from taskfit.methods.objective import Objective
from taskfit.models.encoder import LoadedEncoder, load_encoder, run_padded
from taskfit.models.load import DTYPES, resolve_device
from taskfit.models.padded import EncodedRow, encode_texts, plan_padded


class Encoder(TrainedMethod):
    """Fine-tunes every weight of an encoder; texts run as padded batches of like length.

    Attributes:
        encoder: The model with its tokenizer.
        max_length: Most tokens of a text, at most what the model was made for.
    """

    serves_multi_label = True
    settings: EncoderSettings

    def __init__(self, context: MethodContext) -> None:
        """Load the encoder with a new head, or with the saved one."""
        super().__init__(context)
        model, start = context.settings.model, context.start
        # Small encoders lose more in 16 bits than they gain; a wish for one is followed.
        dtype = torch.float32 if model.dtype == "auto" else DTYPES[model.dtype]
        saved = context.saved
        if start is not None and list(start.labels) == self.task.label_names:
            saved = start.weights
        fresh = self.settings.encoder if start is None else str(start.weights)
        self.encoder = load_encoder(
            fresh if saved is None else str(saved),
            device=resolve_device(model.device),
            dtype=dtype,
            num_labels=len(self.task.labels),
            seed=context.settings.seed if saved is None else None,
        )
        if start is not None and saved is None:
            fill_encoder_head(
                self.encoder.model,
                load_file(start.weights / SAFE_WEIGHTS_NAME),
                body=self.encoder.model.base_model_prefix,
                before=start.labels,
                now=self.task.label_names,
            )
        limit = self.encoder.max_length
        self.max_length = min(limit, model.max_length or limit)

    @property
    def module(self) -> nn.Module:
        """Return transformers' model."""
        module: nn.Module = self.encoder.model
        return module

    def make_trainable(self) -> dict[str, nn.Parameter]:
        """Return all weights."""
        self.encoder.model.requires_grad_(True)
        return dict(self.encoder.model.named_parameters())

    def encode(self, examples: Sequence[Example]) -> list[EncodedRow]:
        """Return the texts' tokens with their targets; what is too long is cut, and counted.

        Two columns go in as a pair of texts.

        Raises:
            DataError: If an example has no token at all.
        """
        names = self.task.label_names
        return encode_texts(
            self.encoder.tokenizer,
            [[example.texts[column] for column in self.task.text] for example in examples],
            ids=[example.id for example in examples],
            max_length=self.max_length,
            targets=[example.target_vector(names) for example in examples],
            allow_control_tokens=self.task.allow_control_tokens,
        )

    def readings(self, examples: Sequence[Example]) -> list[Reading]:
        """Return the texts as the encoder reads them."""
        return [Reading(self.encode(examples), self.max_length)]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the encoder's."""
        return self.encoder.tokenizer

    def objective(self) -> Objective[EncodedRow]:
        """Return the cross-entropy of the head's scores."""
        loss = multi_label_loss_sum if self.task.multi_label else classification_loss_sum
        return EncoderLoss(self.encoder, self.weighted(loss))

    def probabilities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> FloatArray:
        """Return softmax (sigmoid with several labels a text) of the head's scores, (N, L)."""
        scores = run_padded(
            self.encoder,
            self.encode([Example(example.id, example.texts) for example in examples]),
            self.encoder.logits,
            len(self.task.labels),
            token_budget=self.context.settings.training.score_token_budget,
            advance=advance,
        ).astype(np.float64)
        return np.asarray(expit(scores) if self.task.multi_label else softmax(scores, axis=1))

    def tokens_run(self) -> int:
        """Return the tokens run so far, padding with them."""
        return self.encoder.num_tokens_run

    def save_weights(self, folder: Path) -> None:
        """Write model and tokenizer as transformers does."""
        self.encoder.model.save_pretrained(folder)
        self.encoder.tokenizer.save_pretrained(folder)

    @property
    def num_parameters(self) -> int:
        """Return the number of weights."""
        return sum(p.numel() for p in self.encoder.model.parameters())


class EncoderLoss(Objective[EncodedRow]):
    """The training objective of `encoder`: the loss of the head's scores against the targets.

    With one label a text that is the cross-entropy -sum over y of q(y) log p(y), with p the softmax
    of the scores and q the target; with several, the binary cross-entropy of each label. Class
    weights and the focal factor are those of `losses.py`.
    """

    def __init__(self, encoder: LoadedEncoder, loss: LossSum) -> None:
        """Bind the loss to an encoder.

        Args:
            encoder: With a classification head.
            loss: Of scores and targets.
        """
        self.encoder = encoder
        self.loss = loss

    def plan(self, items: Sequence[EncodedRow], token_budget: int) -> list[list[int]]:
        """Cut examples into batches of like length, at most `token_budget` tokens with padding."""
        lengths = [item.num_tokens for item in items]
        return plan_padded(lengths, token_budget, names=[item.id for item in items])

    def largest(self, items: Sequence[EncodedRow]) -> int:
        """Return the tokens of the longest example."""
        return max(item.num_tokens for item in items)

    def loss_sum(self, items: Sequence[EncodedRow]) -> Tensor:
        """Return the summed loss of examples, run as one padded batch (nats).

        Raises:
            DataError: If an example has no target.
        """
        for item in items:
            if item.target is None:
                raise DataError(f"{item.id} has no label, so it cannot be trained on.")
        scores = self.encoder.logits(items)  # (B, L)
        return self.loss(scores, label_targets([item.target for item in items], scores.device))
