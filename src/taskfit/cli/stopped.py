"""What Ctrl-C leaves: what is safe, and the command that goes on."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer

from taskfit.cli.screen import Terminal
from taskfit.files import read_jsonl
from taskfit.runs.file_names import RESULT_FILE, SETTINGS_FILE

INTERRUPTED = 130  # the exit code that shells give a command that Ctrl-C ended


@contextmanager
def told_when_stopped(tell: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C say what is safe and how to go on, and end the command.

    Args:
        tell: Looks at what is there and says so.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        if os.environ.get("RANK", "0") == "0":
            # The terminal shows ^C where the cursor was.
            console = Terminal(stderr=True)
            console.print(f"\nstopped. {tell()}", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from stop


def same_command() -> str:
    """Return the command line that is running."""
    return shlex.join(["taskfit", *sys.argv[1:]])


def steps_kept(run: Path) -> tuple[int, int]:
    """Return the step of a run's last checkpoint (0: none), and of how many (0: unknown)."""
    kept = [int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*")]
    total = 0
    with suppress(OSError, ValueError, KeyError):
        records = read_jsonl(run / "metrics.jsonl")
        total = max((int(one["total_steps"]) for one in records if "total_steps" in one), default=0)
    return max(kept, default=0), total


def tell_of_run(run: Path) -> str:
    """Say what a stopped `taskfit fit` has left in its folder."""
    again = f"Go on with:\n  taskfit fit --resume {shlex.quote(str(run))}"
    if (run / RESULT_FILE).is_file():
        page = f"\n  taskfit report {shlex.quote(str(run))}"
        return f"The run in {run} is finished and whole; its page can be made anew:{page}"
    if not (run / SETTINGS_FILE).is_file():
        with suppress(OSError):
            run.rmdir()
        return f"Nothing had begun, so nothing is lost:\n  {same_command()}"
    trials = list(run.glob("search/trial-*/trial.json"))
    step, total = steps_kept(run)
    if step:
        of = f" of {total:,}" if total else ""
        return f"Safe in {run}: everything up to step {step:,}{of}. {again}"
    if trials and not (run / "metrics.jsonl").is_file():
        return f"Safe in {run}: {_trials(len(trials))} of the search. {again}"
    return f"Safe in {run}: its settings; no step was kept yet, training begins anew. {again}"


def where_it_goes_on(run: Path) -> str | None:
    """Say from where `--resume` goes on; None where there is nothing to resume."""
    if (run / RESULT_FILE).is_file() or not (run / SETTINGS_FILE).is_file():
        return None
    step, total = steps_kept(run)
    if step:
        return f"going on in {run} from step {step:,}" + (f" of {total:,}" if total else "")
    trials = len(list(run.glob("search/trial-*/trial.json")))
    if trials and not (run / "metrics.jsonl").is_file():
        return f"going on in {run} with its search: {_trials(trials)} finished"
    return f"going on in {run} from the start of training: no step of it was kept"


def _trials(count: int) -> str:
    return f"{count} trial{'s' * (count != 1)}"


def tell_of_file(target: Path) -> str:
    """Say what stopped predictions or answers have left beside their file."""
    folder = target.with_name(f"{target.name}.partial")
    return _tell_of_kept(folder, len(list(folder.glob("part-*.parquet"))), "part")


def _tell_of_kept(folder: Path, count: int, what: str) -> str:
    """Say how many parts of the work a folder has kept."""
    if not count:
        return f"No {what} was finished yet. The same command begins anew:\n  {same_command()}"
    return (
        f"Safe in {folder}: {count} finished {what}{'s' * (count > 1)}. The same command goes on "
        f"from there:\n  {same_command()}"
    )


def tell_of_comparison(out: Path) -> str:
    """Say what a stopped comparison, or quickstart, has left."""
    finished = len(list(out.glob("runs/*/result.json")) or list(out.glob("*/result.json")))
    return (
        f"Safe in {out}: {finished} finished run{'s' * (finished != 1)}, and what the others had "
        f"kept. The same command goes on from there:\n  {same_command()}"
    )


def tell_of_curation(out: Path) -> str:
    """Say what a stopped curation has left."""
    work = out.with_name(f"{out.name}.work")
    steps = []
    for path in sorted(work.glob("*/step.json")):
        with suppress(OSError, ValueError, KeyError):
            steps.append(str(json.loads(path.read_text(encoding="utf-8"))["result"]["name"]))
    if not steps:
        return f"No step was finished yet. The same command begins anew:\n  {same_command()}"
    return (
        f"Safe in {work}: {len(steps)} finished step{'s' * (len(steps) > 1)} "
        f"({', '.join(steps)}). The same command goes on behind them:\n  {same_command()}"
    )


def tell_of_audit(out: Path) -> str:
    """Say what a stopped audit has left in its folder."""
    return _tell_of_kept(out, len(list(out.glob("fits/*/folds/fold-*.safetensors"))), "fit")
