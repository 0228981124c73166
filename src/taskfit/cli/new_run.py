"""Where `taskfit fit` puts a run that was given no folder, and what it says without any data."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from taskfit import files
from taskfit.errors import SettingsError
from taskfit.runs.file_names import START, TEXTS_FILE

if TYPE_CHECKING:
    from taskfit.settings import RunSettings

RUNS = Path("runs")
# What a run writes before it has read anything; see `runs.run_folder`.
FIRST_FILES = ("settings.yaml", "data.json", "clock.json", "bases.json", TEXTS_FILE)
WHAT_TO_TYPE = """No data: give a table with labels, or a built-in task.

  taskfit fit mine.csv                            columns guessed
  taskfit fit mine.csv --text TEXT --label LABEL  columns named
  taskfit fit --task sentiment                    built in, see `taskfit data`
  taskfit fit --resume runs/mine                  go on with an interrupted run
  taskfit fit more.csv --from runs/mine           go on from a finished run with more labels

First a look at the table: taskfit inspect mine.csv
All flags:                 taskfit fit --help"""
# A line with \b alone keeps the lines below it as they are.
FIT_HELP = """Adapt a model to a task and measure it; leaves a run folder.

\b
taskfit fit mine.csv                columns guessed; the run is in runs/mine
taskfit fit mine.csv --text BODY --label QUEUE --model Qwen/Qwen2.5-0.5B
taskfit fit --task sentiment        a built-in task
taskfit fit --resume runs/mine      go on with an interrupted run
taskfit fit more.csv --from runs/mine   go on from a finished run with more labels

Beside the flags below, --set takes every setting. Those that matter most:

\b
--set adapter.lora_rank=16              size of the LoRA adapter
--set model.max_length=512              longest text, in tokens
--set data.num_train=200                learn from a part of the table
--set training.max_steps=100            end earlier
--set method.num_demonstrations=8       labelled examples in the prompt
--set task.instruction="Which mood?"    what the prompt begins with
--set "task.label_words.good= fine"     the word that stands for a label
--set calibration.temperature=true      probabilities that mean what they say

\b
All of them, with defaults:
docs/settings.md, or python -m taskfit.settings_file
"""


def refuse_without_data(settings: "RunSettings") -> None:
    """Say what to type where settings name neither table nor task.

    Raises:
        SettingsError: If they name none.
    """
    named = settings.data.train or settings.task.name
    if named is None and not settings.method.is_tuning:  # tuning says which rows it needs
        raise SettingsError(WHAT_TO_TYPE)


def refuse_without_model(settings: "RunSettings") -> None:
    """Say at once, before data are read, that a model cannot be had.

    Raises:
        ModelError: If it cannot.
    """
    from taskfit.models.packaged import check_place

    if settings.method.reads_model:
        check_place(settings.model.name)


def new_folder(source: str | None, *, several_processes: bool) -> Path:
    """Make a new folder in `runs/` for a run, called after its table or task.

    Args:
        source: Table, hub id, or task; None: there is none, and the run will say so.
        several_processes: Whether other processes would look for a folder too.

    Raises:
        SettingsError: If they would.
    """
    if several_processes:
        raise SettingsError("Under torchrun give --out FOLDER, the same for every process.")
    name = Path(source or "run").name.split(".")[0].split(":")[0] or "run"
    return files.new_folder(RUNS, name)


def remove_unbegun(folder: Path) -> None:
    """Remove the folder that `new_folder` made, if a mistake ended the run before it began."""
    if {path.name for path in folder.iterdir()} <= {*FIRST_FILES, START}:
        shutil.rmtree(folder / START, ignore_errors=True)
        for name in FIRST_FILES:
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()
