"""`taskfit compare`: a grid of methods, sample sizes and draws on one task."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from taskfit.cli.flags import (
    AllowOtherBaseOption,
    BatchSizeOption,
    CpusPerRunOption,
    DataOption,
    EpochsOption,
    GpusPerRunOption,
    LabelOption,
    LearningRateOption,
    RayAddressOption,
    SetOption,
    TableArgument,
    TaskOption,
    TestFractionOption,
    TestOption,
    TextOption,
    data_flags,
    training_flags,
)
from taskfit.cli.limits import (
    MaxLatencyOption,
    MaxMemoryOption,
    MaxTrainTimeOption,
    parse_bytes,
    parse_limits,
    parse_seconds,
)
from taskfit.cli.report import show_advice
from taskfit.cli.screen import RichScreen, Terminal, plain_table
from taskfit.cli.stopped import same_command, tell_of_comparison, told_when_stopped
from taskfit.errors import SettingsError

if TYPE_CHECKING:
    from taskfit.compare.folder import GridFolder
    from taskfit.compare.grid import Grid
    from taskfit.runs.records import RunResult
    from taskfit.stats import Evaluation


def compare(
    table: TableArgument = None,
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
        list[str] | None,
        typer.Option(
            "--methods",
            "--method",
            help="Names with commas, or repeated; default: a choice of all.",
        ),
    ] = None,
    sizes: Annotated[
        str | None, typer.Option("--sizes", help="Numbers of labels with commas; default: all.")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Draws of each size.")] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Start nothing that ends after: 90s, 30m, 2h.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the comparison.")] = Path(
        "runs/compare"
    ),
    epochs: EpochsOption = None,
    learning_rate: LearningRateOption = None,
    batch_size: BatchSizeOption = None,
    test_fraction: TestFractionOption = None,
    set_: SetOption = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Runs at the same time, as processes.")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Run on a Ray cluster, new or given.")] = False,
    ray_address: RayAddressOption = None,
    cpus_per_run: CpusPerRunOption = 1.0,
    gpus_per_run: GpusPerRunOption = 0.0,
    memory_per_run: Annotated[
        str | None, typer.Option("--memory-per-run", help="With Ray: memory of a run: 4GB.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the runs in their order, and run nothing.")
    ] = False,
    max_memory: MaxMemoryOption = None,
    max_latency: MaxLatencyOption = None,
    max_train_time: MaxTrainTimeOption = None,
    allow_other_base: AllowOtherBaseOption = False,
) -> None:
    """Fit many methods at many sample sizes and measure them side by side; resumes by itself."""
    from taskfit.overrides import parse_overrides
    from taskfit.settings_base import merge_settings

    seconds = parse_seconds("--budget", budget)
    numbers = None if sizes is None else [_number(part) for part in sizes.split(",")]
    training = training_flags(epochs, learning_rate, batch_size, test_fraction)
    flags = data_flags(
        table=table, data=data, text=text, label=label, task=task, test=test, others=training
    )
    overrides = parse_overrides(set_ or ())
    memory = parse_bytes("--memory-per-run", memory_per_run)
    use_ray = ray or ray_address is not None
    if not use_ray:
        _refuse_ray_flags(cpus_per_run, gpus_per_run, memory)
    limits = parse_limits(max_memory, max_latency, max_train_time)

    from taskfit.compare.grid import describe_runs, expand_grid, hold_out_test, load_grid

    screen = RichScreen()
    console = screen.console
    found: dict[str, Any] = load_grid(config) if config else {}
    base: dict[str, Any] = dict(found.get("base") or {})
    merge_settings(base, flags)
    merge_settings(base, overrides)
    found |= {"base": base, "methods": _chosen(found.get("methods"), methods or ())}
    given = {"sizes": numbers, "seeds": seeds, "models": model or None}
    found |= {key: value for key, value in given.items() if value is not None}
    if hold_out_test(found):
        console.print(
            f"No evaluation set was given: {base['data']['test_fraction']:.0%} of the training "
            "table, the same for every run, is held out as `test` (data.test_fraction; give your "
            "own set with --test NAME=FILE)."
        )
    grid = expand_grid(found)
    console.print(f"{len(grid.runs)} runs: {describe_runs(grid.runs)}")
    if dry_run:
        _show_runs(grid, out, console)
        return

    from taskfit.compare.pool import Execution
    from taskfit.compare.run import run_grid
    from taskfit.report.comparison_page import report_comparison
    from taskfit.runs.cluster import RayCluster

    cluster = RayCluster(ray_address, cpus_per_run, gpus_per_run, memory) if use_ray else None
    execution = Execution(workers, cluster)
    with told_when_stopped(lambda: tell_of_comparison(out)), screen:
        outcome = run_grid(
            grid,
            out,
            screen=screen,
            show=screen.update,
            execution=execution,
            budget_seconds=seconds,
            allow_other_base=allow_other_base,
        )
    _summarize(outcome, out, console)
    if outcome.results:
        show_advice(report_comparison(out, limits=limits, screen=screen), console)
    elif outcome.failures:
        raise typer.Exit(2)  # each was told above


def _summarize(outcome: "GridFolder", out: Path, console: Terminal) -> None:
    """Print results, failures, and the command that goes on from here."""
    console.print(_means(outcome.results))
    for name, message in outcome.failures.items():
        console.print(f"failed: {name}: {message}", style="red")
    if outcome.failures or len(outcome.left):
        console.print(
            f"{len(outcome.failures)} runs failed and {len(outcome.left)} were not started. The "
            f"same command does only those, and keeps what is finished:\n  {same_command()}",
            soft_wrap=True,
        )
    console.print(
        f"\nAll results: {out / 'results.csv'}   every step: {out / 'history.csv'}", soft_wrap=True
    )


def _means(results: Sequence["RunResult"]) -> Table:
    """Return the mean accuracy and MCC over draws, below it the smallest and the largest."""
    groups: dict[tuple[str, str, int, str], list[Evaluation]] = {}
    for result in results:
        labels = result.num_train + result.num_demonstrations
        for name, evaluation in result.evaluations.items():
            groups.setdefault((result.name, result.model, labels, name), []).append(evaluation)
    measured = (">n", ">draws", ">accuracy", ">MCC")
    table = plain_table("method", "model", ">labels", "set", *measured)
    for column in table.columns:
        # A narrow terminal breaks names, never numbers.
        column.no_wrap, column.overflow = column.justify == "right", "fold"
    for (method, model, labels, name), found in groups.items():
        cells = [f"{found[0].num_examples:,}", str(len(found))]
        cells += [_mean([getattr(e, metric) for e in found]) for metric in ("accuracy", "mcc")]
        table.add_row(method, model, f"{labels:,}", name, *cells)
    return table


def _mean(values: Sequence[float]) -> str:
    mean = f"{sum(values) / len(values):.3f}"
    return mean if len(values) == 1 else f"{mean}\n{min(values):.3f} to {max(values):.3f}"


def _show_runs(grid: "Grid", out: Path, console: Terminal) -> None:
    """Print every run in its order, and what became of it so far."""
    from taskfit.runs.file_names import RESULT_FILE, SETTINGS_FILE

    table = plain_table("", "method", "model", "labels", "seed", "folder", "state")
    for place, run in enumerate(grid.runs, start=1):
        target = out / "runs" / run.folder
        state = "to do"
        if (target / RESULT_FILE).is_file():
            state = "finished"
        elif (target / SETTINGS_FILE).is_file():
            state = "to go on"
        size, seed = str(run.size or "all"), str(run.settings.seed)
        table.add_row(str(place), run.name, run.settings.model.name, size, seed, run.folder, state)
    console.print(table)
    for name, message in grid.refused.items():
        console.print(f"refused: {name}: {message}", style="red")


def _refuse_ray_flags(cpus: float, gpus: float, memory: int | None) -> None:
    if memory is not None or gpus or cpus != 1.0:
        raise SettingsError(
            "--cpus-per-run, --gpus-per-run and --memory-per-run are for --ray. Workers on this "
            "machine share its cores (--workers N)."
        )


def _chosen(given: Any, names: Sequence[str]) -> dict[str, Any]:  # noqa: ANN401 - from a file
    """Return the methods of the grid: those of the file, of the flag, or the default choice."""
    from taskfit.methods.table import DEFAULT_METHODS, METHODS

    methods: dict[str, Any] = dict(given or DEFAULT_METHODS)
    if not names:
        return methods
    chosen = {}
    for name in (part.strip() for listed in names for part in listed.split(",")):
        if name not in methods and name not in METHODS:
            allowed = ", ".join(dict.fromkeys([*methods, *METHODS]))
            raise SettingsError(f"--methods {name}: there is no such method. Allowed: {allowed}.")
        chosen[name] = methods.get(name, {"method": {"name": name}})
    return chosen


def _number(text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise SettingsError(
            f"--sizes {text!r}: write whole numbers with commas, such as 16,64,256."
        )
    return int(text)
