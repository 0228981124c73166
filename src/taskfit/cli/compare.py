"""`taskfit compare`: a grid of methods, sample sizes and draws on one task."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from taskfit.cli.flags import (
    DataOption,
    LabelOption,
    SetOption,
    TaskOption,
    TestOption,
    TextOption,
    data_flags,
)

UNITS = {"s": 1, "m": 60, "h": 3600}


def compare(
    config: Annotated[
        Path | None, typer.Option("--config", help="Grid file (YAML); see docs/methods.md.")
    ] = None,
    data: DataOption = None,
    text: TextOption = None,
    label: LabelOption = None,
    task: TaskOption = None,
    test: TestOption = None,
    model: Annotated[list[str] | None, typer.Option("--model", help="Model; repeatable.")] = None,
    methods: Annotated[
        str | None, typer.Option("--methods", help="Names with commas; default: a choice of all.")
    ] = None,
    sizes: Annotated[
        str | None, typer.Option("--sizes", help="Numbers of labels with commas; default: all.")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Draws of each size.")] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Start no run after this: 90s, 30m, 2h.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the comparison.")] = Path(
        "runs/compare"
    ),
    set_: SetOption = None,
) -> None:
    """Fit many methods at many sample sizes and measure them side by side; resumes by itself."""
    from taskfit.cli.screen import RichScreen, results_table
    from taskfit.experiments.grid.grid import describe_runs, expand_grid, load_grid, run_grid
    from taskfit.settings_file import merge_settings, parse_overrides

    grid: dict[str, Any] = load_grid(config) if config else {}
    base: dict[str, Any] = dict(grid.get("base") or {})
    flags = data_flags(data=data, text=text, label=label, task=task, model=None, test=test)
    merge_settings(base, flags)
    merge_settings(base, parse_overrides(set_ or ()))
    grid["base"] = base
    grid["methods"] = _chosen(grid.get("methods"), methods)
    if sizes is not None:
        grid["sizes"] = [_number(part) for part in sizes.split(",")]
    if seeds is not None:
        grid["seeds"] = seeds
    if model:
        grid["models"] = model
    runs = expand_grid(grid)
    console = Console()
    console.print(f"{len(runs)} runs: {describe_runs(runs)}", highlight=False)
    screen = RichScreen(console)
    try:
        outcome = run_grid(runs, out, screen=screen, budget_seconds=_seconds(budget))
    finally:
        screen.close()
    console.print(results_table(outcome.results))
    for name, message in outcome.failures.items():
        console.print(f"failed: {name}: {message}", style="red", markup=False, highlight=False)
    if outcome.failures or outcome.num_left:
        console.print(
            f"{len(outcome.failures)} runs failed and {outcome.num_left} were not started; the "
            "same command tries them again and keeps what is finished.",
            highlight=False,
        )
    console.print(f"\nAll results: {out / 'results.csv'}", highlight=False)


def _chosen(given: Any, names: str | None) -> dict[str, Any]:  # noqa: ANN401 - from a file
    """Return the methods of the grid: those of the file, of the flag, or the default choice."""
    from taskfit.errors import SettingsError
    from taskfit.experiments.grid.grid import DEFAULT_METHODS
    from taskfit.methods.table import METHODS

    methods: dict[str, Any] = dict(given or DEFAULT_METHODS)
    if names is None:
        return methods
    chosen = {}
    for name in (part.strip() for part in names.split(",")):
        if name not in methods and name not in METHODS:
            allowed = ", ".join(dict.fromkeys([*methods, *METHODS]))
            raise SettingsError(f"--methods {name}: there is no such method. Allowed: {allowed}.")
        chosen[name] = methods.get(name, {"method": {"name": name}})
    return chosen


def _number(text: str) -> int:
    from taskfit.errors import SettingsError

    if not text.strip().isdigit() or int(text) < 1:
        raise SettingsError(
            f"--sizes {text!r}: write whole numbers with commas, such as 16,64,256."
        )
    return int(text)


def _seconds(text: str | None) -> float | None:
    from taskfit.errors import SettingsError

    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if match is None:
        raise SettingsError(f"--budget {text}: write a number and s, m or h, such as 90s or 30m.")
    return float(match[1]) * UNITS[match[2]]
