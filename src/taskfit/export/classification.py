"""A classifier as a standard sequence classification model, with the same probabilities.

What a causal language model says of label words of one token each is a linear layer on the last
hidden state: the words' rows of the LM head. Transformers' classes for sequence classification have
just such a layer, `score`, without a bias, read at the last token that is not padding.

Legend: N texts, L labels, D hidden width.
"""

import copy
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.special import expit, softmax
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from taskfit.errors import ModelError, SettingsError
from taskfit.export.check import Check, FloatArray
from taskfit.export.merge import Merged, cast_weights
from taskfit.export.prompt import find_prompt
from taskfit.export.source import Source
from taskfit.methods.branches import BranchWords
from taskfit.methods.head import Head
from taskfit.methods.label_words import LabelWords
from taskfit.methods.tree_method import TreeMethod
from taskfit.models.load import DTYPES, LoadedModel
from taskfit.runs.classifier import Classifier
from taskfit.tasks import PromptEncoder

SERVED = ("label_words", "distill", "head")
PROMPT_FILE = "prompt.json"
# A bias below this changes no probability that anybody could see.
NO_BIAS = 1e-7


def check_served(source: Source) -> None:
    """Raise, before any model is loaded, if a run has no label words and no head.

    Raises:
        SettingsError: If its method has neither.
    """
    if source.method not in SERVED:
        raise SettingsError(
            f"--as sequence-classification is for runs of {', '.join(SERVED)}; {source.folder} is "
            f"a run of {source.method}. Use --merge."
        )


def export_classification(
    source: Source, merged: Merged, folder: Path
) -> tuple[list[Check], list[str]]:
    """Fill a folder with a sequence classification model, and check its probabilities.

    Args:
        source: A run of label_words, distill or head; see `check_served`.
        merged: Its weights; the model is given back on the way.
        folder: To fill.

    Returns:
        What was compared, and notes for the card: the prompt that texts must be put into.

    Raises:
        TaskfitError: If it cannot be exact, or the result says something else.
    """
    classifier = source.classifier(merged.model)
    method, temperature = classifier.method, classifier.only.calibration.temperature
    assert isinstance(method, TreeMethod)
    prompt, whole = find_prompt(method.encoder, merged.model.tokenizer, source.examples)
    save_classification(merged, classifier, folder)
    prompt.save(folder / PROMPT_FILE)
    del classifier, method
    merged.drop_model()
    merged.expected = merged.expected[whole]
    merged.run = None if merged.run is None else merged.run[whole]
    texts = [prompt.fill(source.examples[i].texts) for i in whole]
    checks = merged.compare_written(
        lambda dtype: plain_probabilities(folder, texts, dtype=DTYPES[dtype]),
        after="the change to sequence classification",
    )
    shown = "".join(v if kind == "text" else "{" + v + "}" for kind, v in prompt.pieces)
    notes = [
        "Texts must be put into the prompt of `prompt.json` first, as below; without it the "
        "probabilities mean nothing. A text that is too long must be shortened itself: "
        "cutting the prompt at its end (`truncation=True`) would lose the question. Longest "
        f"prompt: {prompt.max_length:,} tokens.\n\n```\n{shown}\n```"
    ]
    if temperature != 1:
        notes.append(f"The fitted temperature {temperature:.4g} is in the scores.")
    return checks, notes


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
        weight, bias = method.head.weight.double(), method.head.bias.double()
    else:
        weight, bias = _rows(method.model, _label_tokens(method))
    weight, bias = weight.detach().cpu() / temperature, bias.detach().cpu() / temperature
    if not classifier.task.multi_label:
        # The softmax does not see what all labels share; smaller scores are rounded less.
        weight, bias = weight - weight.mean(dim=0), bias - bias.mean()
    return weight, bias


def _label_tokens(method: TreeMethod) -> list[int]:
    """Return the token of each label's one word that decides."""
    encoder = method.encoder
    assert isinstance(encoder, PromptEncoder)
    several = [label.name for label in method.task.labels if len(label.words) > 1]
    if several:
        raise SettingsError(
            f"Label {several[0]!r} has several words, whose probabilities add up; a sequence "
            "classification model has one score a label. Use --merge, or fit with one word a label "
            "(task.label_words)."
        )
    item = encoder.content_free(["a"])[0]
    reader = method.scorer.words if isinstance(method, LabelWords) else None
    if isinstance(reader, BranchWords):
        first = reader.first_tokens(item)
        if first is None:
            raise SettingsError(
                "Label words start with the same token for this model, so that a later one decides "
                "between them; a sequence classification model decides at once. Use --merge, or "
                "fit with words that differ in their first tokens (task.label_words; `taskfit "
                "inspect` shows their tokens)."
            )
        return first
    if encoder.word_starts:
        short, long = encoder.word_starts[0]
        raise SettingsError(
            f"The label word {short!r} starts {long!r} for this model, so that a later token "
            "decides between them; a sequence classification model reads one. Use --merge, or fit "
            "with words that do not start each other (task.label_words)."
        )
    for candidate, ids in zip(encoder.candidates, item.completions, strict=True):
        if len(ids) > 1:
            raise SettingsError(
                f"The label word {candidate.word!r} has {len(ids)} tokens for this model; a "
                "sequence classification model reads one. Use --merge, or fit with words of one "
                "token each (task.label_words; `taskfit inspect` shows their tokens)."
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


def save_classification(merged: Merged, classifier: Classifier, folder: Path) -> None:
    """Write the decoder with the linear layer as transformers' own sequence classification model.

    Raises:
        ModelError: If the architecture has no such class, or no place for a bias; see also
            `read_linear`.
        SettingsError: If there is no token to pad with.
    """
    weight, bias = read_linear(classifier)
    module, tokenizer = merged.model.tree.model, merged.model.tokenizer
    config = copy.deepcopy(module.config)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"transformers has no sequence classification class for {type(module).__name__} "
            f"(model type {config.model_type}). Use --merge."
        )
    if tokenizer.pad_token_id is None:
        raise SettingsError("The tokenizer has no token to pad with. Use --merge.")
    names = classifier.task.label_names
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = (
        "multi_label_classification"
        if classifier.task.multi_label
        else "single_label_classification"
    )
    config.get_text_config().pad_token_id = config.pad_token_id = tokenizer.pad_token_id
    config.dtype = DTYPES[merged.dtype]
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
            config, attn_implementation="eager"
        )
    body = module.base_model
    setattr(model, model.base_model_prefix, body)
    cast_weights(merged.model, merged.dtype)
    weights = dict(model.state_dict())
    # These few numbers stay in float32; who loads the model in 16 bits rounds them then.
    weights["score.weight"] = weight.float().contiguous()
    if float(bias.abs().max()) > NO_BIAS:
        name, shifted = _bias_in_norm(body, weight, bias)
        weights[f"{model.base_model_prefix}.{name}"] = shifted
    model.save_pretrained(folder, state_dict=weights)
    # Absolute positions count from the left end.
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(folder)


def _bias_in_norm(body: nn.Module, weight: Tensor, bias: Tensor) -> tuple[str, Tensor]:
    """Return the final norm's bias with the scores' bias in it, and its name.

    The scores are W (norm(x) + b), so b may be shifted by any d with W d = bias: the smallest is
    the pseudo-inverse of W times the bias. Exact where the final norm has a bias (LayerNorm).

    Raises:
        ModelError: If it has none (RMSNorm), or the labels' rows leave no such shift.
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
        raise ModelError(
            "A sequence classification model has no bias of its own, and this run's scores have "
            f"one (up to {float(bias.abs().max()):.2g}). It can be put into a final "
            f"LayerNorm, but {type(body).__name__} ends without one. Use --merge, which writes the "
            "head beside the model, or fit with --method label_words."
        )
    ((name, norm),) = norms.items()
    shift = torch.linalg.pinv(weight) @ bias
    if float((weight @ shift - bias).abs().max()) > 1e-6 * float(bias.abs().max()):
        raise ModelError(
            f"The {len(bias)} labels' rows depend on each other, so that their bias cannot "
            "be put into the final norm. Use --merge."
        )
    return f"{name}.bias", (norm.bias.detach().double().cpu() + shift).float()


@torch.no_grad()
def plain_probabilities(folder: Path, texts: Sequence[str], *, dtype: torch.dtype) -> FloatArray:
    """Return probabilities as anybody gets them who knows only the folder and the prompts, (N, L).

    Args:
        folder: With the model and its tokenizer.
        texts: Prompts.
        dtype: To load in.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    model.eval()
    inputs = [tokenizer(text, return_tensors="pt") for text in texts]
    scores = np.stack([model(**one).logits[0].double().numpy() for one in inputs])
    if model.config.problem_type == "multi_label_classification":
        return np.asarray(expit(scores))
    return np.asarray(softmax(scores, axis=1))
