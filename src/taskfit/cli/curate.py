"""`taskfit curate`: from raw instruction data to a data set, step by step."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from taskfit.cli.flags import EncodingOption, ModelOption
from taskfit.errors import SettingsError

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
    column: Annotated[
        list[str] | None, typer.Option("--column", help="FIELD=COLUMN; repeatable.")
    ] = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="Licence of the files, or a file with its text.")
    ] = None,
    encoding: EncodingOption = "utf-8",
) -> None:
    """Filter, deduplicate and select instruction data; removed rows stay, with the reason."""
    columns = dict(_pair("--column", "FIELD=COLUMN", entry) for entry in column or ())

    from taskfit.cli.screen import RichScreen
    from taskfit.curate import SourceSettings, load_curate_settings
    from taskfit.curate import curate as run_curate
    from taskfit.settings import ModelSettings

    settings = _with_evaluations(load_curate_settings(config), against or ())
    given = [
        SourceSettings(file=file, kind=kind, columns=columns, license=license_)
        for file in sources or ()
    ]
    console = Console()
    screen = RichScreen(console)
    try:
        result = run_curate(
            given,
            out,
            settings=settings,
            model=model or ModelSettings().name,
            encoding=encoding,
            screen=screen,
        )
    finally:
        screen.close()
    _show(result, console)


def _with_evaluations(settings: "CurateSettings", against: Any) -> "CurateSettings":  # noqa: ANN401
    """Add the evaluation sets of the command line to every overlap step, or a step for them."""
    from taskfit.curate import SourceSettings
    from taskfit.curate.settings import OverlapStep

    if not against:
        return settings
    sets = {}
    for entry in against:
        name, file = (
            _pair("--against", "NAME=FILE", entry)
            if "=" in entry
            else (Path(entry).name.split(".")[0], entry)
        )
        sets[name] = SourceSettings(file=file)
    if not any(isinstance(step, OverlapStep) for step in settings.steps):
        steps = [*settings.steps]
        # Ahead of chat, behind which there are no prompts, and of choices among what is left.
        place = next(
            (i for i, s in enumerate(steps) if s.step in ("top", "diverse", "chat")), len(steps)
        )
        steps.insert(place, OverlapStep(step="overlap", sets=sets))
        return settings.model_copy(update={"steps": steps})
    return settings.model_copy(
        update={
            "steps": [
                s.model_copy(update={"sets": {**s.sets, **sets}})
                if isinstance(s, OverlapStep)
                else s
                for s in settings.steps
            ]
        }
    )


def _pair(flag: str, form: str, entry: str) -> tuple[str, str]:
    name, equals, value = entry.partition("=")
    if not equals or not name or not value:
        raise SettingsError(f"{flag} {entry}: write it as {form}.")
    return name, value


def _show(result: "CurateResult", console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("step")
    for name in ("before", "removed", "kept", "tokens kept"):
        table.add_column(name, justify="right")
    table.add_column("most frequent reasons", overflow="fold")
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
            console.print("\n".join(lines[:PREVIEW_LINES]), highlight=False, markup=False)
            if len(lines) > PREVIEW_LINES:
                console.print(f"... {len(lines) - PREVIEW_LINES} lines left out", highlight=False)
    console.print(
        f"\nData:    {result.out / 'data.jsonl'}\n"
        f"Removed: {result.out / 'removed.jsonl'}\n"
        f"Card:    {result.out / 'card.html'}\n"
        f"What each step left stays in {result.work}, so that other steps start from there; it can "
        "be deleted.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
