"""What a classifier says as one linear layer on the last hidden state, without a bias.

What a causal language model says of label words of one token each is a linear layer: the words'
rows of the LM head. Layers called `score` of transformers' classes have no bias, so a head's has
to go elsewhere.

Legend: N texts, L labels, D hidden width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import expit, softmax
from torch import Tensor

from taskfit.data import Example
from taskfit.errors import ModelError, SettingsError
from taskfit.export.check import Check, compare
from taskfit.methods.branches import BranchWords
from taskfit.methods.features import last_hidden
from taskfit.methods.head import Head
from taskfit.methods.label_words import LabelWords
from taskfit.methods.tree_method import TreeMethod
from taskfit.models.load import LoadedModel
from taskfit.runs.classifier import Classifier
from taskfit.tasks import PromptEncoder

# A bias below this changes no probability that anybody could see.
NO_BIAS = 1e-7
# Texts of the run by which a bias is put into the weights, half to find and half to check it; with
# fewer of them there is nothing to tell by.
BIAS_TEXTS, FEWEST_TEXTS = 128, 16
# Of the texts' mean square: keeps the direction from following single texts.
RIDGE = 0.01


def read_linear(classifier: Classifier) -> tuple[Tensor, Tensor]:
    """Return a classifier's scores as a linear layer, temperature included.

    Returns:
        Its weight, (L, D), and its bias, (L,), both float64.

    Raises:
        SettingsError: If label words have several tokens or labels several words.
        ModelError: If the model does more to its scores than a linear layer can.
    """
    method = classifier.method
    assert isinstance(method, TreeMethod)
    temperature = classifier.only.calibration.temperature
    if isinstance(method, Head):
        weight = method.head.weight.double()
        own = method.head.bias
        bias = weight.new_zeros(len(weight)) if own is None else own.double()
    else:
        weight, bias = _rows(method.model, label_tokens(method))
    weight, bias = weight.detach().cpu() / temperature, bias.detach().cpu() / temperature
    if not classifier.task.multi_label:
        # The softmax does not see what all labels share; smaller scores are rounded less.
        weight, bias = weight - weight.mean(dim=0), bias - bias.mean()
    return weight, bias


def label_tokens(method: TreeMethod, *, instead: str = "Use --merge, or fit") -> list[int]:
    """Return the token of each label's one word that decides.

    Args:
        method: Of a run with label words.
        instead: How a message says what else can be done.

    Raises:
        SettingsError: If no single token does.
    """
    encoder = method.encoder
    assert isinstance(encoder, PromptEncoder)
    several = [label.name for label in method.task.labels if len(label.words) > 1]
    if several:
        raise SettingsError(
            f"Label {several[0]!r} has several words, whose probabilities add up, and here a label "
            f"has one score. {instead} with one word a label (task.label_words)."
        )
    item = encoder.content_free(["a"])[0]
    reader = method.scorer.words if isinstance(method, LabelWords) else None
    if isinstance(reader, BranchWords):
        first = reader.first_tokens(item)
        if first is None:
            raise SettingsError(
                "Label words start with the same token for this model, so that a later one decides "
                f"between them, and here one token decides at once. {instead} with words that "
                "differ in their first tokens (task.label_words; `taskfit inspect` shows their "
                "tokens)."
            )
        return first
    if encoder.word_starts:
        short, long = encoder.word_starts[0]
        raise SettingsError(
            f"The label word {short!r} starts {long!r} for this model, so that a later token "
            f"decides between them, and here one token is read. {instead} with words that do not "
            "start each other (task.label_words)."
        )
    for candidate, ids in zip(encoder.candidates, item.completions, strict=True):
        if len(ids) > 1:
            raise SettingsError(
                f"The label word {candidate.word!r} has {len(ids)} tokens for this model, and here "
                f"one is read. {instead} with words of one token each (task.label_words; `taskfit "
                "inspect` shows their tokens)."
            )
    return [int(ids[0]) for ids in item.completions]


def _rows(model: LoadedModel, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return rows and biases of the LM head for tokens, with what the model does to its scores."""
    module = model.tree.model
    numbers = module.config.get_text_config().to_dict()
    if numbers.get("final_logit_softcapping"):
        raise ModelError(
            f"{type(module).__name__} bends its scores (final_logit_softcapping), which a sequence "
            "classification model does not; its probabilities would differ. Use --merge."
        )
    scale = float(numbers.get("logit_scale") or 1.0) / float(numbers.get("logits_scaling") or 1.0)
    head = module.get_output_embeddings()
    weight = head.weight[list(ids)].double() * scale  # (L, D)
    bias = weight.new_zeros(len(ids))
    if head.bias is not None:
        bias = head.bias[list(ids)].double() * scale
    return weight, bias


@torch.no_grad()
def bias_in_weight(
    classifier: Classifier, weight: Tensor, bias: Tensor, texts: Sequence[Example]
) -> tuple[Tensor, list[Check]]:
    """Return a linear layer's weight with its bias in it, checked on texts that it was not made by.

    Hidden states of one prompt have most of their length in common, so that there is a direction v
    with v h near 1 for the hidden state h of every text: W h + b is then near (W + b v) h. It is
    found by ridge regression of 1 on the hidden states.

    Args:
        classifier: Of the run.
        weight: (L, D).
        bias: (L,).
        texts: Of the run.

    Returns:
        The weight, (L, D), and what was compared; nothing where there is no bias.

    Raises:
        ModelError: If there are too few texts.
        CheckpointError: If probabilities change.
    """
    if float(bias.abs().max()) <= NO_BIAS:
        return weight, []
    if len(texts) < FEWEST_TEXTS:
        raise ModelError(
            "A sequence classification model has no bias of its own, and this run's scores have "
            f"one (up to {float(bias.abs().max()):.2g}). It can be put into the weights by texts "
            f"of the run's evaluation sets, but the run kept {len(texts)}; {FEWEST_TEXTS} are "
            "needed. Use --merge, which writes the head beside the model, or fit with --method "
            "label_words."
        )
    method = classifier.method
    assert isinstance(method, TreeMethod)
    items = method.encoder.encode(texts)
    parts = [items[place : place + FEWEST_TEXTS] for place in range(0, len(items), FEWEST_TEXTS)]
    hidden = torch.cat([last_hidden(method.model.tree, part).double().cpu() for part in parts])
    own, others = hidden[::2], hidden[1::2]  # (N/2, D) each
    gram = own @ own.T
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(own), dtype=gram.dtype)
    direction = own.T @ torch.linalg.solve(gram, torch.ones(len(own), dtype=gram.dtype))
    carried = weight + torch.outer(bias, direction)
    before, after = (
        expit(scores.numpy()) if classifier.task.multi_label else softmax(scores.numpy(), axis=1)
        for scores in (others @ weight.T + bias, others @ carried.T)
    )
    what = f"bias apart and in the weights ({len(others)} texts that it was not fitted on)"
    check = compare(np.asarray(before), np.asarray(after), what=what, dtype="float32")
    return carried, [check.require("putting the bias of the scores into their weights")]
