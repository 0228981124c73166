"""A classifier as a standard sequence classification model, with the same probabilities.

Transformers' classes for sequence classification have a layer `score`, without a bias, on the last
hidden state at the last token that is not padding: just what `scores.read_linear` reads.

Legend: N texts, L labels, D hidden width.
"""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit, softmax
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from taskfit.data import Example
from taskfit.errors import ModelError, SettingsError
from taskfit.export.check import Check, Exported, FloatArray
from taskfit.export.entry import Entry, find_entry
from taskfit.export.merge import Merged, cast_weights
from taskfit.export.scores import BIAS_TEXTS, NO_BIAS, bias_in_weight, read_linear
from taskfit.export.source import Source
from taskfit.methods.tree_method import TreeMethod
from taskfit.models.build import build
from taskfit.models.load import DTYPES, LoadedModel
from taskfit.runs.classifier import Classifier
from taskfit.tasks import Task

SERVED = ("label_words", "distill", "head")


def check_served(source: Source, form: str) -> None:
    """Raise, before any model is loaded, if a run has no label words and no head.

    Raises:
        SettingsError: If its method has neither.
    """
    if source.method not in SERVED:
        raise SettingsError(
            f"An export as a classifier (here {form}) is for runs of {', '.join(SERVED)}; "
            f"{source.folder} is a run of {source.method}. Use --merge."
        )


def export_classification(source: Source, merged: Merged, folder: Path) -> tuple[Exported, Entry]:
    """Fill a folder with a sequence classification model, and check its probabilities.

    What came of it comes with how texts go in.

    Args:
        source: A run of label_words, distill or head; see `check_served`.
        merged: Its weights; the model is given back on the way.
        folder: To fill.

    Raises:
        TaskfitError: If it cannot be exact, or the result says something else.
    """
    classifier = source.classifier(merged.model)
    method, temperature = classifier.method, classifier.only.calibration.temperature
    assert isinstance(method, TreeMethod)
    entry = find_entry(method.encoder, padded(merged.model.tokenizer), source.examples)
    texts = source.measured(BIAS_TEXTS)
    bias_checks = save_classification(merged, classifier, folder, texts=texts)
    entry.save(folder)
    del classifier, method
    merged.drop_model()
    inputs = [entry.texts(source.examples[place]) for place in entry.places]
    checks = merged.compare_written(
        lambda dtype: plain_probabilities(folder, inputs, dtype=DTYPES[dtype]),
        after="the change to sequence classification",
        places=entry.places,
    )
    checks = [*merged.checks, *bias_checks, *checks]
    return Exported(checks, score_notes(entry, temperature), use=entry.use), entry


def score_notes(entry: Entry, temperature: float) -> list[str]:
    """Return what the card says of how texts go in and of the scores."""
    if temperature == 1:
        return list(entry.notes)
    return [*entry.notes, f"The fitted temperature {temperature:.4g} is in the scores."]


def padded(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer with a token to pad with: its own, or the one that ends texts.

    Raises:
        SettingsError: If it has neither.
    """
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise SettingsError(
                "The tokenizer has no token to pad with, nor one that ends texts. Use --merge."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def class_settings(model: LoadedModel, task: Task) -> dict[str, Any]:
    """Return what the configuration of a sequence classification model says of the labels.

    Raises:
        ModelError: If the architecture has no such class.
    """
    module = model.tree.model
    if type(module.config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"transformers has no sequence classification class for {type(module).__name__} "
            f"(model type {module.config.model_type}). Use --merge."
        )
    kind = "multi_label" if task.multi_label else "single_label"
    return {
        "id2label": dict(enumerate(task.label_names)),
        "label2id": {name: index for index, name in enumerate(task.label_names)},
        "problem_type": f"{kind}_classification",
        "pad_token_id": padded(model.tokenizer).pad_token_id,
    }


def save_classification(
    merged: Merged, classifier: Classifier, folder: Path, *, texts: Sequence[Example] = ()
) -> list[Check]:
    """Write the decoder with the linear layer as transformers' own sequence classification model.

    Args:
        merged: The weights.
        classifier: With them.
        folder: To fill.
        texts: Of the run, to put a bias into the weights by where the final norm cannot take it.

    Returns:
        What was compared where that was done.

    Raises:
        TaskfitError: If the architecture has no such class, or no place for a bias; see also
            `read_linear`.
    """
    weight, bias = read_linear(classifier)
    module = merged.model.tree.model
    config = copy.deepcopy(module.config)
    for name, value in class_settings(merged.model, classifier.task).items():
        setattr(config, name, value)
    config.get_text_config().pad_token_id = config.pad_token_id
    config.dtype = DTYPES[merged.dtype]
    shift, checks = None, list[Check]()
    if float(bias.abs().max()) > NO_BIAS:
        shift = _bias_in_norm(module.base_model, weight, bias)
        if shift is None:
            weight, checks = bias_in_weight(classifier, weight, bias, texts)
    with torch.device("meta"):
        model: PreTrainedModel = build(
            AutoModelForSequenceClassification.from_config, config, attn_implementation="eager"
        )
    body = module.base_model
    setattr(model, model.base_model_prefix, body)
    cast_weights(merged.model, merged.dtype)
    weights = dict(model.state_dict())
    # These few numbers stay in float32; who loads the model in 16 bits rounds them then.
    weights["score.weight"] = weight.float().contiguous()
    if shift is not None:
        name, shifted = shift
        weights[f"{model.base_model_prefix}.{name}"] = shifted
    model.save_pretrained(folder, state_dict=weights)
    return checks


def _bias_in_norm(body: nn.Module, weight: Tensor, bias: Tensor) -> tuple[str, Tensor] | None:
    """Return the final norm's bias with the scores' bias in it, and its name.

    The scores are W (norm(x) + b), so b may be shifted by any d with W d = bias: the smallest is
    the pseudo-inverse of W times the bias. Exact where the final norm has a bias (LayerNorm); None
    where it has none (RMSNorm), or the labels' rows leave no such shift.
    """
    norms = {
        name: module
        for name, module in body.named_modules()
        if isinstance(module, nn.LayerNorm)
        and module.bias is not None
        and not re.search(r"\.\d+\.", f".{name}.")
        and "embed" not in name
    }
    projections = [m for name, m in body.named_modules() if name.endswith("project_out")]
    if projections and projections[0] is not None:
        weight = weight @ projections[0].weight.detach().double().cpu()
    if len(norms) != 1:
        return None
    ((name, norm),) = norms.items()
    shift = torch.linalg.pinv(weight) @ bias
    if float((weight @ shift - bias).abs().max()) > 1e-6 * float(bias.abs().max()):
        return None
    return f"{name}.bias", (norm.bias.detach().double().cpu() + shift).float()


@torch.no_grad()
def plain_probabilities(
    folder: Path, inputs: Sequence[Sequence[str]], *, dtype: torch.dtype
) -> FloatArray:
    """Return probabilities as anybody gets them who knows only the folder, (N, L).

    Args:
        folder: With the model and its tokenizer.
        inputs: Of each example what its tokenizer takes: a text, or text and pair.
        dtype: To load in.
    """
    model = build(AutoModelForSequenceClassification.from_pretrained, folder, dtype=dtype)
    return model_probabilities(model.eval(), folder, inputs)


@torch.no_grad()
def model_probabilities(
    model: PreTrainedModel, folder: Path, inputs: Sequence[Sequence[str]]
) -> FloatArray:
    """Return a sequence classification model's probabilities, with the tokenizer of a folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = [tokenizer(*one, return_tensors="pt") for one in inputs]
    return probabilities_of_scores(
        np.stack([model(**one).logits[0].double().numpy() for one in tokens]),
        several=model.config.problem_type == "multi_label_classification",
    )


def probabilities_of_scores(scores: FloatArray, *, several: bool) -> FloatArray:
    """Return probabilities of scores, (N, L); the sigmoid's where texts have several labels."""
    return np.asarray(expit(scores) if several else softmax(scores, axis=1))
