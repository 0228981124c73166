"""The commands of `taskfit`.

What a command needs is imported in it, after its arguments are checked: a question for help or a
wrong command line is answered at once.
"""

import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.text import Text

from taskfit.cli.audit import HELP as AUDIT_HELP
from taskfit.cli.audit import audit
from taskfit.cli.compare import compare
from taskfit.cli.curate import curate
from taskfit.cli.export import export
from taskfit.cli.flags import (
    AllowOtherBaseOption,
    BatchSizeOption,
    ConfigOption,
    DataOption,
    EpochsOption,
    FromOption,
    LabelOption,
    LearningRateOption,
    MethodOption,
    MethodsOption,
    ModelOption,
    SeedOption,
    SetOption,
    TableArgument,
    TaskOption,
    TestFractionOption,
    TestOption,
    TextOption,
    WeightsOption,
    data_flags,
    one_method,
    read_settings,
    settings_from,
    training_flags,
)
from taskfit.cli.inspect import inspect
from taskfit.cli.label import label as label_command
from taskfit.cli.new_run import (
    FIT_HELP,
    new_folder,
    refuse_without_data,
    refuse_without_model,
    remove_unbegun,
)
from taskfit.cli.next import next_
from taskfit.cli.plan import plan
from taskfit.cli.predict import evaluate, predict
from taskfit.cli.prompts import prompts
from taskfit.cli.report import report
from taskfit.cli.runs import runs
from taskfit.cli.screen import (
    RichScreen,
    StagesScreen,
    Terminal,
    baselines_table,
    mistakes_table,
    plain_table,
    results_table,
)
from taskfit.cli.search import SearchBudgetOption, SearchOption, search_flags, show_search
from taskfit.cli.serve import serve
from taskfit.cli.stopped import (
    INTERRUPTED,
    tell_of_comparison,
    tell_of_run,
    told_when_stopped,
    where_it_goes_on,
)
from taskfit.cli.tuning import chat, generate, judge, tuning_table
from taskfit.cli.ui import ui
from taskfit.errors import SettingsError, TaskfitError
from taskfit.files import failed_write
from taskfit.screen import drop_standard_output, show_what_can_be_shown

if TYPE_CHECKING:
    from taskfit.settings import RunSettings

app = typer.Typer(
    name="taskfit",
    help="Fit a pretrained language model to a text task, and measure it.",
    no_args_is_help=True,
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

    with told_when_stopped(lambda: tell_of_comparison(out)), StagesScreen() as screen:
        results = run_quickstart(
            out, model=model, num_train=num_train, screen=screen, tell=screen.tell
        )
    screen.console.print()
    screen.console.print(results_table(results))
    screen.console.print(
        f"\nReport: {out / 'report.html'}\nTable:  {out / 'results.csv'}\n"
        "Next:\n"
        f"  taskfit predict {out / FITTED} --text 'What a film!'\n"
        f"  taskfit predict {out / FITTED} new.csv -o labelled.csv   (a column named text)\n"
        "  taskfit inspect yours.csv\n"
        "  taskfit fit yours.csv",
        soft_wrap=True,
    )


@app.command(help=FIT_HELP)
def fit(
    table: TableArgument = None,
    data: DataOption = None,
    text: TextOption = None,
    label: LabelOption = None,
    task: TaskOption = None,
    model: ModelOption = None,
    method: MethodOption = None,
    weights: WeightsOption = None,
    epochs: EpochsOption = None,
    learning_rate: LearningRateOption = None,
    batch_size: BatchSizeOption = None,
    test_fraction: TestFractionOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="New folder for the run; else runs/NAME-OF-TABLE.")
    ] = None,
    seed: SeedOption = None,
    test: TestOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    from_: FromOption = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Folder of an interrupted run.")
    ] = None,
    allow_other_base: AllowOtherBaseOption = False,
    search: SearchOption = None,
    search_budget: SearchBudgetOption = None,
    methods: MethodsOption = None,
) -> None:
    """Adapt a model to a task and measure it; leaves a run folder."""
    if out is not None and resume is not None:
        raise SettingsError(
            "Give --out FOLDER for a new run, or --resume FOLDER for an old one, not both."
        )
    others = {
        "method.name": one_method("fit", method, methods),
        "adapter.weights": weights,
        "seed": seed,
        **search_flags(search, search_budget),
        **training_flags(epochs, learning_rate, batch_size, test_fraction),
    }
    flags = data_flags(
        table=table,
        data=data,
        text=text,
        label=label,
        task=task,
        model=model,
        test=test,
        others=others,
    )
    if from_ is not None:
        settings = settings_from(from_, flags, set_, resume=resume, config=config)
    else:
        own = None if resume is None else resume / "settings.yaml"
        goes_on = own is not None and config is None and own.is_file()
        settings = read_settings(str(own) if goes_on else config, flags, set_, lenient=goes_on)
    if resume is None:
        refuse_without_data(settings)
        refuse_without_model(settings)
    source = settings.data.train or settings.task.name
    folder = resume or out or new_folder(source, several_processes=under_torchrun())
    try:
        with told_when_stopped(lambda: tell_of_run(folder)):
            _fit(settings, folder, resume=resume is not None, allow_other_base=allow_other_base)
    except TaskfitError:
        if resume is None and out is None:
            remove_unbegun(folder)
        raise


def _fit(settings: "RunSettings", folder: Path, *, resume: bool, allow_other_base: bool) -> None:
    """Fit, and show what came of it."""
    from taskfit.report.pages import write_page
    from taskfit.search.search_and_fit import search_and_fit
    from taskfit.training.distributed import is_main, process_group

    with process_group(folder, settings) as place:
        # Under torchrun, only the main process speaks.
        console = Terminal(quiet=not is_main())
        where = where_it_goes_on(folder) if resume else None
        console.print(where or f"run: {folder}", style="dim", soft_wrap=True)
        with RichScreen(console) as screen:
            fitted = search_and_fit(
                settings,
                place,
                resume=resume,
                screen=screen,
                report=write_page,
                allow_other_base=allow_other_base,
            )
        result = fitted.result
    show_search(folder, console)
    console.print(tuning_table(result) if settings.method.is_tuning else results_table([result]))
    if (beside := baselines_table(result)) is not None:
        console.print()
        console.print(beside)
    if (mistakes := mistakes_table(result)) is not None:
        console.print("\nmost frequent mistakes")
        console.print(mistakes)
    for warning in result.details.get("warnings", ()):
        console.print(Text.assemble(("note:", "yellow"), f" {warning}"))
    page = folder / "report.html"
    made = page if page.is_file() else f"none yet, taskfit report {folder} makes it"
    console.print(f"\nRun: {folder}   report: {made}", soft_wrap=True)
    use = f"predict {folder} new.csv -o labelled.csv"
    if settings.method.is_tuning:
        use = f"generate {folder} prompts.jsonl -o answers.jsonl"
    console.print(f"Next: taskfit {use}", soft_wrap=True)


app.command()(evaluate)
app.command()(predict)
app.command()(serve)
app.command("label")(label_command)
app.command("next")(next_)


app.command(help=AUDIT_HELP)(audit)
READY = (inspect, prompts, compare, report, runs, plan, curate, export, generate, chat, judge, ui)
for command in READY:
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
    console = Terminal()
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
    table.add_row("FOLDER", "what save_pretrained wrote: config, *.safetensors or *.bin, tokenizer")
    Terminal().print(table)


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(help="A built-in task, to look at it.")] = None,
) -> None:
    """List the built-in data sets, or show one."""
    from taskfit.data import BUILTIN_NAMES, load_builtin
    from taskfit.data.examples import class_counts

    console = Terminal()
    if name is None:
        console.print(
            f"Built-in: {', '.join(BUILTIN_NAMES)}. `taskfit data NAME` shows one.\n"
            "Looked for in data.folder or TASKFIT_DATA first; sentiment is fetched by itself.\n"
            "Your own: .csv, .tsv, .jsonl, .parquet, or a hub id: taskfit fit yours.csv."
        )
        return
    found = load_builtin(name, folder=None)
    table = plain_table("set", "examples", "labels")
    for part, examples in {"train": found.train, **found.evaluations}.items():
        counts = ", ".join(f"{k} {v:,}" for k, v in class_counts(examples).most_common())
        table.add_row(part, f"{len(examples):,}", counts)
    console.print(found.description)
    console.print(table)


def under_torchrun() -> bool:
    """Return whether this is one of several processes of a run."""
    return "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def _refuse(error: TaskfitError) -> NoReturn:
    """Show the user's error, and end."""
    Terminal(stderr=True).print(f"taskfit: {error}", style="red")
    try:
        sys.stdout.flush()
    except OSError:
        # What standard output did not take is not tried again at the very end.
        drop_standard_output()
    sys.exit(2)


def main() -> None:
    """Run the command line; the user's errors end in one message and exit code 2."""
    # The hub's own retries and bars would bury our one message.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    show_what_can_be_shown()
    try:
        if under_torchrun() and sys.argv[1:2] != ["fit"]:
            raise SettingsError("Under torchrun only `taskfit fit` runs; start others without it.")
        app()
    except TaskfitError as error:
        if under_torchrun() and os.environ["RANK"] != "0":
            # The main process mostly says the same, and torchrun then ends this one.
            time.sleep(PATIENCE_SECONDS)
        _refuse(error)
    except Exception as error:
        told = failed_write(error)
        if told is None:
            raise
        _refuse(told)
    except KeyboardInterrupt:
        Terminal(stderr=True).print("stopped", style="red")
        sys.exit(INTERRUPTED)
