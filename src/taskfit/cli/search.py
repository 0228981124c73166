"""The search's options of `taskfit fit`, and its table of trials."""

from pathlib import Path
from typing import Annotated, Any

import typer

from taskfit.cli.limits import parse_seconds
from taskfit.cli.screen import Terminal, plain_table
from taskfit.errors import SettingsError

SearchOption = Annotated[
    int | None,
    typer.Option("--search", help="Try this many settings on the validation set first."),
]
SearchBudgetOption = Annotated[
    str | None,
    typer.Option("--search-budget", help="Start no trial after this: 90s, 30m, 2h."),
]


def search_flags(trials: int | None, budget: str | None) -> dict[str, Any]:
    """Return the options as settings by dotted key.

    Raises:
        SettingsError: If one cannot be read.
    """
    if trials is not None and trials < 1:
        raise SettingsError(f"--search {trials}: give the number of trials, 1 or more.")
    seconds = parse_seconds("--search-budget", budget)
    return {"search.trials": trials, "search.budget_seconds": seconds}


def show_search(folder: Path, console: Terminal) -> None:
    """Show the trials of a run's search, best first, if it had one."""
    from taskfit.search.records import (
        FOLDER,
        TABLE_FILE,
        SearchRecord,
        TrialRecord,
        recorded_trials,
    )

    record = SearchRecord.load(folder)
    if record is None:
        return
    trials = sorted(recorded_trials(folder / FOLDER), key=TrialRecord.order)
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    names = [key.rsplit(".", 1)[-1] for key in keys]
    table = plain_table(">trial", *names, f">{record.metric}", ">loss", ">seconds", "")
    console.print("Trials on the validation set:")
    for trial in trials:
        how = {"finished": "", "pruned": "pruned"}
        numbers = [
            "" if number is None else f"{number:.3f}" for number in (trial.score, trial.log_loss)
        ]
        best = "best" if trial.index == record.best_trial else how.get(trial.state, "failed")
        cells = [str(trial.values.get(key, "")) for key in keys]
        table.add_row(str(trial.index), *cells, *numbers, f"{trial.seconds:,.0f}", best)
    console.print(table)
    console.print(f"{record.sentence}\nTrials: {folder / TABLE_FILE}\n")
