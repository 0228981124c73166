"""Write a run's merged model as GGUF: through llama.cpp's converter, or the package `gguf`."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from taskfit.errors import CheckpointError, ModelError, SettingsError
from taskfit.export.check import Exported, compare
from taskfit.export.gguf_tokenizer import read_vocabulary
from taskfit.export.merge import SMALL_FILES, Merged, write_merged
from taskfit.export.source import Source, token_log_probs
from taskfit.models.build import build
from taskfit.models.gguf_model import gguf_names, heads_of, interleaved
from taskfit.models.load import LoadedModel
from taskfit.models.quantize import count_parameters

SCRIPT = "convert_hf_to_gguf.py"
Quantization, FileType = gguf.GGMLQuantizationType, gguf.LlamaFileType
# For each type of weights that of the file, and the number format whose tolerance it has.
TYPES = {
    "f32": (FileType.ALL_F32, "float32"),
    "f16": (FileType.MOSTLY_F16, "float16"),
    "bf16": (FileType.MOSTLY_BF16, "bfloat16"),
    "q8_0": (FileType.MOSTLY_Q8_0, "q8_0"),
}
SERVED = ("LlamaForCausalLM", "MistralForCausalLM")
COMPARED_TOKENS = 64
FloatWeights = NDArray[np.float32]


def check_type(name: str) -> None:
    """Raise if a type of GGUF is not one of those written here.

    Raises:
        SettingsError: Naming them.
    """
    if name not in TYPES:
        raise SettingsError(f"--outtype is {name!r}; allowed are {', '.join(TYPES)}.")


def gguf_bytes(merged: Merged, name: str, script: Path | None) -> int:
    """Return about how much a model takes as GGUF, with what the converter reads in between."""
    block, num_bytes = gguf.GGML_QUANT_SIZES[Quantization[name.upper()]]
    size = count_parameters(merged.model.tree.model) * num_bytes // block + SMALL_FILES
    return int(size) + (merged.num_bytes if script else 0)


def export_gguf(
    source: Source, merged: Merged, folder: Path, *, name: str, script: Path | None
) -> Exported:
    """Fill a folder with one GGUF file, and check that it says what the run says.

    Args:
        source: The run.
        merged: Its weights; the model is given back on the way.
        folder: To fill.
        name: Type of the weights: f32, f16, bf16 or q8_0.
        script: llama.cpp's converter; None: the package `gguf` writes the file.

    Raises:
        TaskfitError: If the model cannot be written so, or the result differs.
    """
    model, tokenizer = merged.model.tree, merged.model.tokenizer
    architecture = type(model.model).__name__
    rows = [list(tokenizer(text)["input_ids"])[:COMPARED_TOKENS] for text in source.texts]
    with model.plain_attention() as plain:
        before = token_log_probs(plain, rows)
    path = folder / f"model-{name}.gguf"
    if script is not None:
        _convert(script, source, merged, path, name)
        writer = SCRIPT
    else:
        _check_architecture(model.model)
        write_gguf(merged.model, path, name=name, title=source.folder.name)
        writer = f"gguf {metadata.version('gguf')}"
    del model, plain
    merged.drop_model()
    after = token_log_probs(_read_again(path, architecture), rows)
    check = compare(before, after, what="file read again and in memory", dtype=TYPES[name][1])
    note = f"Weights are {name}, vectors float32; written by {writer}."
    return Exported([*merged.checks, check.require(f"writing GGUF ({name})")], [note])


def find_script() -> Path | None:
    """Return llama.cpp's converter: in the folder that LLAMA_CPP names, or on PATH.

    Raises:
        SettingsError: If LLAMA_CPP names a place without it.
    """
    given = os.environ.get("LLAMA_CPP")
    if given:
        place = Path(given).expanduser()
        script = place if place.is_file() else place / SCRIPT
        if not script.is_file():
            raise SettingsError(
                f"LLAMA_CPP is {given}, but there is no {SCRIPT} in it. Give the folder of "
                "llama.cpp, or unset the variable."
            )
        return script
    found = shutil.which(SCRIPT)
    return None if found is None else Path(found)


def _convert(script: Path, source: Source, merged: Merged, path: Path, name: str) -> None:
    """Let llama.cpp convert the merged model."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".merged-") as scratch:
        write_merged(source, merged, Path(scratch))
        command = [sys.executable, str(script), scratch, "--outfile", str(path), "--outtype", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not path.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise CheckpointError(
            f"{script} could not convert the model: {lines[-1] if lines else 'it gave no reason'}"
        )


def _check_architecture(model: PreTrainedModel) -> None:
    config = model.config.get_text_config().to_dict()
    reason = type(model).__name__
    rope = (config.get("rope_parameters") or {}).get("rope_type", "default")
    if reason not in SERVED:
        reason += f" (model type {model.config.model_type})"
    elif rope != "default":
        reason += f" with positions of type {rope!r}"
    elif config.get("sliding_window"):
        reason += " with a sliding window"
    else:
        return
    raise ModelError(
        f"--gguf without llama.cpp writes the Llama architecture only, and this is {reason}. "
        f"Put llama.cpp's {SCRIPT} on PATH, or its folder into the environment variable LLAMA_CPP."
    )


def write_gguf(model: LoadedModel, path: Path, *, name: str, title: str) -> None:
    """Write a model of the Llama architecture with its tokenizer.

    Args:
        model: Without adapter.
        path: The file.
        name: Type of the weights; vectors stay in float32.
        title: Name in the file.

    Raises:
        ModelError: If the tokenizer, or a weight, has no place in the file.
    """
    module = model.tree.model
    config = module.config.get_text_config()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(title)
    writer.add_file_type(TYPES[name][0])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config)
    _add_tokenizer(writer, model)
    try:
        for key, weights in _tensors(module):
            kind = Quantization[name.upper()] if weights.ndim > 1 else Quantization.F32
            if kind == Quantization.Q8_0 and weights.shape[-1] % 32:
                kind = Quantization.F16  # blocks of 32 weights share a scale
            if kind == Quantization.F16 and np.abs(weights).max() > np.finfo(np.float16).max:
                raise ModelError(f"{key} has weights too large for f16. Use --outtype bf16.")
            packed = gguf.quants.quantize(weights, kind)
            writer.add_tensor(key, packed, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_shape(writer: Any, config: Any) -> None:  # noqa: ANN401 - untyped packages
    heads = config.num_attention_heads
    width = config.to_dict().get("head_dim") or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: Any, model: LoadedModel) -> None:  # noqa: ANN401 - untyped package
    tokenizer = model.tokenizer
    num_rows = model.tree.model.get_input_embeddings().weight.shape[0]
    vocabulary = read_vocabulary(tokenizer, num_rows)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    for index, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if index is not None:
            add(index)
    writer.add_add_bos_token(vocabulary.add_start)
    if vocabulary.model == "llama":
        writer.add_add_space_prefix(vocabulary.add_space)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _tensors(module: PreTrainedModel) -> Iterator[tuple[str, FloatWeights]]:
    """Yield every weight under its GGUF name, queries and keys in llama.cpp's order."""
    state = module.state_dict()
    for key, name in gguf_names(module).items():
        weights = state[key].detach().float().cpu()
        if (heads := heads_of(key, module)) is not None:
            weights = interleaved(weights, heads)
        yield name, weights.contiguous().numpy()


def _read_again(path: Path, architecture: str) -> PreTrainedModel:
    """Return what transformers reads from the file.

    Raises:
        ModelError: If it cannot read the file.
    """
    try:
        model: PreTrainedModel = build(
            AutoModelForCausalLM.from_pretrained,
            path.parent,
            gguf_file=path.name,
            dtype=torch.float32,
        )
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise ModelError(
            f"transformers cannot read GGUF of {architecture} again, so it cannot be checked: "
            f"{str(error).splitlines()[0]}. Use --merge, and convert the folder yourself."
        ) from error
    return model.eval()
