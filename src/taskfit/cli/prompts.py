"""`taskfit prompts`: try wordings of a task, and write the best one as a task file."""

import json
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from taskfit.cli.flags import (
    ConfigOption,
    DataOption,
    LabelOption,
    ModelOption,
    SeedOption,
    SetOption,
    TableArgument,
    TaskOption,
    TextOption,
    data_flags,
    read_settings,
)
from taskfit.cli.screen import RichScreen, Terminal, plain_table
from taskfit.errors import SettingsError

if TYPE_CHECKING:
    from taskfit.search.wordings import PromptSearch
    from taskfit.settings import RunSettings

MAX_ROWS = 20
PROMPT_LINES = 24
LEAST_SAVED = 1.05  # times as many tokens, from which on it reads as a saving


def prompts(
    table: TableArgument = None,
    data: DataOption = None,
    text: TextOption = None,
    label: LabelOption = None,
    task: TaskOption = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    candidates: Annotated[
        Path | None,
        typer.Option("--candidates", help="Your own wordings (YAML); else they are generated."),
    ] = None,
    examples: Annotated[
        int, typer.Option("--examples", help="Labelled training examples to score on.")
    ] = 256,
    keep: Annotated[
        int, typer.Option("--keep", help="At least this many wordings see all of them.")
    ] = 4,
    out: Annotated[Path | None, typer.Option("--out", help="Task file for the winner.")] = None,
    as_csv: Annotated[
        bool, typer.Option("--table", help="Also write all wordings as a CSV beside --out.")
    ] = False,
    seed: SeedOption = None,
) -> None:
    """Try wordings of a task in context, on training examples; write the best as a task file."""
    if as_csv and out is None:
        raise SettingsError("--table writes a CSV beside the task file; give --out FILE.yaml too.")
    others = {"seed": seed, "method.name": "in_context"}
    flags = data_flags(
        table=table, data=data, text=text, label=label, task=task, model=model, others=others
    )
    # The file may be of a run whose method reads other settings.
    settings = read_settings(config, flags, set_, lenient=True)

    from taskfit.search.wordings import check_free, search_prompts, write_winner
    from taskfit.tasks.variants import generate_variants, load_candidates

    if out is not None:
        check_free(out, table=as_csv)
    screen = RichScreen()
    console = screen.console
    search = search_prompts(
        settings,
        candidates=partial(load_candidates, candidates) if candidates else generate_variants,
        num_examples=examples,
        keep=keep,
        screen=screen,
    )
    show_search(search, console)
    if out is not None:
        write_winner(search, out, table=as_csv)
    console.print("\nNext:", style="bold")
    command = fit_command(search, settings, out)
    console.print(f"  {command}", soft_wrap=True)
    if out is None:
        console.print("  Or give --out FILE.yaml here, to keep the winner as a task file.")


def show_search(search: "PromptSearch", console: Terminal) -> None:
    """Print what a search found, readable on 80 columns."""
    from taskfit.tasks.variants import AS_GIVEN

    winner = search.winner
    shown = search.results[:MAX_ROWS]
    table = plain_table(">", "wording", f">{winner.task.metric}", ">95 %", ">n", ">log loss")
    table.columns[1].max_width = 29
    for column in table.columns[2:]:
        column.no_wrap = True
    for rank, one in enumerate(shown, start=1):
        name = f"{one.name} (as given)" if one.name == search.base != AS_GIVEN else one.name
        table.add_row(
            str(rank),
            Text(name, style="bold" if one is winner else ""),
            f"{one.metric:.3f}",
            _interval(one.interval),
            f"{one.evaluation.num_examples:,}",
            f"{one.evaluation.log_loss:.3f}",
        )
    console.print(table)
    left = len(search.results) - len(shown)
    if left:
        console.print(f"... and {left} more that were left out early")
    ratio = search.num_tokens_separate / search.num_tokens_run
    # What is rounded up to whole blocks may be more than what wordings share.
    saved = f"{ratio:.1f} times as many" if ratio >= LEAST_SAVED else "so little or none is saved"
    console.print(
        f"\nTokens run: {search.num_tokens_run:,}; one wording at a time they would be "
        f"{search.num_tokens_separate:,}, {saved}. Demonstrations in each "
        f"prompt: {winner.task.num_demonstrations}."
    )
    for refused in search.refused:
        console.print(f"Left out, {refused.name}: {refused.reason}")
    console.print(f"\nThe winner, {winner.name}, with its answer:")
    _say_prompt(search, console)
    _say_comparison(search, console)


def _say_prompt(search: "PromptSearch", console: Terminal) -> None:
    lines = Text(search.prompt)
    lines.append(search.answer, style="bold white on dark_green")
    wrapped = list(lines.wrap(console, console.page_width))
    left, half = len(wrapped) - PROMPT_LINES, PROMPT_LINES // 2
    if left > 0:
        wrapped[half:-half] = [Text(f"... {left} lines left out ...")]
    for line in wrapped:
        console.print(line)


def _say_comparison(search: "PromptSearch", console: Terminal) -> None:
    winner, found = search.winner, search.comparison
    metric = winner.task.metric
    if found is None:
        console.print("\nThe task as given is the best of these wordings.")
    else:
        console.print(
            f"\nAgainst the task as given, on the same {winner.evaluation.num_examples:,} "
            f"examples: {metric} {found.difference:+.3f}, 95 % {_interval(found.interval)}."
        )
    if found is not None and found.caution:
        console.print(found.caution)
    console.print(
        f"It was chosen among {len(search.results)} on these very examples, so its {metric} and "
        "the difference look better than they are; an evaluation set tells how good it is."
    )


def fit_command(search: "PromptSearch", settings: "RunSettings", out: Path | None) -> str:
    """Return the command that fits with the winner.

    A built-in task brings its data under its own name only, so there the wording goes into
    settings; so it does where no task file is written.
    """
    from taskfit.settings import ModelSettings

    data, given = settings.data, settings.task
    if out is not None and data.train is not None:
        parts = ["--task", str(out)]
    else:
        parts = ["--task", given.name] if given.name else []
        for key, value in _wording(search, settings).items():
            parts += ["--set", f"task.{key}={json.dumps(value, ensure_ascii=False)}"]
    parts += ["--label", data.label] if data.label is not None else []
    if given.name is None and out is None:
        parts += [part for column in data.text for part in ("--text", column)]
    if settings.model.name != ModelSettings().name:
        parts += ["--model", settings.model.name]
    table = [data.train] if data.train is not None else []
    return shlex.join(["taskfit", "fit", *table, *parts, "--out", "runs/winner"])


def _wording(search: "PromptSearch", settings: "RunSettings") -> dict[str, Any]:
    """Return the winner's parts that differ from the task as it would be without settings."""
    from taskfit.search.space import wording_settings

    base = next(one.task for one in search.results if one.name == search.base)
    old, new = (wording_settings(task) for task in (base, search.winner.task))
    given = settings.task.model_dump(exclude_defaults=True)
    return {key: value for key, value in new.items() if value != old[key] or key in given}


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"
