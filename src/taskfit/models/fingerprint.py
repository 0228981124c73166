"""What tells two models apart, whatever their names: caches of what they compute are kept by it."""

import hashlib

from transformers import PreTrainedModel

# Numbers of each weight that are looked at. All of them would take longer than reading some texts;
# training moves nearly every number, so any of them gives a changed model away.
SAMPLED = 64


def fingerprint(model: PreTrainedModel, *, beside: str = "") -> str:
    """Return a digest of a model: its weights decide, not its name.

    Args:
        model: The model.
        beside: What else decides about what is computed of a text.
    """
    digest = hashlib.sha256((str(model.dtype) + beside).encode())
    for name, parameter in model.named_parameters():
        step = max(1, parameter.numel() // SAMPLED)
        sample = parameter.detach().reshape(-1)[::step][:SAMPLED].float().cpu().numpy()
        digest.update(name.encode() + str(tuple(parameter.shape)).encode() + sample.tobytes())
    return digest.hexdigest()[:24]
