"""The evidence of a comparison: its finished runs, and what they answered on the same examples.

Everything that report and advice say is computed from here, so a comparison can be reported anew
at any time, without any model. Methods that see no labels (zero-shot) count as size 0.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from taskfit.errors import CheckpointError, SettingsError
from taskfit.report.aligned import AlignedPredictions, RunAnswers, align, read_answers
from taskfit.report.finished_run import FinishedRun
from taskfit.report.variants import Contender, MethodVariant, variants_of
from taskfit.runs.file_names import RESULT_FILE
from taskfit.runs.records import RunResult

FAILURE_FILE = "failure.json"


@dataclass(frozen=True, eq=False)
class Evidence:
    """All finished runs of a comparison on one task.

    Attributes:
        folder: The comparison's folder.
        runs: Finished runs, in the order of the grid.
        failures: Folder of a failed run -> its error.
        asked_metric: What it is judged by: accuracy, mcc or macro_f1.
        multi_label: Whether a text may have several labels.
    """

    folder: Path
    runs: list[FinishedRun]
    failures: dict[str, str]
    asked_metric: str
    multi_label: bool

    @property
    def metric(self) -> str:
        """Return the metric that is reported: what is asked, or exactly right sets of labels."""
        return "accuracy" if self.multi_label else self.asked_metric

    @cached_property
    def variants(self) -> list[MethodVariant]:
        """Return the method variants, in the order of the grid."""
        return variants_of(self.runs)

    @property
    def num_repeated(self) -> int:
        """Return how many runs are left out, since they repeat another with the same answers."""
        return len(self.runs) - sum(len(variant.runs) for variant in self.variants)

    @cached_property
    def sizes(self) -> list[int]:
        """Return the numbers of labels above 0, in rising order."""
        return sorted({run.size for run in self.runs} - {0})

    @cached_property
    def evaluations(self) -> list[str]:
        """Return the names of the evaluation sets, the one in domain first."""
        return list(dict.fromkeys(name for run in self.runs for name in run.result.evaluations))

    @property
    def in_domain(self) -> str:
        """Return the evaluation set of the same kind as the training data."""
        return self.evaluations[0]

    @cached_property
    def answers(self) -> dict[str, RunAnswers]:
        """Return what all runs answered, by evaluation set; every file is read once.

        Raises:
            CheckpointError: If a file of predictions is missing or cannot be read.
        """
        return {
            name: read_answers([run for run in self.runs if name in run.result.evaluations], name)
            for name in self.evaluations
        }

    def contenders(self, size: int, evaluation: str) -> list[Contender]:
        """Return every variant that has a size and was measured on an evaluation set."""
        found = [variant.at(size, evaluation) for variant in self.variants]
        return [contender for contender in found if contender is not None]

    def align(self, contenders: Sequence[Contender], *evaluations: str) -> AlignedPredictions:
        """Lay the answers of contenders on some evaluation sets side by side; see `align`.

        Raises:
            CheckpointError: If predictions cannot be read.
        """
        answers = [self.answers[evaluation] for evaluation in evaluations]
        return align(contenders, answers, metric=self.metric)


def read_evidence(folder: Path, *, metric: str | None = None) -> Evidence:
    """Read all finished runs under a comparison's folder.

    Args:
        folder: The comparison's.
        metric: What to judge by, of `METRICS`; None: the task's.

    Raises:
        CheckpointError: If there is none, or runs are of different tasks.
        SettingsError: If runs give several labels a text, which are judged by whole sets alone.
    """
    home, path = folder / "runs", folder / "grid.json"
    grid: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    order = {name: place for place, name in enumerate(grid.get("runs", ()))}
    # Runs of an earlier grid in the same folder, with other settings, take no part.
    listed = {*order, *grid.get("failures", ())}
    finished = [
        FinishedRun(path.parent, RunResult.load(path.parent))
        for path in home.glob(f"*/{RESULT_FILE}")
        if not listed or path.parent.name in listed
    ]
    if not finished:
        raise CheckpointError(
            f"{folder} holds no finished run, neither its own ({RESULT_FILE}) nor those of a "
            "comparison (runs/*). Give the folder that `taskfit fit --out` or `taskfit compare "
            "--out` filled."
        )
    tasks = sorted({run.result.task for run in finished})
    if len(tasks) > 1:
        raise CheckpointError(
            f"{folder} holds runs of different tasks ({', '.join(tasks)}), which cannot be "
            "compared. Give each task its own --out."
        )
    failures = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))["error"]
        for path in sorted(home.glob(f"*/{FAILURE_FILE}"))
        if (not listed or path.parent.name in listed) and not (path.parent / RESULT_FILE).is_file()
    }
    # What the grid does not list comes last, by name.
    finished.sort(key=lambda r: (order.get(r.folder.name, len(order)), r.folder.name))
    runs = _sized_alike(finished)
    task = runs[0].task
    if metric is not None and task["multi_label"]:
        raise SettingsError(
            f"--metric {metric}: texts of {tasks[0]} have several labels each, and what is "
            "compared is how often all of them are right. Leave out --metric."
        )
    return Evidence(folder, runs, failures, metric or task["metric"], task["multi_label"])


def _sized_alike(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Give runs that use all labels of one table the same number: the most that one used.

    Draws differ by a few texts, as copies of held-out texts are left out, and methods by whether
    they hold out texts to validate on; those labels had to be there as well.
    """
    most: dict[tuple[str, ...], int] = {}
    for run in runs:
        if run.table is not None:
            most[run.table] = max(run.size, most.get(run.table, 0))
    return [run if run.table is None else replace(run, whole=most[run.table]) for run in runs]
