"""How a sentence encoder makes one vector of a text's hidden states: as it was trained to.

Sentence encoders are published as a chain of modules, the format of sentence-transformers (Reimers
& Gurevych 2019): `modules.json` names them, and the pooling has a `config.json` of its own.

Legend: B texts of a batch, T tokens of its longest, D hidden width.
"""

import json
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.utils import cached_file

from taskfit.errors import ModelError
from taskfit.models.encoder_weights import EncoderSource

Pooling = Literal["mean", "cls", "max"]
POOLINGS: dict[str, Pooling] = {
    "": "mean",  # no switch is on
    "mean": "mean",
    # The sum over the root of the number of tokens: the mean's direction, and length 1 as well.
    "mean_sqrt_len": "mean",
    "cls": "cls",
    "max": "max",
}
# Modules that leave a vector's direction alone, or are the encoder and its pooling.
KNOWN_MODULES = {"Transformer", "Pooling", "Normalize", "Dropout"}


def read_pooling(source: EncoderSource) -> Pooling:
    """Return the pooling that an encoder was published with; the mean where nothing is said.

    Raises:
        ModelError: If it makes its vectors in a way that is not known here.
    """
    pooling: Pooling = "mean"
    for module in _read_json(source, "modules.json") or []:
        kind = module["type"].rpartition(".")[2]
        if kind not in KNOWN_MODULES:
            raise ModelError(_refusal(source, f"a module {kind} (modules.json)"))
        if kind == "Pooling":
            config = _read_json(source, f"{module['path']}/config.json") or {}
            pooling = _pooling_of(source, config)
    return pooling


def pool(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Make one vector of each text's hidden states.

    Args:
        states: Last hidden states, padded on the right, (B, T, D).
        mask: True for tokens of the texts, special tokens included, (B, T).
        pooling: mean: over the tokens; cls: the first token's; max: the largest of each number.

    Returns:
        Vectors of length 1 in float32, (B, D).
    """
    states, inside = states.float(), mask.unsqueeze(-1)
    if pooling == "cls":
        vectors = states[:, 0]
    elif pooling == "max":
        vectors = torch.where(inside, states, -torch.inf).amax(dim=1)
    else:
        # Not a product: what is not finite in the padding would survive a factor of 0.
        vectors = torch.where(inside, states, 0.0).sum(dim=1) / inside.float().sum(dim=1)
    return torch.nn.functional.normalize(vectors, dim=-1)


def _pooling_of(source: EncoderSource, config: dict[str, Any]) -> Pooling:
    """Read a pooling's settings: a name or several, or a switch for each, as was usual before."""
    names = config.get("pooling_mode") or [
        key.removeprefix("pooling_mode_")
        for key, is_on in config.items()
        if key.startswith("pooling_mode_") and is_on
    ]
    joined = names if isinstance(names, str) else " and ".join(names)
    pooling = POOLINGS.get(joined.removesuffix("_tokens").removesuffix("_token"))
    if pooling is None:
        raise ModelError(_refusal(source, f"the pooling {joined}"))
    return pooling


def _read_json(source: EncoderSource, file: str) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return what a file beside the model holds; None where there is no such file."""
    path = cached_file(source.folder, file, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    with open(path, encoding="utf-8") as opened:
        return json.load(opened)


def _refusal(source: EncoderSource, found: str) -> str:
    return (
        f"{source.name} makes its vectors with {found}; encoders that take the mean, the first "
        "token or the maximum of the last hidden states can be used, such as minilm."
    )
