"""`taskfit curate`: from raw instruction data to a data set, step by step."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskfit.cli.flags import (
    ColumnOption,
    EncodingOption,
    ModelOption,
    OverwriteOption,
    parse_pairs,
)
from taskfit.cli.screen import RichScreen, Terminal, plain_table
from taskfit.cli.stopped import tell_of_curation, told_when_stopped

if TYPE_CHECKING:
    from taskfit.curate import CurateResult, CurateSettings

PREVIEW_LINES = 24


def curate(
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="IN...", help="Files (.json, .jsonl, .csv, .parquet) or hub ids."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for data, removed rows and data card.")
    ] = Path("curated"),
    config: Annotated[
        Path | None, typer.Option("--config", help="Steps (YAML); see docs/curate.md.")
    ] = None,
    model: ModelOption = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against", help="NAME=FILE, an evaluation set to keep clear of; repeatable."
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind", help="instruction, chat, completion, preference, text; else guessed."
        ),
    ] = None,
    column: ColumnOption = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="Licence of the files, or a file with its text.")
    ] = None,
    encoding: EncodingOption = "utf-8",
    overwrite: OverwriteOption = False,
) -> None:
    """Filter, deduplicate and select instruction data; removed rows stay, with the reason."""
    columns = parse_pairs("--column", "FIELD=COLUMN", column)

    from taskfit.curate import SourceSettings, load_curate_settings
    from taskfit.curate import curate as run_curate
    from taskfit.settings import ModelSettings

    settings = _with_evaluations(load_curate_settings(config), against or ())
    given = [
        SourceSettings(file=file, kind=kind, columns=columns, license=license_)
        for file in sources or ()
    ]
    with told_when_stopped(lambda: tell_of_curation(out)), RichScreen() as screen:
        result = run_curate(
            given,
            out,
            settings=settings,
            model=model or ModelSettings().name,
            encoding=encoding,
            screen=screen,
            overwrite=overwrite,
        )
    _show(result, screen.console)


def _with_evaluations(settings: "CurateSettings", against: Sequence[str]) -> "CurateSettings":
    """Add the evaluation sets of the command line to every overlap step, or a step for them."""
    from taskfit.curate import SourceSettings
    from taskfit.curate.settings import OverlapStep

    if not against:
        return settings
    entries = [e if "=" in e else f"{Path(e).name.split('.')[0]}={e}" for e in against]
    pairs = parse_pairs("--against", "NAME=FILE", entries)
    sets = {name: SourceSettings(file=file) for name, file in pairs.items()}
    steps = list(settings.steps)
    if not any(isinstance(step, OverlapStep) for step in steps):
        # Ahead of chat, behind which there are no prompts, and of choices among what is left.
        place = next(
            (i for i, s in enumerate(steps) if s.step in ("top", "diverse", "chat")), len(steps)
        )
        steps.insert(place, OverlapStep(step="overlap"))
    for place, step in enumerate(steps):
        if isinstance(step, OverlapStep):
            steps[place] = step.model_copy(update={"sets": {**step.sets, **sets}})
    return settings.model_copy(update={"steps": steps})


def _show(result: "CurateResult", console: Terminal) -> None:
    counts = (">before", ">removed", ">kept", ">tokens kept")
    table = plain_table("step", *counts, "most frequent reasons")
    table.columns[-1].overflow = "fold"
    for step in result.steps:
        reasons = [f"{count:,} {reason}" for reason, count in list(step.reasons.items())[:3]]
        table.add_row(
            step.name,
            f"{step.before:,}",
            f"{step.removed:,}",
            f"{step.kept:,}",
            f"{step.histogram['tokens']['row']:,}",
            "; ".join(reasons),
        )
    console.print(table)
    for step in result.steps:
        for preview in step.facts.get("previews", ())[:1]:
            console.print("\nThe first row in the chat template:", style="bold")
            lines = preview.splitlines()
            console.print("\n".join(lines[:PREVIEW_LINES]))
            if len(lines) > PREVIEW_LINES:
                console.print(f"... {len(lines) - PREVIEW_LINES} lines left out")
    console.print(
        f"\nData:    {result.out / 'data.jsonl'}\n"
        f"Removed: {result.out / 'removed.jsonl'}\n"
        f"Card:    {result.out / 'card.html'}\n"
        f"What each step left stays in {result.work}, so that other steps start from there; it can "
        "be deleted.",
        soft_wrap=True,
    )
