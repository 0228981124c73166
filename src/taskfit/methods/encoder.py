"""A fine-tuned encoder, the classic baseline: its own classification head, all weights trained.

Devlin et al. 2019 (BERT), section 4.1. Texts are padded to batches of like length; the loss is a
sum, so neither padding nor the cut of a step into batches changes the gradient.

Legend: N examples, B examples of a forward pass, L labels.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, log_softmax, softmax
from torch import Tensor, nn

from taskfit.data import Example
from taskfit.errors import DataError
from taskfit.method_settings import EncoderSettings
from taskfit.methods.losses import (
    balanced_weights,
    classification_loss_sum,
    multi_label_loss_sum,
)
from taskfit.methods.majority import target_matrix
from taskfit.methods.method import Advance, FloatArray, MethodContext, TrainedMethod
from taskfit.methods.objective import Objective
from taskfit.models.encoder import (
    EncodedText,
    LoadedEncoder,
    encode_texts,
    load_encoder,
    plan_padded,
)
from taskfit.models.evaluation_mode import evaluation_mode
from taskfit.models.load import DTYPES, resolve_device


class Encoder(TrainedMethod):
    """Fine-tunes every weight of an encoder; texts run as padded batches of like length."""

    serves_multi_label = True
    settings: EncoderSettings

    def __init__(self, context: MethodContext) -> None:
        """Load the encoder with a new head, or with the saved one."""
        super().__init__(context)
        model = context.settings.model
        # Small encoders lose more in 16 bits than they gain; a wish for one is followed.
        dtype = torch.float32 if model.dtype == "auto" else DTYPES[model.dtype]
        self._encoder = load_encoder(
            self.settings.encoder if context.saved is None else str(context.saved),
            device=resolve_device(model.device),
            dtype=dtype,
            num_labels=len(self.task.labels),
            head="new" if context.saved is None else "saved",
            seed=context.settings.seed,
        )
        self._tokenizer = ExampleTokenizer(
            self._encoder,
            columns=self.task.text,
            label_names=self.task.label_names,
            max_length=model.max_length,
        )
        self._scorer = EncoderScorer(
            self._encoder,
            self._tokenizer,
            token_budget=context.settings.training.score_token_budget,
        )
        self._class_weights: FloatArray | None = None

    @property
    def module(self) -> nn.Module:
        """Return transformers' model."""
        module: nn.Module = self._encoder.model
        return module

    def prepare(self, train: Sequence[Example], validation: Sequence[Example]) -> None:
        """Measure class weights, where they are wanted."""
        if self.settings.class_weights == "balanced":
            self._class_weights = balanced_weights(
                target_matrix(train, self.task.label_names), multi_label=self.task.multi_label
            )

    def rehearse(self, examples: Sequence[Example]) -> None:
        """Score a few examples with the new head."""
        self.probabilities(examples)

    def make_trainable(self) -> dict[str, nn.Parameter]:
        """Return all weights."""
        self._encoder.model.requires_grad_(True)
        return dict(self._encoder.model.named_parameters())

    def encode(self, examples: Sequence[Example]) -> list[EncodedText]:
        """Return the texts' tokens with their targets."""
        names = self.task.label_names
        return self._tokenizer.encode(
            examples, targets=[example.target_vector(names) for example in examples]
        )

    def objective(self) -> Objective[EncodedText]:
        """Return the cross-entropy of the head's scores."""
        weights = self._class_weights
        return EncoderLoss(
            self._encoder,
            multi_label=self.task.multi_label,
            class_weights=(
                None
                if weights is None
                else torch.from_numpy(weights).float().to(self._encoder.device)
            ),
            focal_gamma=self.settings.focal_gamma,
        )

    def probabilities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> FloatArray:
        """Return softmax (sigmoid with several labels a text) of the head's scores, (N, L)."""
        bare = [Example(example.id, example.texts) for example in examples]
        scores = self._scorer.scores(bare, advance=advance)
        return np.asarray(expit(scores) if self.task.multi_label else softmax(scores, axis=1))

    def tokens_run(self) -> int:
        """Return the tokens run so far, padding with them."""
        return self._encoder.num_tokens_run

    def save_weights(self, folder: Path) -> None:
        """Write model and tokenizer as transformers does."""
        self._encoder.model.save_pretrained(folder)
        self._encoder.tokenizer.save_pretrained(folder)

    @property
    def num_parameters(self) -> int:
        """Return the number of weights."""
        return sum(p.numel() for p in self._encoder.model.parameters())


class ExampleTokenizer:
    """Turns examples into the token ids of an encoder.

    Attributes:
        columns: Text columns in order; two of them go in as a pair of texts.
        label_names: Labels in the order of all score columns.
        max_length: Most tokens of an example (tokens).
    """

    def __init__(
        self,
        encoder: LoadedEncoder,
        *,
        columns: Sequence[str],
        label_names: Sequence[str],
        max_length: int | None = None,
    ) -> None:
        """Bind columns and labels to an encoder's tokenizer.

        Args:
            encoder: The encoder.
            columns: Text columns in order.
            label_names: The task's labels in order.
            max_length: Most tokens of an example (tokens); never more than the model's own limit,
                which None means.
        """
        self.columns = tuple(columns)
        self.label_names = tuple(label_names)
        limit = encoder.max_length
        self.max_length = limit if max_length is None else min(max_length, limit)
        self._tokenizer = encoder.tokenizer
        self._label_index = {name: i for i, name in enumerate(self.label_names)}

    def encode(
        self,
        examples: Sequence[Example],
        *,
        targets: Sequence[NDArray[np.float64] | None] | None = None,
    ) -> list[EncodedText]:
        """Encode examples; texts that are too long are shortened, and that is counted.

        Args:
            examples: With or without labels.
            targets: Share of each label for each example, (L,); (N,). None: all of it for the
                example's label, and no target where it has none.

        Raises:
            DataError: If an example has no token at all.
        """
        one_hot = np.eye(len(self.label_names))
        if targets is None:
            targets = [
                None if example.label is None else one_hot[self._label_index[example.label]]
                for example in examples
            ]
        return encode_texts(
            self._tokenizer,
            [[example.texts[column] for column in self.columns] for example in examples],
            ids=[example.id for example in examples],
            max_length=self.max_length,
            targets=targets,
        )


class EncoderLoss(Objective[EncodedText]):
    """The training objective of `encoder`: the loss of the head's scores against the targets.

    With one label a text that is the cross-entropy -sum over y of q(y) log p(y), with p the softmax
    of the scores and q the target; with several, the binary cross-entropy of each label. Class
    weights and the focal factor are those of `losses.py`.
    """

    def __init__(
        self,
        encoder: LoadedEncoder,
        *,
        multi_label: bool = False,
        class_weights: Tensor | None = None,
        focal_gamma: float = 0.0,
    ) -> None:
        """Bind the loss to an encoder.

        Args:
            encoder: With a classification head.
            multi_label: A text may have several of the labels, or none.
            class_weights: Weight of each label, on the encoder's device, (L,); None: all 1.
            focal_gamma: Exponent of the focal factor; 0: plain cross-entropy.
        """
        self.encoder = encoder
        self.loss = multi_label_loss_sum if multi_label else classification_loss_sum
        self.class_weights = class_weights
        self.focal_gamma = focal_gamma

    def plan(self, items: Sequence[EncodedText], token_budget: int) -> list[list[int]]:
        """Cut examples into batches of like length, at most `token_budget` tokens with padding."""
        lengths = [item.num_tokens for item in items]
        return plan_padded(lengths, token_budget, names=[item.id for item in items])

    def largest(self, items: Sequence[EncodedText]) -> int:
        """Return the tokens of the longest example."""
        return max(item.num_tokens for item in items)

    def loss_sum(self, items: Sequence[EncodedText]) -> Tensor:
        """Return the summed loss of examples, run as one padded batch (nats).

        Raises:
            DataError: If an example has no target.
        """
        targets = []
        for item in items:
            if item.target is None:
                raise DataError(f"{item.id} has no label, so it cannot be trained on.")
            targets.append(item.target)
        scores = self.encoder.logits(items)  # (B, L)
        wanted = torch.from_numpy(np.stack(targets)).to(scores)
        return self.loss(
            scores, wanted, class_weights=self.class_weights, focal_gamma=self.focal_gamma
        )


class EncoderScorer:
    """Scores examples with an encoder's classification head."""

    def __init__(
        self,
        encoder: LoadedEncoder,
        example_tokenizer: ExampleTokenizer,
        *,
        token_budget: int | None = None,
    ) -> None:
        """Bind an encoder to a task's columns.

        Args:
            encoder: With a classification head.
            example_tokenizer: Turns examples into token ids.
            token_budget: Most tokens of a batch, padding included (tokens). None: what fills the
                device, or the longest example.
        """
        self.encoder = encoder
        self.example_tokenizer = example_tokenizer
        self.token_budget = token_budget

    def log_probs(
        self, examples: Sequence[Example], *, advance: Callable[[int], None] | None = None
    ) -> NDArray[np.float64]:
        """Return log p(label | text), with one label a text, for every label and example, (N, L).

        Args:
            examples: Texts; labels are not looked at.
            advance: Called with the number of examples just finished.
        """
        log_probs: NDArray[np.float64] = log_softmax(self.scores(examples, advance=advance), axis=1)
        return log_probs

    def scores(
        self, examples: Sequence[Example], *, advance: Callable[[int], None] | None = None
    ) -> NDArray[np.float64]:
        """Return the head's scores, before softmax or sigmoid, (N, L); see `log_probs`."""
        return self.score_encoded(self.example_tokenizer.encode(examples), advance=advance)

    @torch.no_grad()
    def score_encoded(
        self, items: Sequence[EncodedText], *, advance: Callable[[int], None] | None = None
    ) -> NDArray[np.float64]:
        """Return the scores of examples that are encoded already, (N, L); see `log_probs`."""
        result = np.empty((len(items), len(self.example_tokenizer.label_names)))
        if not items:
            return result
        budget = self.token_budget or self.encoder.budget_for(items)
        lengths, names = [item.num_tokens for item in items], [item.id for item in items]
        with evaluation_mode(self.encoder.model):
            for batch in plan_padded(lengths, budget, names=names):
                scores = self.encoder.logits([items[i] for i in batch])
                result[batch] = scores.cpu().numpy()
                if advance is not None:
                    advance(len(batch))
        return result
