"""Export a finished run in one form, with a card and a record, whole or not at all."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from taskfit.errors import SettingsError
from taskfit.export.adapter import check_has_adapter, export_adapter
from taskfit.export.card import write_card
from taskfit.export.check import Check, Exported
from taskfit.export.classification import check_served, export_classification
from taskfit.export.gguf_file import check_type, export_gguf, find_script, gguf_bytes
from taskfit.export.merge import check_room, export_merged, merge
from taskfit.export.onnx_file import check_onnx_packages, export_onnx, onnx_bytes
from taskfit.export.source import Source, open_source
from taskfit.files import folder_atomic, write_json_atomic
from taskfit.lock import only_one_at_a_time
from taskfit.models.load import DTYPES
from taskfit.runs.records import library_versions
from taskfit.screen import Screen, SilentScreen

RECORD = "export.json"
Form = Literal["merged", "classification", "adapter", "onnx", "gguf"]


def export_run(
    run: Path,
    out: Path,
    *,
    form: Form,
    outtype: str = "f16",
    dtype: str | None = None,
    device: str = "auto",
    allow_other_base: bool = False,
    screen: Screen | None = None,
) -> list[Check]:
    """Export a finished run into a new folder; return what was compared, and how far it was apart.

    Args:
        run: Folder of the run.
        out: Folder to make; must not exist.
        form: merged: a causal language model without adapter; classification: a standard sequence
            classification model; adapter: PEFT's adapter for one; onnx: one as ONNX files;
            gguf: one GGUF file.
        outtype: Type of the weights in GGUF.
        dtype: Number format to store (before GGUF's own): float32, float16 or bfloat16; None: the
            run's.
        device: See `model.device`.
        allow_other_base: Whether a base will do that is not the one of the run.
        screen: Where is said what was compared.

    Raises:
        TaskfitError: If run, form or target does not allow it, or the result says something else
            than the run; then nothing is left behind.
    """
    screen = screen or SilentScreen()
    if out.exists():
        raise SettingsError(f"{out} exists already, and nothing is overwritten. Give another -o.")
    if dtype is not None and dtype not in DTYPES:
        raise SettingsError(f"--dtype is {dtype!r}; allowed are {', '.join(DTYPES)}.")
    source = open_source(run, device=device, allow_other_base=allow_other_base)
    if form == "gguf":
        check_type(outtype)
    if form in ("classification", "adapter", "onnx"):
        check_served(source, form)
    if form == "onnx":
        check_onnx_packages()
    if form == "adapter":
        check_has_adapter(source, dtype)
    with only_one_at_a_time(out, beside=True), folder_atomic(out) as scratch:
        exported = _fill(source, scratch, out, form, outtype, dtype)
        write_json_atomic(
            scratch / RECORD,
            {
                "form": form,
                "run": source.result.name,
                "method": source.method,
                "base": source.base,
                "revision": source.saved["revision"],
                "checks": [asdict(check) for check in exported.checks],
                "versions": library_versions(),
            },
        )
    for line in [*(check.describe() for check in exported.checks), *exported.told]:
        screen.note(line)
    return exported.checks


def _fill(
    source: Source, folder: Path, out: Path, form: Form, outtype: str, dtype: str | None
) -> Exported:
    if form == "adapter":
        exported = export_adapter(source, folder)
    else:
        script = find_script() if form == "gguf" else None
        merged = merge(source, dtype=dtype)
        if form == "gguf":
            check_room(out, gguf_bytes(merged, outtype, script))
        else:
            check_room(out, onnx_bytes(merged) if form == "onnx" else merged.num_bytes)
        if form == "merged":
            exported = export_merged(source, merged, folder)
        elif form == "classification":
            exported, _ = export_classification(source, merged, folder)
        elif form == "onnx":
            exported = export_onnx(source, merged, folder)
        else:
            exported = export_gguf(source, merged, folder, name=outtype, script=script)
    told = [*_blend_notes(source), *_threshold_notes(source), *_order_notes(source)]
    exported.notes[:0] = told
    write_card(source, folder, form=form, exported=exported)
    return exported


def _order_notes(source: Source) -> list[str]:
    """Return what the card says of a run that averages over orders of its options."""
    if source.num_orders == 1:
        return []
    return [
        f"The run averages over up to {source.num_orders} orders of the options in its prompt; "
        "this model answers behind the given one, and results below are those of the mean."
    ]


def _blend_notes(source: Source) -> list[str]:
    """Return what the card says of a run that is blended."""
    blend = source.saved.get("blend") or {"features": [], "weights": [1.0]}
    probes = " and ".join(
        f"a probe on {features} ({weight:.0%})"
        for features, weight in zip(blend["features"], blend["weights"][1:], strict=True)
        if weight > 0
    )
    if not probes:
        return []
    return [
        f"The run averages these probabilities with those of {probes}, which "
        f"{'are' if ' and ' in probes else 'is'} no part of this model: results below are "
        "those of all together."
    ]


def _threshold_notes(source: Source) -> list[str]:
    """Return what the card says of thresholds, which no format has a place for."""
    thresholds = source.saved.get("calibration", {}).get("thresholds")
    if not thresholds:
        return []
    told = ", ".join(f"{label} {value:.4g}" for label, value in thresholds.items())
    return [
        "The run gives a text each label from a threshold of its own on, which is not in this "
        "model: what reads it takes 0.5, or all labels. Results below are with the thresholds. "
        f"Compare the probabilities with them: {told}."
    ]
