"""Classification head: a linear layer on the hidden state of the last token.

Legend: N examples, D hidden width, L labels.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.special import expit, softmax
from torch import Tensor, nn

from taskfit.data import Example
from taskfit.method_settings import HeadSettings, as_method
from taskfit.methods.features import feature_encoder, last_hidden, prompt_alone
from taskfit.methods.label_rows import fill_label_rows
from taskfit.methods.losses import (
    LossSum,
    classification_loss_sum,
    label_targets,
    multi_label_loss_sum,
)
from taskfit.methods.method import Advance, FloatArray, MethodContext, MethodState, StartingPoint
from taskfit.methods.objective import Objective, TreeObjective
from taskfit.methods.probe import Probe
from taskfit.methods.reading import PrefixCache, read_prompts
from taskfit.methods.tree_method import TreeMethod
from taskfit.models.causal_model import CausalModel
from taskfit.tasks import EncodedExample
from taskfit.tasks.text_encoder import TextEncoder
from taskfit.tree import IntArray

WEIGHT, BIAS = "head.weight", "head.bias"
# Of a probe's scores when the head starts from it.
PROBE_SHARE = 0.3


class Head(TreeMethod):
    """Trains a linear head together with the model's weights or adapter.

    The head is always trained, and saved with the run, whatever `adapter.weights` says. It starts
    from zero, so that the first prediction is undecided and not random, or from what `method.start`
    says. It has no bias, so that classes of sequence classification, which have none, say the same:
    hidden states of one prompt have a direction in common, which does as much. Where it starts from
    a probe, or from a run of earlier versions, it keeps theirs.
    """

    serves_multi_label = True
    settings: HeadSettings

    def __init__(self, context: MethodContext) -> None:
        """Make the head."""
        super().__init__(context, feature_encoder(context))
        lm_head = self.model.tree.model.get_output_embeddings()
        self.head = nn.Linear(lm_head.weight.shape[1], len(self.task.labels))
        nn.init.zeros_(self.head.weight)
        self.head.register_parameter("bias", None)
        self.head.to(self.model.tree.device)
        self._prefixes = PrefixCache(self.model.tree, self.encoder)

    def prepare(self, train: Sequence[Example], validation: Sequence[Example]) -> None:
        """Measure class weights, and start the head from a finished run, or as the settings say."""
        super().prepare(train, validation)
        if self.context.start is not None:
            self._start_from_run(self.context.start)
        elif self.settings.start == "probe":
            self._start_from_probe(train)
        elif self.settings.start == "words":
            self._start_from_words()

    @torch.no_grad()
    def _start_from_probe(self, train: Sequence[Example]) -> None:
        """Take the logistic regression on the untuned features, less sure than it is.

        A regression that fits its training texts to the last leaves no gradient to learn from.
        """
        own = as_method(self.settings, "probe", features="model")
        settings = self.context.settings.model_copy(update={"method": own})
        probe = Probe(replace(self.context, settings=settings))
        probe.prepare(train, ())
        weight, bias = probe.weights_of_features()
        self.head.weight.copy_(torch.from_numpy(PROBE_SHARE * weight))
        self._bias().copy_(torch.from_numpy(PROBE_SHARE * bias))

    @torch.no_grad()
    def _start_from_run(self, start: StartingPoint) -> None:
        """Take the rows of another head's labels; a label that it did not have stays undecided."""
        saved = {name: torch.from_numpy(value) for name, value in start.state.arrays.items()}
        fill_label_rows(self.head.weight, saved[WEIGHT], start.labels, self.task.label_names)
        if BIAS in saved:
            fill_label_rows(self._bias(), saved[BIAS], start.labels, self.task.label_names)

    def _bias(self) -> nn.Parameter:
        """Return the head's bias, which it gets now if it had none."""
        if self.head.bias is None:
            self.head.bias = nn.Parameter(torch.zeros_like(self.head.weight[:, 0]))
        return self.head.bias

    @torch.no_grad()
    def _start_from_words(self) -> None:
        """Take the LM head's rows of each label's first word, their mean taken off.

        Where the text stands in the prompt, the first answers are then those of the model itself.
        """
        rows = self.model.tree.model.get_output_embeddings().weight
        allowed = self.task.allow_control_tokens
        encoder = TextEncoder(self.model.tokenizer, allow_control_tokens=allowed)
        words = (encoder.ids(encoder.shield(label.words[0])) for label in self.task.labels)
        starts = [rows[torch.tensor(ids, device=rows.device)].float().mean(dim=0) for ids in words]
        weight = torch.stack(starts)  # (L, D)
        self.head.weight.copy_(weight - weight.mean(dim=0))

    def make_trainable(self) -> dict[str, nn.Parameter]:
        """Return the model's trainable weights and the head's."""
        own = {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}
        return {**super().make_trainable(), **own}

    def objective(self) -> Objective[EncodedExample]:
        """Return the cross-entropy of the head's scores."""
        loss = multi_label_loss_sum if self.task.multi_label else classification_loss_sum
        return HeadLoss(self.model.tree, self.head, self.weighted(loss))

    def probabilities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> FloatArray:
        """Return softmax (sigmoid with several labels a text) of the head's scores, (N, L)."""
        items = self.encoder.encode(examples)
        scores = read_prompts(
            self._prefixes,
            items,
            np.empty((len(items), len(self.task.labels))),
            sequences=prompt_alone,
            read=lambda found, prefix: self.head(
                last_hidden(self.model.tree, found, prefix=prefix).float()
            ),
            token_budget=self.context.settings.training.score_token_budget,
            advance=advance,
        )
        return np.asarray(expit(scores) if self.task.multi_label else softmax(scores, axis=1))

    def weights_changed(self) -> None:
        """Drop the cached prefix."""
        self._prefixes.forget()

    def supervised(self, item: EncodedExample) -> str:
        """Return the gold labels."""
        assert item.target is not None
        names = [
            name for name, share in zip(self.task.label_names, item.target, strict=True) if share
        ]
        return f" «{', '.join(names)}»"

    def state(self) -> MethodState:
        """Return the head's weights."""
        named = {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}
        return MethodState(arrays={name: p.detach().cpu().numpy() for name, p in named.items()})

    @torch.no_grad()
    def restore(self, state: MethodState) -> None:
        """Continue with saved weights.

        Raises:
            ValueError: If they are of another shape, which `copy_` might spread over the labels.
        """
        parameters = {WEIGHT: self.head.weight}
        if BIAS in state.arrays:
            parameters[BIAS] = self._bias()
        for name, parameter in parameters.items():
            saved = state.arrays[name]
            if saved.shape != tuple(parameter.shape):
                raise ValueError(f"{name} is {saved.shape}, not {tuple(parameter.shape)}")
            parameter.copy_(torch.from_numpy(saved))

    @property
    def num_parameters(self) -> int:
        """Return the weights of model and head."""
        return super().num_parameters + sum(p.numel() for p in self.head.parameters())


class HeadLoss(TreeObjective[EncodedExample]):
    """The training objective of `head`: cross-entropy of the head's scores against the targets."""

    def __init__(self, model: CausalModel, head: nn.Linear, loss: LossSum) -> None:
        """Bind the loss to a model and a head.

        Args:
            model: The model in training.
            head: From hidden width to labels, in float32.
            loss: Of scores and targets.
        """
        self.model = model
        self.head = head
        self.loss = loss

    def sequences(self, item: EncodedExample) -> list[IntArray]:
        """Return the prompt."""
        return prompt_alone(item)

    def loss_sum(self, items: Sequence[EncodedExample]) -> Tensor:
        """Return the summed loss of labelled examples, run as one tree (nats)."""
        scores = self.head(last_hidden(self.model, items).float())  # (N, L)
        return self.loss(scores, label_targets([item.target for item in items], self.model.device))
