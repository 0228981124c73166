"""A classifier as ONNX files, in float32 and with weights of 8 bits, read again by ONNX Runtime.

Legend: N texts, L labels.
"""

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import Dim
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from taskfit.errors import ModelError, SettingsError, first_line
from taskfit.export.check import Check, Exported, FloatArray, compare
from taskfit.export.classification import export_classification, probabilities_of_scores
from taskfit.export.entry import Entry
from taskfit.export.merge import Merged
from taskfit.export.source import Source
from taskfit.models.build import build
from taskfit.models.out_of_memory import is_out_of_memory
from taskfit.models.quantize import count_parameters

FILE, FILE_8_BITS = "model.onnx", "model_int8.onnx"
INPUTS = ("input_ids", "attention_mask")
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
# Texts of the run by which is told what 8 bits lose.
MEASURED = 500
# Above this a file takes its weights from another beside it (bytes; protobuf ends at 2 GiB).
LARGEST_FILE = 1_800_000_000


def check_onnx_packages() -> None:
    """Raise, before any model is loaded, if what writes and reads ONNX is not installed.

    Raises:
        SettingsError: Naming what is missing.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"--onnx needs {', '.join(missing)}, which is not installed: pip install "
            "'taskfit[onnx]'."
        )


def onnx_bytes(merged: Merged) -> int:
    """Return about how much both files take, with the checkpoint that they are made from."""
    return merged.num_bytes + 5 * count_parameters(merged.model.tree.model)


def export_onnx(source: Source, merged: Merged, folder: Path) -> Exported:
    """Fill a folder with both files, and check what they say.

    Args:
        source: A run of label_words, distill or head; see `classification.check_served`.
        merged: Its weights; the model is given back on the way.
        folder: To fill.

    Raises:
        TaskfitError: If it cannot be exact, or the file in float32 says something else.
    """
    several = source.classifier(merged.model).task.multi_label
    shares = merged.model.tree.shares_prefixes
    done, entry = export_classification(source, merged, folder)
    model = build(
        AutoModelForSequenceClassification.from_pretrained, folder, dtype=torch.float32
    ).eval()
    try:
        with _quiet():
            write_onnx(model, AutoTokenizer.from_pretrained(folder), folder / FILE)
            _write_8_bits(folder / FILE, folder / FILE_8_BITS)
    except (RuntimeError, ValueError, TypeError) as error:
        # Loops of recurrent layers hang on lengths, which cannot be traced.
        if shares or is_out_of_memory(error):
            raise
        raise ModelError(
            f"PyTorch cannot write {type(model).__name__} (model type {model.config.model_type}) "
            f"as ONNX for texts of any length: {first_line(error)} Use --as "
            "sequence-classification, or --merge."
        ) from error
    del model
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    inputs = [entry.texts(source.examples[place]) for place in entry.places]
    found = run_onnx(folder, FILE, inputs, several=several)
    what = "read by ONNX Runtime and in memory"
    expected = merged.expected[list(entry.places)]
    check = compare(expected, found, what=what, dtype=merged.exact_dtype)
    done.checks.append(check.require("writing ONNX"))
    note, lost = _lost_by_8_bits(source, folder, entry, several=several)
    done.checks.append(lost)
    done.notes.append(note)
    done.told.append(note)
    done.use.update(onnx_file=FILE, file_8_bits=FILE_8_BITS, several=several)
    return done


def write_onnx(model: PreTrainedModel, tokenizer: Any, path: Path) -> None:  # noqa: ANN401
    """Write a sequence classification model for batches and texts of any size.

    Args:
        model: In float32.
        tokenizer: Its own, for texts to trace it by.
        path: Of the file; a large one has its weights beside it, in PATH.data.
    """
    import onnx_ir
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    model.config.use_cache = False
    tokens = tokenizer(["a b", "and a text that is longer"], padding=True, return_tensors="pt")
    shapes = {name: {0: Dim("batch"), 1: Dim("tokens")} for name in INPUTS}
    config = OnnxConfig(dynamic=True, dynamic_shapes=shapes)
    exported = OnnxExporter().export(model, {name: tokens[name] for name in INPUTS}, config=config)
    is_large = 4 * count_parameters(model) > LARGEST_FILE
    onnx_ir.save(exported.program, path, external_data=f"{path.name}.data" if is_large else None)


def _write_8_bits(path: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        path,
        target,
        weight_type=QuantType.QInt8,
        per_channel=True,
        use_external_data_format=path.with_name(f"{path.name}.data").exists(),
    )


def run_onnx(
    folder: Path, name: str, inputs: Sequence[Sequence[str]], *, several: bool
) -> FloatArray:
    """Return what ONNX Runtime says with a file, (N, L).

    Args:
        folder: Of the export.
        name: Of the file in it.
        inputs: Of each example what its tokenizer takes.
        several: Whether a text may have several labels.
    """
    import onnxruntime

    tokenizer = AutoTokenizer.from_pretrained(folder)
    session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
    rows = []
    for one in inputs:
        tokens = tokenizer(*one, return_tensors="np")
        (scores,) = session.run(["logits"], {key: tokens[key] for key in INPUTS})
        rows.append(np.asarray(scores, np.float64)[0])
    return probabilities_of_scores(np.stack(rows), several=several)


def _lost_by_8_bits(
    source: Source, folder: Path, entry: Entry, *, several: bool
) -> tuple[str, Check]:
    """Say how far the file in 8 bits is from the one in float32, on texts of the run."""
    examples = source.measured(MEASURED) or source.examples
    inputs = [entry.texts(example) for example in examples]
    exact, rounded = (
        run_onnx(folder, name, inputs, several=several) for name in (FILE, FILE_8_BITS)
    )
    gap = compare(exact, rounded, what=f"{FILE_8_BITS} and {FILE} (not asserted)", dtype="float32")
    labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
    names = [labels[str(i)] for i in range(len(labels))]
    gold = np.array([-1 if e.label is None else names.index(e.label) for e in examples])
    known = gold >= 0
    size = (folder / FILE_8_BITS).stat().st_size / (folder / FILE).stat().st_size
    said = f"`{FILE_8_BITS}` holds the same model with weights of 8 bits ({size:.0%} of the size): "
    agree = float((exact.argmax(1) == rounded.argmax(1)).mean())
    said += f"on {len(examples)} texts of the run it gives the same label to {agree:.1%}"
    if known.any() and not several:
        before, after = (
            float((one.argmax(1)[known] == gold[known]).mean()) for one in (exact, rounded)
        )
        said += f", and its accuracy is {after:.3f}, that of `{FILE}` {before:.3f}"
    mean = float(np.abs(exact - rounded).mean())
    return f"{said}. Probabilities differ by {mean:.3f} on average.", gap


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters print and warn of to themselves: what counts is checked after."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
