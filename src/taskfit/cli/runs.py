"""`taskfit runs`: the run folders below a place and what they are."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from taskfit.cli.screen import Terminal
from taskfit.errors import CheckpointError

if TYPE_CHECKING:
    from taskfit.runs.listing import FoundRun

WIDE = 100  # characters of a terminal that has room for all columns
STYLES = {"finished": "", "interrupted": "yellow", "not started": "dim"}


def runs(
    place: Annotated[Path, typer.Argument(help="Folder to look in.")] = Path("runs"),
) -> None:
    """List the runs below a folder: what was fitted to what, how good it is, what is unfinished."""
    if not place.is_dir():
        raise CheckpointError(
            f"There is no folder {place}. `taskfit fit` makes its runs in `runs/`; give another "
            "place with `taskfit runs FOLDER`."
        )
    from taskfit.runs.listing import find_runs

    found = find_runs(place)
    console = Terminal()
    if not found:
        console.print(f"No runs in {place}.")
        return
    console.print(_table(found, place, is_wide=console.width >= WIDE))
    unfinished = [run for run in found if run.state == "interrupted"]
    if unfinished:
        console.print(
            f"\nGo on with an interrupted one: taskfit fit --resume {unfinished[0].folder}",
            soft_wrap=True,
        )


def _from(origin: str, place: Path) -> str:
    """Return the run that one went on from, relative to the place if it lies below it."""
    path = Path(origin)
    below = path.is_relative_to(place.resolve())
    return str(path.relative_to(place.resolve())) if origin and below else origin


def _table(found: "list[FoundRun]", place: Path, *, is_wide: bool) -> Table:
    """Return a row for every run; a narrow terminal has no room for model and size."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold")
    for name in ("method", *(("model",) if is_wide else ())):
        table.add_column(name)
    table.add_column("labels", justify="right")
    table.add_column("set")
    has_origin = any(run.origin for run in found)
    if has_origin:
        table.add_column("from", overflow="fold")
    for name in ("accuracy", "MCC", *(("MB",) if is_wide else ())):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("finished", no_wrap=True)
    for run in found:
        name = "." if run.folder == place else str(run.folder.relative_to(place))
        sets = list(run.scores.items())
        more = f" (+{len(sets) - 1})" if len(sets) > 1 else ""
        cells = [name, run.method]
        cells += [run.model] if is_wide else []
        cells.append("" if run.num_train is None else f"{run.num_train:,}")
        cells.append(f"{sets[0][0]}{more}" if sets else "")
        if has_origin:
            cells.append(_from(run.origin, place))
        cells += [f"{value:.3f}" for value in sets[0][1]] if sets else ["", ""]
        cells += [f"{run.num_bytes / 1e6:,.0f}"] if is_wide else []
        cells.append(run.created[:10] or run.state)
        table.add_row(*cells, style=STYLES[run.state])
    return table
