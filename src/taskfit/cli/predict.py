"""`taskfit evaluate` and `taskfit predict`: use a finished run on other texts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskfit.cli.flags import (
    AllowOtherBaseOption,
    DataOption,
    DeviceOption,
    EncodingOption,
    OnlyPredictionsOption,
    OverwriteOption,
    QuotesOption,
    RenameOption,
    RunArgument,
    checked_quotes,
    parse_options,
    parse_pairs,
    table_of,
)
from taskfit.cli.predict_texts import check_places, predict_at_once, shortfalls
from taskfit.cli.screen import RichScreen, evaluation_cells, plain_table
from taskfit.cli.stopped import tell_of_file, told_when_stopped
from taskfit.errors import SettingsError

if TYPE_CHECKING:
    from taskfit.runs.predict import Asking

COLUMNS = "TASK'S=TABLE'S"


def evaluate(
    run: RunArgument,
    table: Annotated[
        str | None, typer.Argument(metavar="FILE", help="Labelled table or hub id.")
    ] = None,
    data: DataOption = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the set.")] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="Column to cut the metrics up by, or gold; repeat to cross."),
    ] = None,
    renamed: RenameOption = None,
    encoding: EncodingOption = "utf-8",
    quotes: QuotesOption = "auto",
    device: DeviceOption = "auto",
    allow_other_base: AllowOtherBaseOption = False,
) -> None:
    """Measure a finished run on another labelled table; adds it to the run's results."""
    file = table_of(table, data)
    if file is None:
        raise SettingsError(f"Give a labelled table: taskfit evaluate {run} FILE")

    columns, quotes = parse_pairs("--column", COLUMNS, renamed), checked_quotes(quotes)

    from taskfit.runs.evaluate import evaluate_file

    screen = RichScreen()
    name = name or Path(file).name.split(".")[0]
    rows = evaluate_file(
        run,
        file,
        name=name,
        encoding=encoding,
        device=device,
        screen=screen,
        by=by or (),
        columns=columns,
        quotes=quotes,
        allow_other_base=allow_other_base,
    )
    rows_table = plain_table("set", ">n", ">accuracy", ">95 %", ">MCC", ">F1", ">ECE")
    for row, evaluation in rows.items():
        rows_table.add_row(row, *evaluation_cells(evaluation))
    screen.console.print(rows_table)


def predict(
    run: RunArgument,
    file: Annotated[
        str | None, typer.Argument(help="Table with the task's text columns; -: standard input.")
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text", help="A text instead of a table; repeatable. Of several columns COLUMN=TEXT."
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("-o", "--out", help=".csv, .tsv, .jsonl or .parquet; -: standard output."),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help="Of -: text (a text a line, the default), csv, tsv or jsonl."
        ),
    ] = None,
    renamed: RenameOption = None,
    encoding: EncodingOption = "utf-8",
    quotes: QuotesOption = "auto",
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
    allow_other_base: AllowOtherBaseOption = False,
    only_predictions: OnlyPredictionsOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Label texts, with the probability of every label; every row comes out, in order."""
    if per_class and coverage is None:
        raise SettingsError("--per-class is about --coverage; give --coverage 0.9 with it.")
    asked, columns = parse_options(options or []), parse_pairs("--column", COLUMNS, renamed)
    checked_quotes(quotes)
    check_places(run, file, text, out, format_)
    asking: Asking = {
        "device": device,
        "options": asked,
        "coverage": coverage,
        "per_class": per_class,
        "allow_other_base": allow_other_base,
        "only_predictions": only_predictions,
    }
    if text or "-" in (file, out):
        predict_at_once(
            run,
            file,
            text or (),
            out,
            form=format_,
            encoding=encoding,
            columns=columns,
            quotes=quotes,
            overwrite=overwrite,
            **asking,
        )
        return
    assert file is not None
    assert out is not None

    from taskfit.runs.predict import predict_file

    screen, target = RichScreen(), Path(out)
    with told_when_stopped(lambda: tell_of_file(target)), screen:
        found = predict_file(
            run,
            file,
            target,
            screen=screen,
            encoding=encoding,
            columns=columns,
            quotes=quotes,
            overwrite=overwrite,
            **asking,
        )
    several = len(found.counts) > 1
    counts = "; ".join(
        (f"{column.removeprefix('predicted_')}: " if several else "")
        + ", ".join(f"{label} {count:,}" for label, count in by_label.items())
        for column, by_label in found.counts.items()
    )
    labelled = found.num_rows - found.num_errors
    screen.console.print(
        f"{labelled:,} texts labelled ({counts}): {out}", soft_wrap=True, markup=False
    )
    for line in shortfalls(out, found.num_rows, found.num_errors, found.num_shortened):
        screen.console.print(line)
    for column, by_size in found.set_sizes.items():
        sizes = ", ".join(f"{count:,} of size {size}" for size, count in by_size.items())
        whose = f" of {column.removeprefix('prediction_set_size_')}" if several else ""
        screen.console.print(
            f"prediction sets{whose} at coverage {coverage:g}: {sizes}; they keep it on texts like "
            "the validation set's"
        )
