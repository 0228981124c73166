"""The commands of `taskfit`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from taskfit.cli.compare import compare
from taskfit.cli.flags import (
    ConfigOption,
    DataOption,
    DeviceOption,
    EncodingOption,
    LabelOption,
    ModelOption,
    SetOption,
    TaskOption,
    TestOption,
    TextOption,
    data_flags,
    nested,
)
from taskfit.cli.plan import plan
from taskfit.cli.prompts import prompts
from taskfit.errors import SettingsError, TaskfitError

app = typer.Typer(
    name="taskfit",
    help="Fit a pretrained language model to a text task, and measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Folder for results.")] = Path(
        "runs/quickstart"
    ),
    model: Annotated[str, typer.Option("--model", help="Model to try.")] = "smollm2-135m",
    num_train: Annotated[int, typer.Option(help="Labelled examples for fine-tuning.")] = 1000,
) -> None:
    """Classify real text zero-shot, few-shot and fine-tuned, and report; minutes on two cores."""
    from taskfit.cli.screen import RichScreen, results_table
    from taskfit.experiments import quickstart as run_quickstart

    console = Console()
    screen = RichScreen(console)
    results = run_quickstart(out, model=model, num_train=num_train, screen=screen)
    console.print(results_table(results))
    console.print(
        f"\nReport: {out / 'report.html'}\nTable:  {out / 'results.csv'}\n"
        "Next, on your own table:\n"
        "  taskfit inspect --data yours.csv --text TEXT --label LABEL\n"
        "  taskfit fit --data yours.csv --text TEXT --label LABEL --out runs/mine\n"
        f"  taskfit predict {out / 'label_words'} new.csv -o labelled.csv   "
        "(new.csv: a column named text)",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def fit(
    data: DataOption = None,
    text: TextOption = None,
    label: LabelOption = None,
    task: TaskOption = None,
    model: ModelOption = None,
    method: Annotated[
        str | None, typer.Option("--method", help="How to adapt; `taskfit methods` lists all.")
    ] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="full, lora or qlora.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="New folder for the run.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of every draw.")] = None,
    test: TestOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Folder of an interrupted run.")
    ] = None,
) -> None:
    """Adapt a model to a task and measure it; leaves a run folder."""
    from taskfit.cli.screen import RichScreen, results_table
    from taskfit.experiments import fit as run_fit
    from taskfit.experiments.questions.fit import fit_questions
    from taskfit.settings_file import find_settings, load_settings
    from taskfit.tasks.question_files import is_questionnaire

    if (out is None) == (resume is None):
        raise SettingsError("Give --out FOLDER for a new run, or --resume FOLDER for an old one.")
    flags = data_flags(data=data, text=text, label=label, task=task, model=model, test=test)
    flags.update(nested({"method.name": method, "adapter.weights": weights, "seed": seed}))
    folder = resume or out
    assert folder is not None
    own = folder / "settings.yaml"
    base = find_settings(config) if config else own if resume and own.is_file() else None
    settings = load_settings(
        base,
        flags=flags,
        overrides=set_ or (),
    )
    console = Console()
    screen = RichScreen(console)
    try:
        if is_questionnaire(settings.task.name):
            result = fit_questions(
                settings, folder, resume=resume is not None, screen=screen
            ).result
        else:
            result = run_fit(settings, folder, resume=resume is not None, screen=screen).result
    finally:
        screen.close()
    console.print(results_table([result]))
    console.print(f"\nRun: {folder}   report: {folder / 'report.html'}", highlight=False)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    data: Annotated[str, typer.Option("--data", help="Labelled table or hub id.")],
    name: Annotated[str | None, typer.Option("--name", help="Name of the set.")] = None,
    encoding: EncodingOption = "utf-8",
    device: DeviceOption = "auto",
) -> None:
    """Measure a finished run on another labelled table; adds it to the run's results."""
    from taskfit.cli.screen import RichScreen, evaluation_cells
    from taskfit.experiments import evaluate_file
    from taskfit.experiments.questions.fit import evaluate_questions, is_question_run

    console = Console()
    called = name or Path(data).name.split(".")[0]
    screen = RichScreen(console)
    if is_question_run(run):
        measured = evaluate_questions(
            run, data, name=called, encoding=encoding, device=device, screen=screen
        )
        rows = {f"{called}/{question}": found for question, found in measured.items()}
    else:
        rows = {
            called: evaluate_file(
                run, data, name=called, encoding=encoding, device=device, screen=screen
            )
        }
    table = Table("set", "n", "accuracy", "95 %", "MCC", "F1", "ECE", box=None, pad_edge=False)
    for row, evaluation in rows.items():
        table.add_row(row, *evaluation_cells(evaluation))
    console.print(table)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    file: Annotated[str, typer.Argument(help="Table with the task's text columns.")],
    out: Annotated[Path, typer.Option("--out", "-o", help=".csv, .tsv, .jsonl or .parquet.")],
    encoding: EncodingOption = "utf-8",
    device: DeviceOption = "auto",
    options: Annotated[
        list[str] | None,
        typer.Option("--options", help="QUESTION=a,b,c: other options; repeatable."),
    ] = None,
) -> None:
    """Label the texts of a file, with the probability of every label."""
    from taskfit.cli.screen import RichScreen
    from taskfit.experiments import predict_file
    from taskfit.experiments.questions.fit import (
        is_question_run,
        parse_options,
        predict_questions,
    )

    console = Console()
    if is_question_run(run):
        table = predict_questions(
            run,
            file,
            out,
            options=parse_options(options or []),
            encoding=encoding,
            device=device,
            screen=RichScreen(console),
        )
        console.print(f"{len(table):,} texts answered: {out}", highlight=False)
        return
    if options:
        raise SettingsError(f"--options is for runs of questions; {run} is none.")
    table = predict_file(
        run, file, out, encoding=encoding, device=device, screen=RichScreen(console)
    )
    counts = ", ".join(f"{k} {v:,}" for k, v in table["predicted"].value_counts().items())
    console.print(f"{len(table):,} texts labelled ({counts}): {out}", highlight=False)


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
    from taskfit.cli.inspect_view import show_inspection
    from taskfit.experiments.inspection import inspect_task
    from taskfit.settings_file import find_settings, load_settings

    flags = data_flags(data=data, text=text, label=label, task=task, model=model, test=None)
    path = find_settings(config) if config else None
    show_inspection(inspect_task(load_settings(path, flags=flags, overrides=set_ or ())), Console())


app.command()(prompts)
app.command()(compare)
app.command()(plan)


@app.command()
def methods() -> None:
    """List the methods that --method takes, and the ready settings files."""
    from taskfit.methods.table import METHODS
    from taskfit.settings_file import preset_names

    table = Table("method", "what it does", box=None, pad_edge=False)
    for name, method in METHODS.items():
        table.add_row(name, (method.__doc__ or "").splitlines()[0])
    console = Console()
    console.print(table)
    console.print(f"\nReady settings files for --config: {', '.join(preset_names())}")


@app.command()
def models() -> None:
    """List the packaged models and what else --model takes."""
    from taskfit.models import PACKAGED_MODELS

    table = Table("name", "what", box=None, pad_edge=False)
    for name, packaged in PACKAGED_MODELS.items():
        table.add_row(name, packaged.description)
    table.add_row("OWNER/NAME", "any causal LM of pure attention on the hub, e.g. Qwen, Llama")
    table.add_row("FOLDER", "what save_pretrained wrote: config, *.safetensors, tokenizer")
    Console().print(table)


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(help="A built-in task, to look at it.")] = None,
) -> None:
    """List the built-in data sets, or show one."""
    from taskfit.data import BUILTIN_NAMES, load_builtin
    from taskfit.data.examples import class_counts

    console = Console()
    if name is None:
        console.print(
            f"Built-in: {', '.join(BUILTIN_NAMES)}. `taskfit data NAME` shows one.\n"
            "Looked for in data.folder or TASKFIT_DATA first; sentiment is fetched by itself.\n"
            "Your own: .csv, .tsv, .jsonl, .parquet, or a hub id with --data.",
            highlight=False,
        )
        return
    found = load_builtin(name, folder=None)
    table = Table("set", "examples", "labels", box=None, pad_edge=False)
    for part, examples in {"train": found.train, **found.evaluations}.items():
        counts = ", ".join(f"{k} {v:,}" for k, v in class_counts(examples).most_common())
        table.add_row(part, f"{len(examples):,}", counts)
    console.print(found.description, highlight=False)
    console.print(table)


def main() -> None:
    """Run the command line; the user's errors end in one message and exit code 2."""
    # The hub's own retries and bars would bury our one message.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except TaskfitError as error:
        Console(stderr=True).print(f"taskfit: {error}", style="red", markup=False, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped", style="red")
        sys.exit(130)
