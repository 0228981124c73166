"""Merge a run's adapter into its base, and write both as one standard transformers folder."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.numpy import load_file, save_file

from taskfit.errors import CheckpointError
from taskfit.export.check import Comparison, FloatArray, compare
from taskfit.export.source import Source, forget, model_folder, widen
from taskfit.methods.head import BIAS, WEIGHT
from taskfit.models.load import DTYPES, LoadedModel
from taskfit.models.quantize import count_parameters
from taskfit.runs.classifier import ARRAYS

HEAD_FILE = "head.safetensors"
# Tokenizer, configuration and the like (bytes).
SMALL_FILES = 32 * 1024 * 1024


@dataclass(slots=True)
class Merged:
    """A run's weights as one plain model, in memory.

    Attributes:
        model: Without adapter, its weights rounded to `form`; computes in float32 where memory
            allowed.
        expected: What this model says; what is written must say the same.
        run: What the run says in the format that is stored, base and adapter apart; None where
            that is not known.
        form: Number format to store.
        is_wide: Whether `expected` was computed in float32.
        checks: What was compared already.
    """

    model: LoadedModel
    expected: FloatArray
    run: FloatArray | None
    form: str
    is_wide: bool
    checks: list[Comparison]

    @property
    def exact_form(self) -> str:
        """Return the number format that `expected` was computed in."""
        return "float32" if self.is_wide else self.form

    def compare_written(
        self, folder: Path, outputs: Callable[[Path, torch.dtype], FloatArray], *, after: str
    ) -> list[Comparison]:
        """Check what was written against the model in memory, and against the run.

        Args:
            folder: What was written.
            outputs: Loads it in a number format and says what it says, in the order of `expected`.
            after: What was done, for a message.

        Raises:
            CheckpointError: If it says something else.
        """
        exact = compare(
            self.expected, outputs(folder, DTYPES[self.exact_form]), form=self.exact_form
        )
        found = [exact.called(f"written and in memory, {exact.what}").require(after)]
        if self.run is not None and self.form != self.exact_form:
            stored = compare(self.run, outputs(folder, DTYPES[self.form]), form=self.form)
            found.append(
                stored.called(f"export and run in {self.form}, {stored.what}").require(after)
            )
        return [*self.checks, *found]


def merge(source: Source, *, form: str | None = None) -> Merged:
    """Load a run on its unquantized base, merge the adapter, and check that nothing changed.

    The sum is made in float32 where memory allows, and rounded once.

    Args:
        source: The run.
        form: Number format to store: float32, float16 or bfloat16. None: the run's.

    Raises:
        TaskfitError: If base or adapter cannot be had, or the merged model says something else.
    """
    own = str(source.saved["dtype"])
    form = form or own
    in_four_bits = None
    if source.weights == "qlora":
        quantized, _ = source.load(quantized=True)
        in_four_bits = source.outputs(quantized)
        del quantized
        forget()
    model, adapter = source.load()
    narrow = source.outputs(model)
    is_wide = widen(model)
    before = source.outputs(model) if is_wide and own != "float32" else narrow
    checks = []
    if adapter is not None:
        # Layers are replaced inside the model that the tree holds.
        adapter.merge_and_unload()
        check = compare(before, source.outputs(model), form="float32" if is_wide else own)
        checks.append(check.called(f"merged and apart, {check.what}").require("merging"))
    run = narrow if form == own else before if form == "float32" and is_wide else None
    cast_weights(model, form)
    if is_wide:
        cast_weights(model, "float32")
    if in_four_bits is not None:
        gap = compare(in_four_bits, narrow, form=own)
        note = f"run on its base in 4 bits and in {own} (not asserted), {gap.what}"
        checks.append(gap.called(note))
    return Merged(model, source.outputs(model), run, form, is_wide, checks)


def cast_weights(model: LoadedModel, form: str) -> None:
    """Change the number format of the weights in place; buffers such as rotary angles stay."""
    for parameter in model.tree.model.parameters():
        parameter.data = parameter.data.to(DTYPES[form])


def check_room(target: Path, num_bytes: int) -> None:
    """Raise if a disk has no room.

    Args:
        target: What is to be written; it need not exist.
        num_bytes: How much.

    Raises:
        CheckpointError: With both numbers.
    """
    place = next(p for p in (target.absolute(), *target.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise CheckpointError(
            f"{target} needs {num_bytes / 1e9:,.2f} GB, and {free / 1e9:,.2f} GB are free on its "
            "disk. Nothing was written. Make room, or give another place with -o."
        )


def bytes_needed(merged: Merged, form: str | None = None) -> int:
    """Return about how much a model takes on disk (bytes)."""
    dtype = DTYPES[form or merged.form]
    return count_parameters(merged.model.tree.model) * dtype.itemsize + SMALL_FILES


def write_merged(source: Source, merged: Merged, folder: Path) -> None:
    """Write weights, configuration and tokenizer; the model in memory ends in the stored format.

    A run of full fine-tuning is copied as it is. The head of `method=head`, which no causal
    language model has a place for, becomes a file of its own.
    """
    if source.weights == "full" and merged.form == source.saved["dtype"]:
        shutil.copytree(model_folder(source), folder, dirs_exist_ok=True)
    else:
        cast_weights(merged.model, merged.form)
        merged.model.tree.model.save_pretrained(folder)
    merged.model.tokenizer.save_pretrained(folder)
    if source.method == "head":
        # What is blended or calibrated with stands in the same file of the run.
        arrays = load_file(source.folder / ARRAYS)
        save_file({name: arrays[name] for name in (WEIGHT, BIAS)}, folder / HEAD_FILE)


def export_merged(
    source: Source, folder: Path, *, target: Path, form: str | None = None
) -> list[Comparison]:
    """Fill a folder with a run's merged model, and check that it says what the run says.

    Args:
        source: The run.
        folder: To fill.
        target: Where the folder will stand, for messages and the room on its disk.
        form: Number format to store; None: the run's.

    Raises:
        TaskfitError: If there is no room, or the result says something else.
    """
    merged = merge(source, form=form)
    check_room(target, bytes_needed(merged))
    write_merged(source, merged, folder)
    merged.model = None  # type: ignore[assignment]
    forget()

    def outputs(folder: Path, dtype: torch.dtype) -> FloatArray:
        written = source.reload(folder, form=merged.form)
        cast_weights(written, str(dtype).removeprefix("torch."))
        return source.outputs(written)

    return merged.compare_written(folder, outputs, after="merging")
