"""`taskfit export`: ship a finished run."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskfit.cli.flags import AllowOtherBaseOption, DeviceOption, RunArgument
from taskfit.cli.screen import RichScreen, Terminal, plain_table
from taskfit.errors import CheckpointError, SettingsError

if TYPE_CHECKING:
    from taskfit.export.export import Form
    from taskfit.export.push import Upload

SEQUENCE_CLASSIFICATION = "sequence-classification"
CLASSIFIERS: "dict[str, Form]" = {
    SEQUENCE_CLASSIFICATION: "classification",
    f"{SEQUENCE_CLASSIFICATION}-adapter": "adapter",
}


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder for the export.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="A plain model: the adapter merged into its base.")
    ] = False,
    gguf: Annotated[
        bool, typer.Option("--gguf", help="One GGUF file, as llama.cpp reads.")
    ] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="A classifier as ONNX files: float32 and 8 bits.")
    ] = False,
    outtype: Annotated[
        str | None, typer.Option("--outtype", help="Of --gguf: f16 (default), bf16, f32, q8_0.")
    ] = None,
    as_: Annotated[
        str | None,
        typer.Option(
            "--as",
            help=f"{SEQUENCE_CLASSIFICATION}: runs in plain pipelines; "
            f"{SEQUENCE_CLASSIFICATION}-adapter: the same as an adapter for PEFT.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="Stored: float32, float16, bfloat16; default: the run's."),
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", help="OWNER/NAME on the hub; made private if new.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make it for all to see.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Of --push: show what would go, send nothing.")
    ] = False,
    device: DeviceOption = "auto",
    allow_other_base: AllowOtherBaseOption = False,
) -> None:
    """Merge a run, turn it into a plain classifier, ONNX or GGUF, and put it on the hub."""
    if push is None and (public or dry_run):
        raise SettingsError("--public and --dry-run are about --push; give --push OWNER/NAME.")
    forms: dict[Form, bool] = {"merged": merge, "gguf": gguf, "onnx": onnx}
    form = _form(forms, as_, may_be_none=push is not None)
    if outtype is not None and form != "gguf":
        raise SettingsError("--outtype is about --gguf; give --gguf with it.")

    from taskfit.export.export import RECORD, export_run
    from taskfit.export.push import plan_upload
    from taskfit.export.push import push as push_folder

    screen = RichScreen()
    console = screen.console
    if push is not None:
        plan_upload(out, push, private=not public)  # a wrong name fails before the work
    if form is not None:
        export_run(
            run,
            out,
            form=form,
            outtype=outtype or "f16",
            dtype=dtype,
            device=device,
            allow_other_base=allow_other_base,
            screen=screen,
        )
        console.print(f"exported: {out}", soft_wrap=True)
    elif not (out / RECORD).is_file():
        raise CheckpointError(
            f"{out} holds no export to push. Make one with --merge, --gguf, --onnx or "
            f"--as {SEQUENCE_CLASSIFICATION}."
        )
    if push is None:
        return
    upload = plan_upload(out, push, private=not public)
    if dry_run:
        _show(upload, console)
        return
    console.print(f"pushed: {push_folder(out, upload)}", soft_wrap=True)


def _form(flags: "Mapping[Form, bool]", as_: str | None, *, may_be_none: bool) -> "Form | None":
    if as_ is not None and as_ not in CLASSIFIERS:
        raise SettingsError(f"--as {as_}: what there is is {' and '.join(CLASSIFIERS)}.")
    given = [form for form, is_given in flags.items() if is_given]
    if as_ is not None:
        given.append(CLASSIFIERS[as_])
    if len(given) > 1:
        raise SettingsError(
            "--merge, --gguf, --onnx and --as are exports of their own; give one, and another -o "
            "for the next."
        )
    if not given and not may_be_none:
        raise SettingsError(
            f"Give one of --merge, --gguf, --onnx and --as {' or '.join(CLASSIFIERS)}."
        )
    return given[0] if given else None


def _show(upload: "Upload", console: Terminal) -> None:
    table = plain_table("file", ">bytes")
    for name, size in upload.files:
        table.add_row(name, f"{size:,}")
    console.print(table)
    who = "private" if upload.private else "public"
    console.print(
        f"dry run: {len(upload.files)} files, {upload.num_bytes:,} bytes, would go to "
        f"{upload.repository} ({who} if it is new). Nothing was sent.",
        soft_wrap=True,
    )
