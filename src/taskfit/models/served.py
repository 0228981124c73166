"""Which causal language models the token tree serves: those of pure causal attention."""

from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from taskfit.errors import ModelError

# Layer types whose attention the tree can mask.
SERVED_LAYERS = {"full_attention", "sliding_attention"}


def refuse_unserved(model: PreTrainedModel) -> None:
    """Raise if a model's layers are not pure causal attention that can be masked from outside.

    Raises:
        ModelError: Naming the architecture and the reason.
    """
    name = type(model).__name__
    config = model.config
    reason = ""
    settings = config.get_text_config().to_dict()
    other_layers = sorted(set(settings.get("layer_types") or ()) - SERVED_LAYERS)
    if config.is_encoder_decoder:
        reason = "it is an encoder-decoder; the tree serves decoders only"
    elif model.get_output_embeddings() is None:
        reason = "it has no LM head"
    elif other_layers:
        reason = f"it has layers that are not pure causal attention ({', '.join(other_layers)})"
    elif not model._supports_attention_backend:
        reason = (
            "its attention cannot be replaced in transformers (recurrent or convolutional state, "
            "attention biases such as ALiBi, or an encoder)"
        )
    elif config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        reason = "it is an encoder, which sees what comes after a token"
    if reason:
        raise ModelError(
            f"{name} (model type {config.model_type}) cannot be served by the token tree: "
            f"{reason}. Use a decoder-only model such as Llama, Mistral, Qwen, Gemma, Phi, GPT-2, "
            f"GPT-NeoX or OPT."
        )
