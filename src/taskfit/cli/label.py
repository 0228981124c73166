"""`taskfit label`: a large model behind an endpoint labels a table."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskfit.cli.flags import (
    ConfigOption,
    OutTableOption,
    OverwriteOption,
    SeedOption,
    SetOption,
    TaskOption,
    TextOption,
    nested,
    read_settings,
)
from taskfit.cli.screen import RichScreen, Terminal, plain_table
from taskfit.cli.stopped import same_command, told_when_stopped
from taskfit.files import refuse_over_input

if TYPE_CHECKING:
    from taskfit.labels.annotate_check import Agreement
    from taskfit.labels.annotate_files import Annotation


def label(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="Texts to label (file or hub id).")],
    remote: Annotated[
        str | None,
        typer.Option("--remote", help="Address of an OpenAI-compatible endpoint, up to /v1."),
    ] = None,
    remote_model: Annotated[
        str | None, typer.Option("--remote-model", help="The model's name there.")
    ] = None,
    task: TaskOption = None,
    text: TextOption = None,
    out: OutTableOption = Path("soft.csv"),
    check: Annotated[
        str | None,
        typer.Option(
            "--check", help="Table with labels by people; else the rows of TABLE that have one."
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Correct the shares by a temperature fitted to people's."),
    ] = False,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=1, help="Answers to draw where there are no log-probs."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", help="Most money for this command; needs remote.input_price."),
    ] = None,
    max_requests: Annotated[
        int | None, typer.Option("--max-requests", min=1, help="Most requests of this command.")
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Say what it will cost; send nothing.")
    ] = False,
    seed: SeedOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Let a large model label texts, with a share for every label; checked against people's."""
    flags = nested(
        {
            "data.train": table,
            "data.text": text or None,
            "task.name": task,
            "method.name": "remote",
            "remote.base_url": remote,
            "remote.model": remote_model,
            "remote.samples": samples,
            "remote.budget": budget,
            "remote.max_requests": max_requests,
            "seed": seed,
        }
    )
    settings = read_settings(config, flags, set_)

    from taskfit.labels.annotate import annotate
    from taskfit.labels.annotate_files import AnnotatedFiles

    refuse_over_input(AnnotatedFiles.beside(out).settings, [config], overwrite=overwrite)
    with told_when_stopped(_tell_of_answers), RichScreen() as screen:
        found = annotate(
            settings,
            out,
            screen=screen,
            check=check,
            calibrate=calibrate,
            only_estimate=estimate,
            overwrite=overwrite,
        )
        _show(found, screen.console)


def _show(found: "Annotation", console: Terminal) -> None:
    """Show what came of it, and what to do next."""
    from taskfit.labels.annotate_files import summary

    if found.files is None:
        return
    for line in summary(found):
        console.print(line, soft_wrap=True)
    if found.agreement is not None:
        _show_agreement(found, found.agreement, console)
    settings = shlex.quote(str(found.files.settings))
    console.print(
        f"\nReport: {found.files.report}\n"
        "Next, learn from the shares:\n"
        f"  taskfit fit --config {settings}\n"
        f"  taskfit fit --config {settings} --method distill --set method.teacher=soft_labels",
        soft_wrap=True,
    )


def _show_agreement(found: "Annotation", agreement: "Agreement", console: Terminal) -> None:
    """Show how the annotator agrees with people, as it is and at its temperature."""
    rows = plain_table(
        "against people", ">n", ">accuracy", ">95 %", ">kappa", ">95 %", ">ECE", ">Brier"
    )
    fitted = found.temperature
    named = {"as answered": agreement}
    if found.calibrated is not None and fitted is not None and fitted.reason is None:
        named[f"at temperature {fitted.temperature:.2f}"] = found.calibrated
    for name, one in named.items():
        (low, high), (least, most) = one.evaluation.intervals["accuracy"], one.kappa_interval
        rows.add_row(
            name,
            f"{one.evaluation.num_examples:,}",
            f"{one.evaluation.accuracy:.3f}",
            f"{low:.3f}-{high:.3f}",
            f"{one.kappa:.3f}",
            f"{least:.3f}-{most:.3f}",
            f"{one.evaluation.ece:.3f}",
            f"{one.brier:.3f}",
        )
    console.print()
    console.print(rows)
    labels = plain_table("label", ">by people", ">precision", ">recall", ">F1")
    for own in agreement.by_label:
        cells = [f"{value:.3f}" for value in (own.precision, own.recall, own.f1)]
        labels.add_row(own.label, f"{own.num_human:,}", *cells)
    console.print()
    console.print(labels)
    if fitted is not None and fitted.reason is not None:
        console.print(f"not calibrated: {fitted.reason}", soft_wrap=True)


def _tell_of_answers() -> str:
    """Say what stopped annotation has left."""
    return (
        "Every answer that came is kept and is not paid for again. The same command goes on from "
        f"there:\n  {same_command()}"
    )
