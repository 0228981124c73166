"""Merge a run's adapter into its base, and write both as one standard transformers folder."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load_file, save_file

from taskfit.errors import CheckpointError
from taskfit.export.check import Check, Exported, FloatArray, compare
from taskfit.export.decision import Decision, decision_probabilities, try_decision
from taskfit.export.source import Source, widen
from taskfit.methods.head import BIAS, WEIGHT
from taskfit.models.load import DTYPES, LoadedModel, load_model
from taskfit.models.quantize import count_parameters
from taskfit.runs.classifier import ARRAYS
from taskfit.runs.saved import MODEL
from taskfit.training.memory import free_memory

HEAD_FILE = "head.safetensors"
# Tokenizer, configuration and the like (bytes).
SMALL_FILES = 32 * 1024 * 1024


@dataclass(slots=True)
class Merged:
    """A run's weights as one plain model, in memory.

    Attributes:
        model: Without adapter, its weights rounded to `dtype`; computes in float32 where memory
            allowed.
        expected: What this model says; what is written must say the same.
        run: What the run says in the format that is stored, base and adapter apart; None where
            that is not known.
        dtype: Number format to store.
        exact_dtype: Number format that `expected` was computed in.
        checks: What was compared already.
    """

    model: LoadedModel
    expected: FloatArray
    run: FloatArray | None
    dtype: str
    exact_dtype: str
    checks: list[Check]

    @property
    def num_bytes(self) -> int:
        """Return about how much the model takes on disk."""
        num_parameters = count_parameters(self.model.tree.model)
        return num_parameters * DTYPES[self.dtype].itemsize + SMALL_FILES

    def drop_model(self) -> None:
        """Give back the model's memory."""
        self.model = None  # type: ignore[assignment]
        free_memory()

    def compare_written(
        self,
        outputs: Callable[[str], FloatArray],
        *,
        after: str,
        places: Sequence[int] | None = None,
        read_by: str = "",
    ) -> list[Check]:
        """Check what was written against the model that was in memory, and against the run.

        Args:
            outputs: Loads it in a number format and says what it says, in the order of `expected`.
            after: What was done, for a message.
            places: Of the values to compare; None: all.
            read_by: Who reads what was written, for people.

        Raises:
            CheckpointError: If it says something else.
        """
        exact, stored = self.exact_dtype, self.dtype
        pairs = [(f"written{read_by} and in memory", exact, self.expected)]
        if self.run is not None and stored != exact:
            pairs.append((f"export{read_by} and run in {stored}", stored, self.run))
        chosen = slice(None) if places is None else list(places)
        return [
            compare(before[chosen], outputs(dtype), what=what, dtype=dtype).require(after)
            for what, dtype, before in pairs
        ]


def merge(source: Source, *, dtype: str | None = None) -> Merged:
    """Load a run on its unquantized base, merge the adapter, and check that nothing changed.

    The sum is made in float32 where memory allows, and rounded once.

    Args:
        source: The run.
        dtype: Number format to store: float32, float16 or bfloat16. None: the run's.

    Raises:
        TaskfitError: If base or adapter cannot be had, or the merged model says something else.
    """
    own = str(source.saved["dtype"])
    dtype = dtype or own
    in_four_bits = None
    if source.weights == "qlora":
        quantized, _ = source.load(quantized=True)
        in_four_bits = source.outputs(quantized)
        del quantized
        free_memory()
    model, adapter = source.load()
    narrow = source.outputs(model)
    is_wide = widen(model)
    before = source.outputs(model) if is_wide and own != "float32" else narrow
    checks = []
    if adapter is not None:
        # Layers are replaced inside the model that the tree holds.
        adapter.merge_and_unload()
        computed = "float32" if is_wide else own
        check = compare(before, source.outputs(model), what="merged and apart", dtype=computed)
        checks.append(check.require("merging"))
    run = narrow if dtype == own else before if dtype == "float32" and is_wide else None
    cast_weights(model, dtype)
    if is_wide:
        cast_weights(model, "float32")
    if in_four_bits is not None:
        what = f"run on its base in 4 bits and in {own} (not asserted)"
        checks.append(compare(in_four_bits, narrow, what=what, dtype=own))
    exact = "float32" if is_wide else dtype
    return Merged(model, source.outputs(model), run, dtype, exact, checks)


def cast_weights(model: LoadedModel, dtype: str) -> None:
    """Change the number format of the weights in place; buffers such as rotary angles stay."""
    for parameter in model.tree.model.parameters():
        parameter.data = parameter.data.to(DTYPES[dtype])


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


def write_merged(source: Source, merged: Merged, folder: Path) -> None:
    """Write weights, configuration and tokenizer; the model in memory ends in the stored format.

    A run of full fine-tuning is copied as it is. The head of `method=head`, which no causal
    language model has a place for, becomes a file of its own.
    """
    if source.weights == "full" and merged.dtype == source.saved["dtype"]:
        shutil.copytree(source.folder / MODEL, folder, dirs_exist_ok=True)
    else:
        cast_weights(merged.model, merged.dtype)
        merged.model.tree.model.save_pretrained(folder)
    merged.model.tokenizer.save_pretrained(folder)
    if source.method == "head":
        # What is blended or calibrated with stands in the same file of the run.
        arrays = load_file(source.folder / ARRAYS)
        own = {name: arrays[name] for name in (WEIGHT, BIAS) if name in arrays}
        save_file(own, folder / HEAD_FILE)


def export_merged(source: Source, merged: Merged, folder: Path) -> Exported:
    """Fill a folder with a run's merged model, and check that it says what the run says.

    Args:
        source: The run.
        merged: Its weights; the model is given back on the way.
        folder: To fill.

    Raises:
        CheckpointError: If the result says something else.
    """
    decision: tuple[Decision, list[int]] | str | None = None
    if not source.is_tuned:
        decision = try_decision(source.classifier(merged.model), source.examples)
    write_merged(source, merged, folder)
    merged.drop_model()
    changed = {"name": str(folder), "revision": None, "dtype": merged.dtype}
    settings = source.settings.model.model_copy(update=changed)

    def outputs(dtype: str) -> FloatArray:
        written = load_model(settings)
        cast_weights(written, dtype)
        return source.outputs(written)

    checks = [*merged.checks, *merged.compare_written(outputs, after="merging")]
    note = (
        f"The classification head is in `{HEAD_FILE}` (`head.weight`, and `head.bias` where there "
        "is one): a linear layer on the last hidden state of the last token."
    )
    exported = Exported(checks, [note] if source.method == "head" else [])
    if isinstance(decision, str):
        reason = (
            f"transformers' `pipeline(\"decision\")` cannot answer this run's question. {decision}"
        )
        exported.notes.append(reason)
        exported.told.append(reason)
    elif decision is not None:
        _add_decision(source, merged, folder, decision, exported)
    return exported


def _add_decision(
    source: Source,
    merged: Merged,
    folder: Path,
    decision: tuple[Decision, list[int]],
    exported: Exported,
) -> None:
    """Write `decision.json` with its template, and check what transformers' pipeline answers."""
    asked, places = decision
    asked.config.save_pretrained(folder)
    examples = [source.examples[place] for place in places]
    exported.checks.extend(
        merged.compare_written(
            lambda dtype: decision_probabilities(folder, asked, examples, dtype=dtype),
            after="writing decision.json",
            places=places,
            read_by=' by pipeline("decision")',
        )
    )
    exported.use["request"] = repr(asked.request(asked.example()))
    exported.use["dtype"] = merged.dtype
