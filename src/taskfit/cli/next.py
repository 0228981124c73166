"""`taskfit next`: which texts of a pool to label next."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskfit.cli.flags import (
    AllowOtherBaseOption,
    DeviceOption,
    EncodingOption,
    OutTableOption,
    QuotesOption,
    RenameOption,
    SeedOption,
    TextOption,
    checked_quotes,
    parse_pairs,
)
from taskfit.cli.screen import RichScreen
from taskfit.cli.stopped import tell_of_file, told_when_stopped
from taskfit.errors import SettingsError
from taskfit.runs.file_names import SETTINGS_FILE

if TYPE_CHECKING:
    from taskfit.labels.next import NextTexts, Targets

MOST_SHOWN = 8


def next_(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] POOL", help="Finished run, if there is one, and a table of texts."
        ),
    ],
    out: OutTableOption,
    count: Annotated[int, typer.Option("-n", "--num", help="How many texts to label.")] = 50,
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy",
            help="How to choose: random, least_confidence, margin, entropy, cluster-margin, badge, "
            "k-center or typiclust; else by what is there.",
        ),
    ] = None,
    random_share: Annotated[
        float, typer.Option("--random-share", help="Share drawn at random, to measure on.")
    ] = 0.2,
    random_out: Annotated[
        Path | None, typer.Option("--random-out", help="Write that share to a file of its own.")
    ] = None,
    balance: Annotated[
        bool, typer.Option("--balance", help="As many texts of each predicted class.")
    ] = False,
    near: Annotated[
        float, typer.Option("--near", help="Cosine from which two texts are not both chosen.")
    ] = 0.95,
    features: Annotated[
        str, typer.Option("--features", help="Encoder that compares texts, or none.")
    ] = "minilm",
    without: Annotated[
        list[str] | None,
        typer.Option("--without", help="File of texts that others label already; repeatable."),
    ] = None,
    seed: SeedOption = 0,
    text: TextOption = None,
    label: Annotated[
        str | None, typer.Option("--label", help="Without a run: the column for labels.")
    ] = None,
    renamed: RenameOption = None,
    encoding: EncodingOption = "utf-8",
    quotes: QuotesOption = "auto",
    device: DeviceOption = "auto",
    allow_other_base: AllowOtherBaseOption = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files to label that are there already.")
    ] = False,
) -> None:
    """Choose the texts to label next, out of many that have no label; with a run or without."""
    run, source = _places(places)
    columns = parse_pairs("--column", "TASK'S=TABLE'S", renamed)
    if run is not None and (text or label):
        raise SettingsError(
            "--text and --label are for a pool without a run; the run knows its columns, and "
            "--column TASK'S=TABLE'S says where the pool calls them otherwise."
        )
    checked_quotes(quotes)

    from taskfit.labels.next import NO_FEATURES, PoolFile, Targets, next_texts
    from taskfit.labels.next_choice import Choice, default_strategy

    default = default_strategy(has_model=run is not None, compares=features != NO_FEATURES)
    choice = Choice(strategy or default, random_share, balance, near, seed or 0)
    pool = PoolFile(source, columns, text or (), label, encoding, quotes, without or ())
    targets, screen = Targets(out, random_out, overwrite), RichScreen()
    with told_when_stopped(lambda: tell_of_file(out)), screen:
        found = next_texts(
            pool,
            targets,
            count,
            choice=choice,
            run=run,
            features=features,
            screen=screen,
            device=device,
            allow_other_base=allow_other_base,
        )
    for line in (
        *_found_lines(source, found, count, choice.strategy),
        *_next_lines(run, targets, found),
    ):
        screen.console.print(line, soft_wrap=True, markup=False)


def _places(places: list[str]) -> tuple[Path | None, str]:
    """Return run and pool.

    Raises:
        SettingsError: If there are not one or two, or they stand the other way round.
    """
    usage = "taskfit next RUN POOL -n 50 -o to_label.csv, or without RUN to begin"
    if len(places) > 2:
        raise SettingsError(f"{' '.join(places)}: give a run and one file of texts: {usage}")
    *run, source = places
    if (Path(source) / SETTINGS_FILE).is_file():
        raise SettingsError(f"{source} is a run; the file of texts stands behind it: {usage}")
    return (Path(run[0]) if run else None), source


def _found_lines(source: str, found: "NextTexts", count: int, strategy: str) -> list[str]:
    """Say what was chosen from what."""
    lines = []
    if found.left_out:
        told = ", ".join(f"{number:,} {why}" for why, number in found.left_out.items())
        lines.append(
            f"{source}: {found.num_candidates:,} of {found.num_rows:,} rows may be labelled; left "
            f"out: {told}"
        )
    chosen = found.num_written - found.num_random
    how = f"{chosen:,} by {strategy}, {found.num_random:,} drawn at random"
    how = "all drawn at random" if strategy == "random" else how
    lines.append(f"{found.num_written:,} texts to label: {how}")
    for question, counts in found.suggested.items():
        shown = ", ".join(
            f"{label or 'none'} {n:,}" for label, n in list(counts.items())[:MOST_SHOWN]
        )
        more = f" and {len(counts) - MOST_SHOWN} more labels" if len(counts) > MOST_SHOWN else ""
        lines.append(f"suggested{f' for {question}' if question else ''}: {shown}{more}")
    if found.num_written < min(count, found.num_candidates):
        lines.append(
            "no more: the others are near duplicates of these or of labelled texts (--near)"
        )
    elif found.num_written < count:
        lines.append(f"no more: there are {found.num_candidates:,}")
    return lines


def _next_lines(run: Path | None, targets: "Targets", found: "NextTexts") -> list[str]:
    """Say where it is, and what comes next."""
    places, command = f"{targets.chosen}", ["taskfit", "fit", str(targets.chosen)]
    if run is not None:
        command += ["--from", str(run)]
    else:
        for name in found.text:
            command += ["--text", name]
        command += ["--label", *found.label_columns.values()]
    if targets.random is not None:
        places += f", the random ones in {targets.random}"
        command += ["--test", f"random={targets.random}"]
    return [
        f"Written: {places}",
        f"Next: fill in the labels, then {shlex.join(command)}",
    ]
