"""What a search leaves behind: a record of each trial, `search.csv`, and `search.json`."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from taskfit.errors import CheckpointError
from taskfit.files import write_text_atomic
from taskfit.runs.file_names import SETTINGS_FILE
from taskfit.runs.records import SEARCH_FILE, read_search
from taskfit.search.space import Value

FOLDER = "search"
TRIAL_FILE = "trial.json"
TABLE_FILE = "search.csv"
State = Literal["finished", "pruned", "failed"]


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """What became of a trial.

    Attributes:
        index: Its number, from 1.
        state: finished, pruned (ended early), or failed.
        values: What was tried, by setting.
        score: The task's metric on the validation set; None if it failed.
        log_loss: Mean loss there (nats); None if it failed.
        step: The step of these weights.
        num_validations: Validations seen.
        seconds: Time it took.
        cpu_seconds: Processor time, all threads.
        message: Why it failed; empty else.
    """

    index: int
    state: State
    values: dict[str, Value]
    score: float | None
    log_loss: float | None
    step: int
    num_validations: int
    seconds: float
    cpu_seconds: float
    message: str = ""

    @property
    def folder(self) -> str:
        """Return the name of its folder."""
        return f"trial-{self.index:03d}"

    def order(self) -> tuple[bool, float, float, int]:
        """Return what trials are sorted by: finished ones first; metric, then loss, then number."""
        loss = self.log_loss if self.log_loss is not None else math.inf
        return (
            self.state != "finished",
            -(self.score if self.score is not None else -math.inf),
            math.inf if math.isnan(loss) else loss,
            self.index,
        )


@dataclass(frozen=True, slots=True)
class SearchRecord:
    """What a search found and cost; the contents of `search.json`.

    Attributes:
        num_trials: Trials, pruned and failed ones among them.
        num_pruned: Trials ended early.
        num_failed: Trials that failed.
        seconds: Time of all trials, also of those that were killed.
        cpu_seconds: Processor time of all trials.
        best_trial: Number of the winner.
        best: What the winner sets, by setting.
        metric: What trials are compared by.
        score: The winner's, on the validation set: the best of many, so too good by a little.
        num_validation: Examples of the validation set.
        score_given: That of the settings as given; None if no trial had them, or it failed.
        difference: The winner's answers against theirs on the same examples, in the metric.
        interval: 95 % interval of that over resampled examples.
        importance: Setting -> share of the differences between trials that it explains.
    """

    num_trials: int
    num_pruned: int
    num_failed: int
    seconds: float
    cpu_seconds: float
    best_trial: int
    best: dict[str, Value]
    metric: str
    score: float
    num_validation: int
    score_given: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    importance: dict[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, run: Path) -> "SearchRecord | None":
        """Read the finished search of a run's folder; None where there is none.

        Raises:
            CheckpointError: If it cannot be read.
        """
        try:
            found = read_search(run)
            return cls(**found) if found else None
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{run / SEARCH_FILE} cannot be read: {error}.") from error

    @property
    def sentence(self) -> str:
        """Return what was found, and how far to trust it."""
        found = (
            f"search: {self.num_trials} trials ({self.num_pruned} pruned, {self.num_failed} "
            f"failed) in {self.seconds:,.0f} s; best is trial {self.best_trial}, validation "
            f"{self.metric} {self.score:.3f}"
        )
        if self.score_given is None:
            return f"{found}."
        if self.difference is None or self.interval is None:
            same = self.difference == 0 or self.score == self.score_given
            return f"{found}, as given {self.score_given:.3f}." if not same else f"{found}."
        low, high = self.interval
        caution = (
            f"; on {self.num_validation} examples the two do not differ significantly"
            if low <= 0
            else ""
        )
        return (
            f"{found}, as given {self.score_given:.3f} (difference {self.difference:+.3f}, 95 % "
            f"{low:+.3f} to {high:+.3f}{caution})."
        )


def given_settings_file(run: Path) -> Path:
    """Return the file of the settings that a run was given.

    A search puts the winner's in their place and keeps them in its own folder.
    """
    kept = run / FOLDER / SETTINGS_FILE
    return kept if kept.is_file() else run / SETTINGS_FILE


def recorded_trials(home: Path) -> list[TrialRecord]:
    """Read the trials of a search from its folder, in their order."""
    names = {field.name for field in fields(TrialRecord)}
    files = sorted(home.glob(f"trial-*/{TRIAL_FILE}"))
    plain = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    return [TrialRecord(**{k: v for k, v in one.items() if k in names}) for one in plain]


def write_table(folder: Path, trials: Sequence[TrialRecord], metric: str) -> None:
    """Write `search.csv`: a row a trial, a column a setting."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    outcome = ("log_loss", "step", "num_validations", "seconds", "cpu_seconds", "message")
    columns = ["trial", "state", *keys, metric, *outcome]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for trial in trials:
        named = {"trial": trial.index, metric: trial.score}
        writer.writerow({**asdict(trial), **trial.values, **named})
    write_text_atomic(folder / TABLE_FILE, text.getvalue())
