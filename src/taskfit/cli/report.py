"""`taskfit report`: the page of a run, or report and advice of a comparison, made anew."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from taskfit.cli.limits import MaxLatencyOption, MaxMemoryOption, MaxTrainTimeOption, parse_limits
from taskfit.cli.screen import RichScreen, terminal

ADVICE_FILE = "advice.txt"


def report(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a run, or of a comparison, also a half-done one.")
    ],
    max_memory: MaxMemoryOption = None,
    max_latency: MaxLatencyOption = None,
    max_train_time: MaxTrainTimeOption = None,
    texts: Annotated[
        bool, typer.Option("--texts/--no-texts", help="Whether hard examples stand there in full.")
    ] = True,
) -> None:
    """Make the page of a run, or report and advice of a comparison, anew from its folder."""
    limits = parse_limits(max_memory, max_latency, max_train_time)
    console = terminal()
    if (folder / "result.json").is_file():
        from taskfit.report.pages import write_page

        write_page(folder)
        console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
        return

    from taskfit.report.comparison_page import report_comparison

    path = report_comparison(folder, limits=limits, screen=RichScreen(console), texts=texts)
    show_advice(folder, path, console)


def show_advice(folder: Path, path: Path, console: Console) -> None:
    """Print the advice of a comparison and where its report lies."""
    advice = (folder / ADVICE_FILE).read_text(encoding="utf-8").rstrip()
    console.print(f"\n{advice}\n")
    console.print(f"Report: {path}", soft_wrap=True)
