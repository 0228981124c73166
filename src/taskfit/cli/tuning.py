"""`taskfit generate`, `chat` and `judge`: use a tuned model, and see what it is worth."""

import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from taskfit.cli.flags import (
    AllowOtherBaseOption,
    ColumnOption,
    DataOption,
    DeviceOption,
    EncodingOption,
    OnlyPredictionsOption,
    OutTableOption,
    OverwriteOption,
    parse_pairs,
    table_of,
)
from taskfit.cli.predict_texts import shortfall_lines
from taskfit.cli.screen import RichScreen, Terminal, plain_table, shown
from taskfit.cli.stopped import tell_of_file, told_when_stopped
from taskfit.errors import DataError, PromptError, SettingsError

if TYPE_CHECKING:
    from taskfit.runs.records import RunResult
    from taskfit.runs.tuning.model import Decoding

MAX_SEED = 2**32 - 1  # that of the settings, which are not imported for --help

ModelArgument = Annotated[
    str, typer.Argument(help="Folder of a tuning run, or a model (hub id, folder, packaged).")
]
TokensOption = Annotated[int, typer.Option("--max-new-tokens", help="Longest answer (tokens).")]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", help="0: the likeliest token each time; above: sampled.")
]
TopOption = Annotated[
    float, typer.Option("--top-p", help="Share of the probability that sampling keeps.")
]
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", help="Text at which an answer ends; repeatable.")
]
KindOption = Annotated[
    str | None,
    typer.Option("--kind", help="instruction, chat, completion or text; default: recognised."),
]
TestOption = Annotated[
    list[str] | None, typer.Option("--test", help="NAME=FILE, evaluation set of the task.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of sampling.")]
TemplateOption = Annotated[
    str | None,
    typer.Option(
        "--chat-template", help="alpaca, chatml, headings, plain, or a file; default: own."
    ),
]


def generate(
    model: ModelArgument,
    out: OutTableOption,
    table: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="Prompts: JSON, JSONL, CSV, Parquet, hub."),
    ] = None,
    data: DataOption = None,
    max_new_tokens: TokensOption = 256,
    temperature: TemperatureOption = 0.0,
    top_p: TopOption = 1.0,
    stop: StopOption = None,
    seed: SeedOption = 0,
    kind: KindOption = None,
    column: ColumnOption = None,
    chat_template: TemplateOption = None,
    encoding: EncodingOption = "utf-8",
    device: DeviceOption = "auto",
    allow_other_base: AllowOtherBaseOption = False,
    only_predictions: OnlyPredictionsOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Answer every prompt of a file, in order; an interrupted command goes on where it was."""
    file = table_of(table, data)
    if file is None:
        raise SettingsError(f"Give a file of prompts: taskfit generate {model} FILE -o {out}")
    columns = parse_pairs("--column", "FIELD=COLUMN", column)
    decoding = _decoding(max_new_tokens, temperature, top_p, stop)

    from taskfit.runs.predict import Shortfalls
    from taskfit.runs.tuning.generate import generate_file

    with told_when_stopped(lambda: tell_of_file(out)), RichScreen() as screen:
        found = generate_file(
            model,
            file,
            out,
            decoding=decoding,
            screen=screen,
            kind=kind,
            columns=columns,
            encoding=encoding,
            device=device,
            template=chat_template,
            seed=seed,
            allow_other_base=allow_other_base,
            only_predictions=only_predictions,
            overwrite=overwrite,
        )
    screen.console.print(f"{found.num_answers:,} answers: {out}", soft_wrap=True, markup=False)
    shortfalls = Shortfalls(found.num_answers + found.num_errors, found.num_errors)
    for line in shortfall_lines(str(out), shortfalls):
        screen.console.print(line, markup=False)


def chat(
    model: ModelArgument,
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    max_new_tokens: TokensOption = 256,
    temperature: TemperatureOption = 0.0,
    top_p: TopOption = 1.0,
    stop: StopOption = None,
    seed: SeedOption = 0,
    chat_template: TemplateOption = None,
    device: DeviceOption = "auto",
    allow_other_base: AllowOtherBaseOption = False,
) -> None:
    """Talk to a model in the terminal, or pipe lines into it; /reset starts over, /exit ends.

    Ctrl-C stops an answer, and ends the talk where none is written; so does the end of the input.
    """
    decoding = _decoding(max_new_tokens, temperature, top_p, stop)

    import torch

    from taskfit.data.messages import Message
    from taskfit.runs.tuning.generate import load_generator

    tuned = load_generator(
        model, device=device, template=chat_template, allow_other_base=allow_other_base
    )
    console = Terminal()
    torch.manual_seed(seed)
    start = [Message("system", system)] if system else []
    turns = list(start)
    tuned.encoder.prompt([*start, Message("user", "Hello")])  # refuses now what it cannot render
    console.print("/reset starts over, /exit ends", style="dim")
    while True:
        said = _asked(console)
        if said is None or said in ("/exit", "/quit"):
            return
        if said == "/reset":
            turns = list(start)
            continue
        if not said:
            continue
        turns.append(Message("user", said))
        pieces: list[str] = []
        try:
            tuned.stream(tuple(turns), decoding, write=partial(_write_at_once, pieces))
        except PromptError as error:
            turns.pop()
            hint = " Start over with /reset." if len(turns) > len(start) else ""
            console.print(f"{error}{hint}", style="red")
            continue
        except KeyboardInterrupt:
            # What stands on the screen was said; the next turn goes on from there.
            console.print(" [stopped]", style="dim", end="")
            if not "".join(pieces).strip():
                turns.pop()
                console.print()
                continue
        console.print()
        turns.append(Message("assistant", "".join(pieces).strip()))


def _asked(console: Terminal) -> str | None:
    """Return the next line of standard input, shown where it was piped in; None at its end.

    Raises:
        DataError: If it is no text in the terminal's encoding.
    """
    try:
        said = console.input(Text("you: ", style="bold")).strip()
    except (EOFError, KeyboardInterrupt) as end:
        console.print()
        if isinstance(end, KeyboardInterrupt):
            raise
        return None
    except UnicodeDecodeError as error:
        console.print()
        raise DataError(
            f"Standard input is not {error.encoding}: byte {error.object[error.start]:#04x}. Save "
            "the lines in this encoding."
        ) from error
    if not sys.stdin.isatty():
        console.print(said, soft_wrap=True)
    return said


def judge(
    run: Annotated[Path, typer.Argument(help="Folder of a finished tuning run.")],
    table: Annotated[
        str | None, typer.Argument(metavar="FILE", help="Instructions with answers, held out.")
    ] = None,
    data: DataOption = None,
    kind: KindOption = None,
    column: ColumnOption = None,
    encoding: EncodingOption = "utf-8",
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="Classification task, built-in or a task file; repeatable."),
    ] = None,
    test: TestOption = None,
    max_test: Annotated[
        int, typer.Option("--max-test", help="Most examples of each set of a task.")
    ] = 200,
    max_new_tokens: TokensOption = 128,
    device: DeviceOption = "auto",
    allow_other_base: AllowOtherBaseOption = False,
) -> None:
    """Measure a tuned model beside its base: answers, references, and other tasks."""
    file = table_of(table, data)
    columns = parse_pairs("--column", "FIELD=COLUMN", column)
    tests = parse_pairs("--test", "NAME=FILE", test)
    decoding = _decoding(max_new_tokens, 0.0, 1.0, None)

    from taskfit.compare.judge import judge as judge_run
    from taskfit.compare.judge import judgement_rows
    from taskfit.data.instructions import read_instructions

    read = None
    if file is not None:
        read = read_instructions(file, kind=kind, columns=columns, encoding=encoding)
    with RichScreen() as screen:
        for note in () if read is None else read.notes:
            screen.note(note)
        found = judge_run(
            run,
            rows=None if read is None else read.rows,
            tasks=task or (),
            tests=tests,
            decoding=decoding,
            max_test=max_test,
            device=device,
            screen=screen,
            allow_other_base=allow_other_base,
        )
    rows_table = plain_table("on", "measure", ">base", ">tuned", "difference")
    for number in rows_table.columns[2:]:
        number.no_wrap = True
    for row in judgement_rows(found):
        rows_table.add_row(*row)
    screen.console.print(rows_table)
    if found["tasks"]:
        screen.console.print("In brackets: 95 % interval of the difference.")
    screen.console.print(f"\nAll figures: {run / 'judgement.json'}")


def tuning_table(result: "RunResult") -> Table:
    """Return a table of a tuning run's held-out sets, before and after."""
    table = plain_table("set", "rows", "measure", "before", "after")
    for name, after in result.details["after"].items():
        before = result.details["before"][name]
        for key, value in after.items():
            if key not in ("num_rows", "num_tokens", "loss_low", "loss_high"):
                row = (name, f"{after['num_rows']:,}", key.replace("_", " "))
                table.add_row(*row, f"{before[key]:.3f}", f"{value:.3f}")
    return table


def _decoding(
    max_new_tokens: int, temperature: float, top_p: float, stop: Sequence[str] | None
) -> "Decoding":
    is_possible = math.isfinite(temperature) and temperature >= 0 and 0 < top_p <= 1
    if max_new_tokens < 1 or not is_possible:
        raise SettingsError(
            f"--max-new-tokens {max_new_tokens}, --temperature {temperature}, --top-p {top_p}: "
            "give at least 1 token, a temperature of 0 or more, a share above 0 and up to 1."
        )

    from taskfit.runs.tuning.model import Decoding

    return Decoding(max_new_tokens, temperature, top_p, tuple(stop or ()))


def _write_at_once(pieces: list[str], piece: str) -> None:
    pieces.append(piece)
    sys.stdout.write(shown(piece))
    sys.stdout.flush()
