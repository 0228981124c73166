"""Load the weights of an encoder, with or without a classification head."""

from dataclasses import dataclass

import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from taskfit.errors import ModelError
from taskfit.models.build import build
from taskfit.models.packaged import PACKAGED_ENCODERS, is_packaged, locate_model
from taskfit.models.whole import load_whole


@dataclass(frozen=True, slots=True)
class EncoderSource:
    """Where an encoder's weights come from.

    Attributes:
        name: As the user gave it.
        folder: A local folder, or a hub id.
        dtype: Number format to load the weights in.
    """

    name: str
    folder: str
    dtype: torch.dtype


def locate_encoder(name: str) -> str:
    """Return the folder of a packaged or local encoder, or the hub id itself.

    Raises:
        ModelError: If there is no such folder, or it holds no model.
    """
    if is_packaged(name):
        raise ModelError(_not_an_encoder(name, "a decoder-only causal language model"))
    kind = "An encoder is a folder, a hub id such as google-bert/bert-base-uncased"
    return locate_model(name, PACKAGED_ENCODERS, kind=kind)


def refuse_other_kinds(name: str, config: PretrainedConfig) -> None:
    """Raise if a model is not an encoder of texts.

    Raises:
        ModelError: Naming what it is.
    """
    kind = f"model type {config.model_type}"
    if config.is_encoder_decoder:
        raise ModelError(_not_an_encoder(name, f"an encoder-decoder ({kind})"))
    # BERT and its kin can be set up as decoders; then tokens do not see what comes after them.
    if config.to_dict().get("is_decoder") or (
        config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    ):
        raise ModelError(_not_an_encoder(name, f"a decoder-only causal language model ({kind})"))
    if config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise ModelError(_not_an_encoder(name, f"a {kind}, which has no masked language model"))


def _not_an_encoder(name: str, found: str) -> str:
    return (
        f"{name} is {found}, but an encoder is needed here: a model such as BERT, RoBERTa, "
        f"DeBERTa, ELECTRA, MPNet or ModernBERT, or one of: {', '.join(PACKAGED_ENCODERS)}. "
        "Causal models go into model.name."
    )


def load_weights(
    source: EncoderSource,
    auto_class: type[AutoModel | AutoModelForSequenceClassification],
    config: PretrainedConfig,
) -> tuple[PreTrainedModel, list[str]]:
    """Load a model; also return which weights outside the encoder the checkpoint did not have.

    Raises:
        ModelError: As `load_whole`, of the encoder itself.
    """
    model, names = load_whole(
        auto_class.from_pretrained,
        source.folder,
        source.name,
        heads=True,
        config=config,
        dtype=source.dtype,
    )
    return model, list(names.new)


def load_saved_head(
    source: EncoderSource, config: PretrainedConfig, num_labels: int
) -> PreTrainedModel:
    """Load a trained classifier with its head.

    Raises:
        ModelError: If there is no head, or it is for another number of labels.
    """
    model, absent = load_weights(source, AutoModelForSequenceClassification, config)
    if absent:
        raise ModelError(
            f"{source.name} has no trained classification head: {', '.join(absent)} missing. Train "
            "it first (method.name=encoder)."
        )
    if config.num_labels != num_labels:
        raise ModelError(
            f"The classification head of {source.name} has {config.num_labels} labels; the task "
            f"has {num_labels}. Use the model that was trained for this task."
        )
    return model


def load_new_head(
    source: EncoderSource, config: PretrainedConfig, num_labels: int, *, seed: int
) -> PreTrainedModel:
    """Load an encoder under a new classification head, whatever head it was saved with."""
    was_classifier = any("ForSequenceClassification" in n for n in config.architectures or ())
    config.num_labels = num_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, _ = load_weights(source, AutoModelForSequenceClassification, config)
        if was_classifier:
            # A head trained for another task would start with its opinions on labels of ours.
            fresh = build(AutoModelForSequenceClassification.from_config, config)
            with torch.no_grad():
                for name, parameter in fresh.named_parameters():
                    if not name.startswith(f"{model.base_model_prefix}."):
                        model.get_parameter(name).copy_(parameter)
    return model
