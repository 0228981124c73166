"""Options that several commands share, and their way into nested settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taskfit.errors import SettingsError

if TYPE_CHECKING:
    from taskfit.settings import RunSettings

QUOTES = ("auto", "marks", "text")
TableArgument = Annotated[
    str | None, typer.Argument(metavar="TABLE", help="Table with labels (file or hub id).")
]
DataOption = Annotated[
    str | None, typer.Option("--data", help="The same as the table behind the command.")
]
TextOption = Annotated[list[str] | None, typer.Option("--text", help="Text column; repeatable.")]
LabelOption = Annotated[str | None, typer.Option("--label", help="Label column.")]
TaskOption = Annotated[str | None, typer.Option("--task", help="Built-in task or task file.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Hub id, folder or packaged model.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value; repeatable; see docs.")
]
ConfigOption = Annotated[
    str | None, typer.Option("--config", help="Settings file, or a ready one; see taskfit methods.")
]
TestOption = Annotated[
    list[str] | None, typer.Option("--test", help="NAME=FILE, a further evaluation set.")
]
ColumnOption = Annotated[
    list[str] | None, typer.Option("--column", help="FIELD=COLUMN; repeatable.")
]
RenameOption = Annotated[
    list[str] | None,
    typer.Option("--column", help="TASK'S=TABLE'S: a column of another name; repeatable."),
]
QuotesOption = Annotated[
    str,
    typer.Option("--quotes", help="Around fields of CSV and TSV files: auto, marks or text."),
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of every draw.")]
MethodOption = Annotated[
    list[str] | None, typer.Option("--method", help="How to adapt; `taskfit methods` lists all.")
]
# Said where it is known, refused with what to type where it is not.
MethodsOption = Annotated[str | None, typer.Option("--methods", hidden=True)]
EpochsOption = Annotated[
    float | None, typer.Option("--epochs", help="Passes over the training texts; else chosen.")
]
LearningRateOption = Annotated[
    float | None, typer.Option("--learning-rate", help="Peak learning rate; else by the weights.")
]
BatchSizeOption = Annotated[
    int | None, typer.Option("--batch-size", help="Examples per optimizer step; else chosen.")
]
TestFractionOption = Annotated[
    float | None,
    typer.Option("--test-fraction", help="Share of TABLE held out to measure on; else chosen."),
]
FromOption = Annotated[
    Path | None,
    typer.Option("--from", help="Finished run to go on from, with its settings and weights."),
]
WeightsOption = Annotated[str | None, typer.Option("--weights", help="full, lora or qlora.")]
RunArgument = Annotated[Path, typer.Argument(help="Folder of a finished run.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Write over a file that is read.")
]
OnlyPredictionsOption = Annotated[
    bool,
    typer.Option("--only-predictions", help="Leave out the other columns of the input."),
]
OutTableOption = Annotated[
    Path, typer.Option("-o", "--out", help=".csv, .tsv, .jsonl or .parquet.")
]


def _device(name: str) -> str:
    """Return a device, checked before anything is read."""
    from taskfit.settings_base import check_device

    return check_device(name)


DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", callback=_device)
]
AllowOtherBaseOption = Annotated[
    bool,
    typer.Option("--allow-other-base", help="Go on although the run's base model is another now."),
]
RayAddressOption = Annotated[
    str | None, typer.Option("--ray-address", help="Address of the Ray cluster, or auto.")
]
CpusPerRunOption = Annotated[
    float, typer.Option("--cpus-per-run", min=0.01, help="With Ray: cores of a run.")
]
GpusPerRunOption = Annotated[
    float, typer.Option("--gpus-per-run", min=0.0, help="With Ray: GPUs of a run.")
]
EncodingOption = Annotated[str, typer.Option("--encoding", help="Text encoding of the file.")]


def table_of(table: str | None, data: str | None) -> str | None:
    """Return the table of a command, given as its argument or with --data.

    Raises:
        SettingsError: If both are given and differ.
    """
    if table is not None and data is not None and table != data:
        raise SettingsError(
            f"{table} and --data {data} are two tables. Give one, without --data; a second to "
            "measure on is --test NAME=FILE."
        )
    return data if table is None else table


def one_method(command: str, method: Sequence[str] | None, methods: str | None) -> str | None:
    """Return the method of a command that takes one.

    Raises:
        SettingsError: If several are named, or they are named with --methods.
    """
    given = [*(method or ()), methods or ""]
    several = [name.strip() for part in given for name in part.split(",") if name.strip()]
    names = list(dict.fromkeys(several))
    if methods is not None or len(names) > 1:
        first = names[0] if names else "NAME"
        raise SettingsError(
            f"taskfit {command} takes one method: --method {first}. To try several side by side: "
            f"taskfit compare TABLE --methods {','.join(names) or 'NAME,NAME'}"
        )
    return names[0] if names else None


def training_flags(
    epochs: float | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    test_fraction: float | None = None,
) -> dict[str, Any]:
    """Return the flags of a training as settings by dotted key."""
    return {
        "training.epochs": epochs,
        "training.learning_rate": learning_rate,
        "training.batch_size": batch_size,
        "data.test_fraction": test_fraction,
    }


def data_flags(
    *,
    table: str | None = None,
    data: str | None,
    text: list[str] | None,
    label: str | None,
    task: str | None,
    model: str | None = None,
    test: list[str] | None = None,
    others: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Turn the common flags, and others by `section.key`, into nested settings.

    Raises:
        SettingsError: If a flag is not written as it should be, or two contradict each other.
    """
    flat = {
        "data.train": table_of(table, data),
        "data.text": text or None,
        "data.label": label,
        "data.tests": parse_pairs("--test", "NAME=FILE", test) or None,
        "task.name": task,
        "model.name": model,
    }
    return nested({**flat, **(others or {})})


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested dictionaries, leaving out what was not given."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        if value is None:
            continue
        *sections, name = key.split(".")
        target = nested
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = value
    return nested


def read_settings(
    config: str | None,
    flags: dict[str, Any],
    overrides: Sequence[str] | None,
    *,
    lenient: bool = False,
    is_told: bool = True,
) -> "RunSettings":
    """Return the settings of a command: of its --config, under flags, under --set.

    Args:
        config: Settings file, or a ready one.
        flags: Nested settings.
        overrides: Of --set.
        lenient: Whether what the method does not read is dropped from the file.
        is_told: Whether it is told what another method than the file's leaves out of it.

    Raises:
        SettingsError: Listing everything that is wrong.
    """
    from taskfit.settings_file import find_settings, load_settings

    base = find_settings(config) if config else None
    return load_settings(
        base,
        flags=flags,
        overrides=overrides or (),
        lenient_file=lenient,
        note=tell if is_told else lambda _: None,
    )


def tell(text: str) -> None:
    """Tell on standard error what was done with what was given."""
    from taskfit.cli.screen import RichScreen, Terminal

    RichScreen(Terminal(stderr=True)).note(text)


def settings_from(
    run: Path,
    flags: dict[str, Any],
    overrides: Sequence[str] | None,
    *,
    resume: Path | None,
    config: str | None,
) -> "RunSettings":
    """Return the settings of a finished run under flags and --set, for `fit --from`.

    Raises:
        TaskfitError: If there is no such run, or other flags contradict it.
    """
    if resume is not None:
        raise SettingsError(
            f"--from {run} starts a new run, and --resume goes on with one that was interrupted, "
            "which knows what it started from. Give one of the two."
        )
    if config is not None:
        raise SettingsError(
            f"--from {run} takes the settings of that run, and --config {config} those of a file. "
            "Give one of the two, and what is to be different with flags or --set."
        )
    from taskfit.runs.origin import continued_settings

    return continued_settings(run, flags, overrides or ())


def parse_pairs(flag: str, form: str, entries: Sequence[str] | None) -> dict[str, str]:
    """Read the values of a flag, each of the form `NAME=VALUE`.

    Raises:
        SettingsError: If an entry is not written so.
    """
    pairs = {}
    for entry in entries or ():
        left, equals, right = entry.partition("=")
        if not (left and equals and right):
            raise SettingsError(f"{flag} {entry}: write it as {form}.")
        pairs[left] = right
    return pairs


def checked_quotes(quotes: str) -> str:
    """Return the value of --quotes.

    Raises:
        SettingsError: If it is none that is allowed.
    """
    if quotes not in QUOTES:
        raise SettingsError(f"--quotes {quotes}: give {', '.join(QUOTES[:-1])} or {QUOTES[-1]}.")
    return quotes


def parse_options(entries: Sequence[str]) -> dict[str, list[str]]:
    """Read options of questions, each `QUESTION=a,b,c`.

    Raises:
        SettingsError: If an entry is not written so, or a question stands twice.
    """
    options: dict[str, list[str]] = {}
    for entry in entries:
        question, equals, names = entry.partition("=")
        found = [name.strip() for name in names.split(",")]
        if not equals or not question.strip() or not all(found):
            raise SettingsError(f"--options {entry}: write it as QUESTION=a,b,c.")
        if question.strip() in options:
            raise SettingsError(f"--options names {question.strip()} twice; name it once.")
        options[question.strip()] = found
    return options


def parse_thresholds(entries: Sequence[str]) -> dict[str, float]:
    """Read thresholds, each `0.3` (the label is empty then: all others) or `LABEL=0.3`.

    Raises:
        SettingsError: If an entry is not written so, or a label stands twice.
    """
    thresholds: dict[str, float] = {}
    for entry in entries:
        label, _, written = entry.rpartition("=")  # a label may hold the sign
        try:
            value = float(written)
        except ValueError:
            raise SettingsError(
                f"--threshold {entry}: write it as 0.3, or as LABEL=0.3 for one label."
            ) from None
        if label in thresholds:
            raise SettingsError(f"--threshold names {label or 'all labels'} twice; name it once.")
        thresholds[label] = value
    return thresholds
