"""Multimodal models as language models: what they read beside text is left alone."""

from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)


def know_multimodal(config: PretrainedConfig) -> None:
    """Let transformers build and load a model of images and text where it asks for a causal one.

    Its own table of causal models has some of them and not others. Whether the text part is a
    causal language model is found out when the model is loaded, as for all models.
    """
    kind = type(config)
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING or kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return
    found = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[kind]
    if found.config_class is kind:  # transformers takes no other
        AutoModelForCausalLM.register(kind, found, exist_ok=True)
