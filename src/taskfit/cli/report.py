"""`taskfit report`: the page of a run, or report and advice of a comparison, made anew."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from taskfit.cli.limits import MaxLatencyOption, MaxMemoryOption, MaxTrainTimeOption, parse_limits
from taskfit.cli.screen import RichScreen, Terminal
from taskfit.errors import SettingsError


def report(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a run, or of a comparison, also a half-done one.")
    ],
    metric: Annotated[
        Literal["accuracy", "mcc", "macro_f1"] | None,
        typer.Option("--metric", help="Judge a comparison by this one, not by the task's."),
    ] = None,
    max_memory: MaxMemoryOption = None,
    max_latency: MaxLatencyOption = None,
    max_train_time: MaxTrainTimeOption = None,
    texts: Annotated[
        bool, typer.Option("--texts/--no-texts", help="Whether hard examples stand there in full.")
    ] = True,
) -> None:
    """Make the page of a run, or report and advice of a comparison, anew from its folder."""
    limits = parse_limits(max_memory, max_latency, max_train_time)
    console = Terminal()
    if (folder / "result.json").is_file():
        if metric is not None:
            raise SettingsError(
                "--metric is for comparisons; the page of a run shows every metric. Leave it out."
            )
        from taskfit.report.pages import write_page

        write_page(folder)
        console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
        return

    from taskfit.report.comparison_page import report_comparison

    path = report_comparison(
        folder,
        limits=limits,
        screen=RichScreen(console),
        texts=texts,
        metric=metric,
    )
    show_advice(path, console)


def show_advice(path: Path, console: Terminal) -> None:
    """Print what the advice of a comparison says first, and where all of it and its page lie."""
    from taskfit.report.advice import DETAILS

    # Limits stand in the names of both files.
    source = path.with_name(path.name.replace("report", "advice", 1)).with_suffix(".txt")
    console.print()
    for part in source.read_text(encoding="utf-8").partition(DETAILS)[0].strip().split("\n\n"):
        heading, _, text = part.partition("\n")
        console.print(heading, style="bold")
        console.print(f"{text}\n")
    console.print(f"Details: {source}", soft_wrap=True)
    console.print(f"Report: {path}", soft_wrap=True)
