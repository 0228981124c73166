"""The commands of `taskfit`.

What a command needs is imported in it, after its arguments are checked: a question for help or a
wrong command line is answered at once.
"""

import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from taskfit.cli.compare import compare
from taskfit.cli.curate import curate
from taskfit.cli.export import export
from taskfit.cli.flags import (
    ConfigOption,
    DataOption,
    DeviceOption,
    EncodingOption,
    LabelOption,
    MethodOption,
    ModelOption,
    OutTableOption,
    RunArgument,
    SeedOption,
    SetOption,
    TaskOption,
    TestOption,
    TextOption,
    WeightsOption,
    data_flags,
    parse_options,
    read_settings,
)
from taskfit.cli.plan import plan
from taskfit.cli.prompts import prompts
from taskfit.cli.report import report
from taskfit.cli.runs import runs
from taskfit.cli.screen import (
    RichScreen,
    StagesScreen,
    baselines_table,
    evaluation_cells,
    plain_table,
    results_table,
    terminal,
)
from taskfit.cli.search import SearchBudgetOption, SearchOption, search_flags, show_search
from taskfit.cli.tuning import chat, generate, judge, tuning_table
from taskfit.errors import SettingsError, TaskfitError

app = typer.Typer(
    name="taskfit",
    help="Fit a pretrained language model to a text task, and measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

PATIENCE_SECONDS = 10.0


def show_version(is_asked: bool) -> None:
    """Print the version and end, if that is what is asked for."""
    if is_asked:
        typer.echo(f"taskfit {metadata.version('taskfit')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Folder for results.")] = Path(
        "runs/quickstart"
    ),
    model: Annotated[str, typer.Option("--model", help="Model to try.")] = "smollm2-135m",
    num_train: Annotated[int, typer.Option(help="Labelled examples for fine-tuning.")] = 256,
) -> None:
    """Classify real text zero-shot, few-shot and fine-tuned, and report; minutes on two cores."""
    from taskfit.compare.quickstart import FITTED
    from taskfit.compare.quickstart import quickstart as run_quickstart

    with StagesScreen() as screen:
        results = run_quickstart(
            out, model=model, num_train=num_train, screen=screen, tell=screen.tell
        )
    screen.console.print()
    screen.console.print(results_table(results))
    screen.console.print(
        f"\nReport: {out / 'report.html'}\nTable:  {out / 'results.csv'}\n"
        "Next:\n"
        f"  taskfit predict {out / FITTED} new.csv -o labelled.csv   (a column named text)\n"
        "  taskfit inspect --data yours.csv --text TEXT --label LABEL\n"
        "  taskfit fit --data yours.csv --text TEXT --label LABEL --out runs/mine",
        soft_wrap=True,
    )


@app.command()
def fit(
    data: DataOption = None,
    text: TextOption = None,
    label: LabelOption = None,
    task: TaskOption = None,
    model: ModelOption = None,
    method: MethodOption = None,
    weights: WeightsOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="New folder for the run.")] = None,
    seed: SeedOption = None,
    test: TestOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Folder of an interrupted run.")
    ] = None,
    search: SearchOption = None,
    search_budget: SearchBudgetOption = None,
) -> None:
    """Adapt a model to a task and measure it; leaves a run folder."""
    if (out is None) == (resume is None):
        raise SettingsError("Give --out FOLDER for a new run, or --resume FOLDER for an old one.")
    others = {"method.name": method, "adapter.weights": weights, "seed": seed}
    others |= search_flags(search, search_budget)
    flags = data_flags(
        data=data, text=text, label=label, task=task, model=model, test=test, others=others
    )
    folder = resume or out
    assert folder is not None
    own = folder / "settings.yaml"
    goes_on = resume is not None and config is None and own.is_file()
    settings = read_settings(str(own) if goes_on else config, flags, set_, lenient=goes_on)

    from taskfit.report.pages import write_page
    from taskfit.search.search_and_fit import search_and_fit
    from taskfit.training.distributed import is_main, process_group

    with process_group(folder, settings) as place:
        # Under torchrun, only the main process speaks.
        console = terminal(quiet=not is_main())
        again = resume is not None
        with RichScreen(console) as screen:
            fitted = search_and_fit(settings, place, resume=again, screen=screen, report=write_page)
        result = fitted.result
    show_search(folder, console)
    console.print(tuning_table(result) if settings.method.is_tuning else results_table([result]))
    if (beside := baselines_table(result)) is not None:
        console.print()
        console.print(beside)
    for warning in result.details.get("warnings", ()):
        console.print(Text.assemble(("note:", "yellow"), f" {warning}"))
    console.print(f"\nRun: {folder}   report: {folder / 'report.html'}")


@app.command()
def evaluate(
    run: RunArgument,
    data: Annotated[str, typer.Option("--data", help="Labelled table or hub id.")],
    name: Annotated[str | None, typer.Option("--name", help="Name of the set.")] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="Column to cut the metrics up by, or gold; repeat to cross."),
    ] = None,
    encoding: EncodingOption = "utf-8",
    device: DeviceOption = "auto",
) -> None:
    """Measure a finished run on another labelled table; adds it to the run's results."""
    from taskfit.runs.predict import evaluate_file

    screen = RichScreen()
    name = name or Path(data).name.split(".")[0]
    rows = evaluate_file(
        run, data, name=name, encoding=encoding, device=device, screen=screen, by=by or ()
    )
    table = plain_table("set", "n", "accuracy", "95 %", "MCC", "F1", "ECE")
    for row, evaluation in rows.items():
        table.add_row(row, *evaluation_cells(evaluation))
    screen.console.print(table)


@app.command()
def predict(
    run: RunArgument,
    file: Annotated[str, typer.Argument(help="Table with the task's text columns.")],
    out: OutTableOption,
    encoding: EncodingOption = "utf-8",
    device: DeviceOption = "auto",
    options: Annotated[
        list[str] | None,
        typer.Option("--options", help="QUESTION=a,b,c: other options; repeatable."),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            "--coverage",
            help="Add sets of labels that hold the right one with this probability, such as 0.9.",
        ),
    ] = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Let the coverage hold for every label.")
    ] = False,
) -> None:
    """Label the texts of a file, with the probability of every label."""
    if per_class and coverage is None:
        raise SettingsError("--per-class is about --coverage; give --coverage 0.9 with it.")
    asked = parse_options(options or [])

    from taskfit.runs.predict import predict_file

    screen = RichScreen()
    found = predict_file(
        run,
        file,
        out,
        encoding=encoding,
        device=device,
        screen=screen,
        options=asked,
        coverage=coverage,
        per_class=per_class,
    )
    several = len(found.counts) > 1
    counts = "; ".join(
        (f"{column.removeprefix('predicted_')}: " if several else "")
        + ", ".join(f"{label} {count:,}" for label, count in by_label.items())
        for column, by_label in found.counts.items()
    )
    screen.console.print(f"{found.num_texts:,} texts labelled ({counts}): {out}")
    for column, by_size in found.set_sizes.items():
        sizes = ", ".join(f"{count:,} of size {size}" for size, count in by_size.items())
        whose = f" of {column.removeprefix('prediction_set_size_')}" if several else ""
        screen.console.print(
            f"prediction sets{whose} at coverage {coverage:g}: {sizes}; they keep it on texts like "
            "the validation set's"
        )


@app.command()
def inspect(
    data: DataOption = None,
    text: TextOption = None,
    label: LabelOption = None,
    task: TaskOption = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Check a task before any training: prompt, label words, duplicates, lengths, savings."""
    flags = data_flags(data=data, text=text, label=label, task=task, model=model)
    settings = read_settings(config, flags, set_)

    from taskfit.cli.inspect_view import show_inspection
    from taskfit.runs.inspection import inspect_task

    show_inspection(inspect_task(settings), terminal())


for command in (prompts, compare, report, runs, plan, curate, export, generate, chat, judge):
    app.command()(command)


@app.command()
def methods() -> None:
    """List the methods that --method takes, and the ready settings files."""
    from taskfit.methods.table import METHODS
    from taskfit.settings_file import preset_names

    table = plain_table("method", "what it does")
    table.add_row(
        "auto", "The default: head, blended with probes; trained as long as labels ask for."
    )
    for name in METHODS:
        table.add_row(name, METHODS.summary(name))
    console = terminal()
    console.print(table)
    console.print(f"\nReady settings files for --config: {', '.join(preset_names())}")


@app.command()
def models() -> None:
    """List the packaged models and what else --model takes."""
    from taskfit.models.packaged import PACKAGED_MODELS

    table = plain_table("name", "what")
    for name, packaged in PACKAGED_MODELS.items():
        table.add_row(name, packaged.description)
    table.add_row("OWNER/NAME", "any causal LM of pure attention on the hub, e.g. Qwen, Llama")
    table.add_row("FOLDER", "what save_pretrained wrote: config, *.safetensors, tokenizer")
    terminal().print(table)


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(help="A built-in task, to look at it.")] = None,
) -> None:
    """List the built-in data sets, or show one."""
    from taskfit.data import BUILTIN_NAMES, load_builtin
    from taskfit.data.examples import class_counts

    console = terminal()
    if name is None:
        console.print(
            f"Built-in: {', '.join(BUILTIN_NAMES)}. `taskfit data NAME` shows one.\n"
            "Looked for in data.folder or TASKFIT_DATA first; sentiment is fetched by itself.\n"
            "Your own: .csv, .tsv, .jsonl, .parquet, or a hub id with --data."
        )
        return
    found = load_builtin(name, folder=None)
    table = plain_table("set", "examples", "labels")
    for part, examples in {"train": found.train, **found.evaluations}.items():
        counts = ", ".join(f"{k} {v:,}" for k, v in class_counts(examples).most_common())
        table.add_row(part, f"{len(examples):,}", counts)
    console.print(found.description)
    console.print(table)


def main() -> None:
    """Run the command line; the user's errors end in one message and exit code 2."""
    # The hub's own retries and bars would bury our one message.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    under_torchrun = "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    try:
        if under_torchrun and sys.argv[1:2] != ["fit"]:
            raise SettingsError("Under torchrun only `taskfit fit` runs; start others without it.")
        app()
    except TaskfitError as error:
        if under_torchrun and os.environ["RANK"] != "0":
            # The main process mostly says the same, and torchrun then ends this one.
            time.sleep(PATIENCE_SECONDS)
        terminal(stderr=True).print(f"taskfit: {error}", style="red")
        sys.exit(2)
    except KeyboardInterrupt:
        terminal(stderr=True).print("stopped", style="red")
        sys.exit(130)
