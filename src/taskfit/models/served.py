"""Which causal language models the token tree serves.

Those of causal attention, and hybrids whose recurrent states fork.
"""

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from taskfit.errors import ModelError, TaskfitError
from taskfit.models.evaluation_mode import evaluation_mode
from taskfit.models.forked_state import forks
from taskfit.models.multimodal import know_multimodal
from taskfit.models.out_of_memory import is_out_of_memory

# Layer types whose attention the tree can mask.
SERVED_LAYERS = {"full_attention", "sliding_attention"}
SEES_LATER = "what comes after a token changes its scores, as in an encoder"

# What a model's own code raises where it does not suit what it is called with.
OWN_ERRORS = (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError)


def is_of_model(error: Exception) -> bool:
    """Return whether one of `OWN_ERRORS` comes from a model's code: not ours, nor memory."""
    return not isinstance(error, TaskfitError) and not is_out_of_memory(error)


class UnservedError(ModelError):
    """A causal language model that the token tree does not serve; padded batches may.

    Attributes:
        reason: What is in the way, one clause.
    """

    def __init__(self, model: PreTrainedModel, reason: str) -> None:
        """Make the message."""
        super().__init__(
            f"{type(model).__name__} (model type {model.config.model_type}) cannot be served by "
            f"the token tree: {reason}."
        )
        self.reason = reason


def refuse_others(model: PreTrainedModel) -> None:
    """Raise if a model is no causal language model.

    Raises:
        ModelError: Naming the architecture and the reason.
    """
    config = model.config
    settings = config.get_text_config().to_dict()
    # What a type of encoders calls its models that see nothing of what comes later.
    as_decoder = settings.get("is_decoder") or settings.get("causal")
    if config.is_encoder_decoder:
        reason = "it is an encoder-decoder"
    elif model.get_output_embeddings() is None:
        reason = "it has no LM head"
    elif config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not as_decoder:
        reason = "it is an encoder, which sees what comes after a token"
    elif "lsh" in settings.get("attn_layers", ()):
        reason = "its attention is hashed: what a token sees hangs on those behind it"
    else:
        return
    raise unusable(model, reason)


def unusable(model: PreTrainedModel, reason: str) -> ModelError:
    """Return the error that no engine runs a model."""
    return ModelError(
        f"{type(model).__name__} (model type {model.config.model_type}) cannot be used: {reason}. "
        "Use a causal language model such as Llama, Mistral, Qwen, Gemma, Phi, GPT-2, GPT-NeoX or "
        "OPT."
    )


@torch.no_grad()
def sees_later(model: PreTrainedModel) -> bool:
    """Return whether a model's scores of tokens change with what comes after them."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(0, vocabulary, (1, 9), generator=torch.Generator().manual_seed(0))
    longer, shorter = ids.to(model.device), ids[:, :6].to(model.device)
    with evaluation_mode(model):
        scores = model(longer, use_cache=False).logits[0, :6].float()
        alone = model(shorter, use_cache=False).logits[0].float()
    return float((scores - alone).abs().max()) > 0.01 * float(alone.std())


def refuse_unserved(model: PreTrainedModel) -> None:
    """Raise if a model has layers other than causal attention and recurrences that fork.

    Raises:
        UnservedError: If it is a causal language model of another kind.
        ModelError: If it is none.
    """
    refuse_others(model)
    reason = why_not_served(model.config, type(model))
    if reason is not None:
        raise UnservedError(model, reason)


def why_not_served(config: PretrainedConfig, kind: type[PreTrainedModel]) -> str | None:
    """Return why the token tree does not serve a causal language model, one clause; None: it may.

    Args:
        config: Of the model.
        kind: Its class.
    """
    if forks(config):
        return None
    settings = config.get_text_config().to_dict()
    other = set(settings.get("layer_types") or ()) - SERVED_LAYERS
    # What RecurrentGemma calls them.
    other |= set(settings.get("block_types") or ()) - {"attention"}
    other_layers = sorted(other)
    if other_layers:
        return f"layers that are not pure causal attention ({', '.join(other_layers)})"
    if not kind._supports_attention_backend:
        return (
            "attention that cannot be replaced in transformers (recurrent or convolutional state, "
            "biases such as ALiBi, or code of its own)"
        )
    return None


def refusal_of(config: PretrainedConfig) -> str | None:
    """Return what `why_not_served` says of the class that transformers has for a configuration.

    None also where there is no class. Nothing is loaded; loading may find more reasons.
    """
    know_multimodal(config)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    return why_not_served(config, MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])


def padded_note(refusal: str) -> str:
    """Return what people should know of a model that the tree does not serve.

    Args:
        refusal: Why it does not, one clause.
    """
    return (
        f"the model runs in padded batches, not as token trees, since it has {refusal}: texts that "
        "start alike share little or no work"
    )
