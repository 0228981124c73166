"""Whether a loaded model is what its files hold: every weight there, in its shape, and finite.

transformers fills what a file lacks with random numbers and leaves out what it does not know, with
a warning. Here both are errors that name the weights, except what is known to be harmless.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from taskfit.errors import ModelError, first_line
from taskfit.models.build import build
from taskfit.models.multimodal import know_multimodal
from taskfit.models.quantize import four_bit_layers

# Tables that architectures once kept in their files and now compute: rotary angles, causal masks
# (GPT-2, GPT-NeoX), numbers of positions (BERT).
COMPUTED = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|position_ids"
    r"|(attn|attention)\.(bias|masked_bias))$"
)
# What wrappers put in front of every name of a state that was saved with them around the model.
WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DataParallel",
    "_fsdp_wrapped_module": "FSDP",
    "base_model": "PEFT",
}
NAMED = 4


class NotFiniteError(ModelError):
    """A model's weights or scores are not finite.

    Attributes:
        found: What was found, without what to do.
    """

    def __init__(self, found: str, advice: str = "") -> None:
        """Make the message."""
        start = found.removeprefix("the ")
        super().__init__(f"{'' if start == found else 'The '}{start}. {advice}".strip())
        self.found = found


@dataclass(frozen=True, slots=True)
class Names:
    """Weights in which a model and its files differ without harm.

    Attributes:
        new: Of the model, not in the files.
        unused: In the files, of parts that the model does not have.
    """

    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def note(self) -> str | None:
        """Return a line about what is not used, or None."""
        if not self.unused:
            return None
        return f"the model's files also hold what is not used here: {_told(self.unused)}"


def load_whole(
    load: Callable[..., Any],
    source: str,
    name: str,
    *,
    heads: bool = False,
    **options: Any,  # noqa: ANN401
) -> tuple[PreTrainedModel, Names]:
    """Load a model with `from_pretrained`, and check that it is what the files hold.

    Args:
        load: `from_pretrained` of an auto class.
        source: Folder or hub id.
        name: As the user gave it, for messages.
        heads: Whether weights outside the base model, and a pooler, may be new.
        options: Further arguments of `load`.

    Returns:
        The model, and the names of weights that are new (never any, unless `heads`) or unused.

    Raises:
        ModelError: Naming weights that are missing, of another shape, unknown or not finite.
    """
    # transformers prints a table of new and unused weights; what matters in it is checked below.
    # Its bars of single files would tear our own.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, info = build(
            load,
            source,
            use_safetensors=True,
            # So that a wrong shape is named below like everything else.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    names = check_names(model, info, name, heads=heads)
    check_finite(model, name)
    return model, names


def check_files(source: str, name: str, revision: str | None) -> None:
    """Check by the names and shapes in a causal model's files, without reading its weights.

    Raises:
        ModelError: As `load_whole`.
    """
    load = AutoModelForCausalLM.from_pretrained
    try:
        know_multimodal(AutoConfig.from_pretrained(source, revision=revision))
        load_whole(load, source, name, revision=revision, device_map="meta")
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"The model {name} cannot be loaded: {first_line(error)}") from error


def check_names(
    model: PreTrainedModel, info: Mapping[str, Any], name: str, *, heads: bool = False
) -> Names:
    """Raise if a model lacks weights, has them in another shape, or leaves out some of its own.

    Args:
        model: As loaded.
        info: What `from_pretrained` tells of loading.
        name: As the user gave it.
        heads: Whether weights outside the base model, and a pooler, may be new.

    Returns:
        Those that are new or unused.

    Raises:
        ModelError: Naming them.
    """
    shapes = {key: (tuple(stored), tuple(own)) for key, stored, own in info["mismatched_keys"]}
    missing = sorted(set(info["missing_keys"]) - set(shapes))
    unused = [key for key in sorted(info["unexpected_keys"]) if not COMPUTED.search(key)]
    lost = [key for key in missing if not (heads and _is_head(key, model))]
    wrong = {key: both for key, both in shapes.items() if not (heads and _is_head(key, model))}
    inside = [key for key in unused if _is_inside(key, model)]
    kind = type(model).__name__
    problems = []
    if lost:
        problems.append(f"{_count(lost, 'weight')} of {kind} missing: {_told(lost)}")
    if wrong:
        pairs = [f"{key} {list(stored)} for {list(own)}" for key, (stored, own) in wrong.items()]
        problems.append(f"{_count(pairs, 'weight')} of another shape: {_told(pairs)}")
    if inside:
        problems.append(
            f"{_count(inside, 'weight')} that {kind} of this config.json has no place for: "
            f"{_told(inside)}"
        )
    if problems:
        random = " What is missing would be random numbers." if lost or wrong else ""
        raise ModelError(
            f"The files of {name} do not hold the model that its config.json describes: "
            f"{'; '.join(problems)}.{random} {_hint(model, lost, unused)}"
        )
    return Names(tuple(sorted({*missing, *shapes})), tuple(unused))


def _is_head(key: str, model: PreTrainedModel) -> bool:
    """Return whether a weight is one that a model may be published without."""
    # Mean pooling needs no pooler, and masked language models are published without one.
    prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    return "pooler" in key.split(".") or not key.startswith(prefix)


def _is_inside(key: str, model: PreTrainedModel) -> bool:
    """Return whether an unknown weight belongs to a part that the model has.

    A further layer, or a bias of a layer that has none, changes what the model computes. A part
    that it does not have, such as the head of another task, changes nothing.
    """
    prefix = f"{model.base_model_prefix}."
    for root in (model, model.base_model):
        own: nn.Module = root
        parts = key.removeprefix(prefix) if root is model.base_model else key
        path, depth = parts.split(".")[:-1], 0
        while depth < len(path) and path[depth] in dict(own.named_children()):
            own = dict(own.named_children())[path[depth]]
            depth += 1
        if depth and own is not model.base_model:
            return True
    return False


def _hint(model: PreTrainedModel, lost: list[str], unused: list[str]) -> str:
    """Return what to do about weights that are not there."""
    start = unused[0].split(".")[0] if unused else ""
    if lost and start in WRAPPERS and all(key.startswith(f"{start}.") for key in unused):
        return (
            f"All names in the files begin with {start!r}, which {WRAPPERS[start]} puts there: "
            "save the model inside of it with `save_pretrained`."
        )
    head = model.get_output_embeddings()
    named = model.named_parameters(remove_duplicate=False)
    if head is not None and lost and set(lost) <= {key for key, p in named if p is head.weight}:
        others = f" (they hold {_told(unused)} instead)" if unused else ""
        return (
            f"The files hold no head that scores tokens{others}: save the causal language model "
            "itself; or, if the head is the embeddings, set tie_word_embeddings to true in its "
            "config.json."
        )
    return "Its config.json and its weights are not a pair, or a file was written in part."


def check_finite(model: nn.Module, name: str) -> None:
    """Raise if a weight is infinite or not a number; one pass over them (135M on a core: 20 ms).

    Of packed weights the scales are looked at, which a number that is not finite need not reach;
    see `check_files_finite`.

    Args:
        model: The model.
        name: What messages call it.

    Raises:
        NotFiniteError: Naming the weights.
    """
    found = dict(model.named_parameters())
    for key, layer in four_bit_layers(model).items():
        state = layer.weight.quant_state
        found[f"{key}.weight"] = state.state2.absmax if state.nested else state.absmax
    refuse_infinite(found, name)


def check_files_finite(files: Iterable[Path], name: str) -> None:
    """Raise as `check_finite` by what stands in files, before it is packed into 4 bits.

    Args:
        files: In safetensors.
        name: What messages call them.

    Raises:
        NotFiniteError: Naming the weights.
    """
    for path in files:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                refuse_infinite({key: file.get_tensor(key)}, name)


@torch.no_grad()
def refuse_infinite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise if a tensor holds a number that is infinite or not a number.

    Args:
        tensors: By name.
        name: What they belong to, for the message.

    Raises:
        NotFiniteError: Naming them.
    """
    extremes = {
        key: torch.stack(tensor.aminmax()).float()
        for key, tensor in tensors.items()
        # Formats of 8 bits have no infinity.
        if tensor.is_floating_point() and tensor.itemsize > 1 and tensor.numel()
        if not tensor.is_meta
    }
    # All at once, so that a GPU is waited for once.
    found = torch.stack(list(extremes.values())).tolist() if extremes else []
    bad = [
        f"{key} ({'nan' if math.isnan(low) or math.isnan(high) else 'inf'})"
        for key, (low, high) in zip(extremes, found, strict=True)
        if not (math.isfinite(low) and math.isfinite(high))
    ]
    if bad:
        raise NotFiniteError(
            f"{name} holds numbers that are not finite: {_count(bad, 'weight')} of "
            f"{len(tensors):,}, {_told(bad)}",
            "It was damaged, its training went wrong, or its numbers are too large for float16 "
            "(model.dtype); use an earlier state of it.",
        )


def require_finite(scores: Tensor, names: Iterable[str], *, what: str = "scores") -> None:
    """Raise if a model's numbers of texts are not finite.

    Args:
        scores: A row for each text, (N, ...).
        names: Of the texts, N.
        what: What they are.

    Raises:
        NotFiniteError: Naming the first texts.
    """
    rows = torch.isfinite(scores).flatten(1).all(dim=1) if scores.dim() > 1 else scores.isfinite()
    if bool(rows.all()):
        return
    bad = [name for name, fine in zip(names, rows.tolist(), strict=True) if not fine]
    raise NotFiniteError(
        f"the model's {what} are not finite (nan or inf) for {_count(bad, 'text')}, {_told(bad)}",
        "A training that ran away leaves such weights: train again with a lower "
        "training.learning_rate; or they are too large for the number format: set "
        "model.dtype=float32.",
    )


def _count(items: Sequence[str], what: str) -> str:
    return f"{len(items):,} {what}{'' if len(items) == 1 else 's'}"


def _told(names: Sequence[str]) -> str:
    """Return a few of the names, no two of which differ by the number of their layer alone."""
    kinds = {re.sub(r"\.\d+\.", ".", name): name for name in reversed(names)}
    shown = list(reversed(kinds.values()))[:NAMED]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")
