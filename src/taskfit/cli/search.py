"""The search's options of `taskfit fit`, and its table of trials."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from taskfit.errors import SettingsError

SECONDS = {"s": 1, "m": 60, "h": 3600}

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
    seconds = None
    if budget is not None:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget.strip())
        seconds = float(found[1]) * SECONDS[found[2]] if found else 0.0
        if not seconds:
            raise SettingsError(
                f"--search-budget {budget}: write a number above 0 and s, m or h, such as 30m."
            )
    return {"search.trials": trials, "search.budget_seconds": seconds}


def show_search(folder: Path, console: Console) -> None:
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
    table = Table(box=None, pad_edge=False, header_style="bold")
    console.print("Trials on the validation set:")
    table.add_column("trial", justify="right")
    for key in keys:
        table.add_column(key.rsplit(".", 1)[-1])
    for name in (record.metric, "loss", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("")
    for trial in trials:
        how = {"finished": "", "pruned": "pruned"}
        numbers = [
            "" if number is None else f"{number:.3f}" for number in (trial.score, trial.log_loss)
        ]
        best = "best" if trial.index == record.best_trial else how.get(trial.state, "failed")
        cells = [str(trial.values.get(key, "")) for key in keys]
        table.add_row(str(trial.index), *cells, *numbers, f"{trial.seconds:,.0f}", best)
    console.print(table)
    console.print(f"{record.sentence}\nTrials: {folder / TABLE_FILE}\n", highlight=False)
