"""`taskfit evaluate` and `taskfit predict`: use a finished run on other texts."""

import itertools
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskfit.cli.flags import (
    AllowOtherBaseOption,
    CpusPerRunOption,
    DataOption,
    DeviceOption,
    EncodingOption,
    GpusPerRunOption,
    OnlyPredictionsOption,
    OverwriteOption,
    QuotesOption,
    RayAddressOption,
    RenameOption,
    RunArgument,
    checked_quotes,
    parse_options,
    parse_pairs,
    parse_thresholds,
    table_of,
    tell,
)
from taskfit.cli.predict_texts import (
    STANDARD,
    check_places,
    predict_given,
    predict_texts,
    shortfall_lines,
)
from taskfit.cli.screen import RichScreen, evaluation_cells, plain_table
from taskfit.cli.stopped import tell_of_file, told_when_stopped
from taskfit.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from taskfit.runs.cluster import RayCluster
    from taskfit.runs.predict import PredictedFile
    from taskfit.runs.predictor import Asking
    from taskfit.runs.table_texts import GivenTable

ABSTAINED = "abstained"
MOST_ANSWERS = 12

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
    abstain_below: Annotated[
        float | None,
        typer.Option(
            "--abstain-below", help="Leave answers out whose probability is lower, such as 0.8."
        ),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            "--threshold",
            help="Several labels a text: give labels from this probability on, such as 0.3, or one "
            "of them: LABEL=0.3; repeatable.",
        ),
    ] = None,
    use_ray: Annotated[
        bool, typer.Option("--ray", help="Predict on a Ray cluster, new or given.")
    ] = False,
    ray_address: RayAddressOption = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="With Ray: copies of the run at work.")
    ] = None,
    cpus: CpusPerRunOption = 1.0,
    gpus: GpusPerRunOption = 0.0,
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
    cluster = _cluster(use_ray or ray_address is not None, ray_address, workers, cpus, gpus)
    asking: Asking = {
        "device": device,
        "options": asked,
        "coverage": coverage,
        "per_class": per_class,
        "abstain_below": abstain_below,
        "thresholds": parse_thresholds(threshold or []),
        "allow_other_base": allow_other_base,
        "only_predictions": only_predictions,
    }
    form = format_ or ("text" if file in (None, STANDARD) else "csv")
    if text:
        predict_texts(run, text, out, form=form, **asking)
        return
    assert file is not None
    assert out is not None

    from taskfit.runs.predict import check_target, predict_file

    if STANDARD in (file, out):
        if out != STANDARD:
            check_target(Path(out))
        if cluster is not None:
            raise SettingsError("--ray is for files, which all machines reach; not for -.")
        with _given(file, form, encoding, quotes) as given:
            predict_given(run, given, out, form=form, columns=columns, **asking)
        return
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
            cluster=cluster,
            workers=workers,
            **asking,
        )
    for line in (
        labelled_line(out, found),
        *shortfall_lines(out, found.shortfalls),
        *_abstentions(found, abstain_below),
        *_set_sizes(found, coverage),
    ):
        screen.console.print(line, soft_wrap=True, markup=False)


@contextmanager
def _given(file: str, form: str, encoding: str, quotes: str) -> "Iterator[GivenTable]":
    """Lend the texts of a file or of standard input, which lies in a file of its own meanwhile."""
    from taskfit.cli.given import StandardInput
    from taskfit.runs.table_texts import GivenFile

    if file != STANDARD:
        yield GivenFile(file, encoding=encoding, quotes=quotes)
        return
    if sys.stdin.isatty():
        tell("reading from the keyboard; Ctrl-D ends it")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "standard-input"
        yield StandardInput(sys.stdin.buffer, place, form=form, encoding=encoding, quotes=quotes)


def _cluster(
    use_ray: bool, address: str | None, workers: int | None, cpus: float, gpus: float
) -> "RayCluster | None":
    """Return the cluster that is asked for.

    Raises:
        SettingsError: If what is for a cluster alone is given without one.
    """
    if use_ray:
        from taskfit.runs.cluster import RayCluster

        return RayCluster(address, cpus, gpus)
    if workers is not None or (cpus, gpus) != (1.0, 0.0):
        raise SettingsError(
            "--workers, --cpus-per-run and --gpus-per-run are for --ray. One process uses this "
            "machine's cores by itself."
        )
    return None


def labelled_line(out: str, found: "PredictedFile") -> str:
    """Say how many texts of a file were labelled, and how."""
    several = len(found.counts) > 1
    counts = "; ".join(
        (f"{column.removeprefix('predicted_')}: " if several else "") + _most_frequent(by_answer)
        for column, by_answer in found.counts.items()
    )
    return f"{found.num_rows - found.num_errors:,} texts labelled ({counts}): {out}"


def _most_frequent(counts: "Mapping[str, int]") -> str:
    """Return how often answers were given, most frequent first; of very many only the first."""
    shown = [
        f"{answer or 'none of them'} {count:,}"
        for answer, count in itertools.islice(counts.items(), MOST_ANSWERS)
    ]
    if more := len(counts) - len(shown):
        shown.append(f"{more:,} other answer{'s' * (more > 1)}")
    return ", ".join(shown)


def _abstentions(found: "PredictedFile", threshold: float | None) -> "Iterator[str]":
    """Say how many answers were left out."""
    for column, count in found.num_abstained.items():
        whose = f" of {column.removeprefix(f'{ABSTAINED}_')}" if column != ABSTAINED else ""
        yield (
            f"{count:,} answer{'s' * (count != 1)}{whose} left out, as the probability is below "
            f"{threshold:g}; marked in the column {column}"
        )


def _set_sizes(found: "PredictedFile", coverage: float | None) -> "Iterator[str]":
    """Say of which sizes the prediction sets are."""
    several = len(found.counts) > 1
    for column, by_size in found.set_sizes.items():
        sizes = ", ".join(f"{count:,} of size {size}" for size, count in by_size.items())
        whose = f" of {column.removeprefix('prediction_set_size_')}" if several else ""
        yield (
            f"prediction sets{whose} at coverage {coverage:g}: {sizes}; they keep it on texts like "
            "the validation set's"
        )
