"""The records of a run: `result.json` and the flat `results.csv`."""

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from taskfit.errors import CheckpointError
from taskfit.files import write_json_atomic, write_text_atomic
from taskfit.runs.file_names import RESULT_FILE
from taskfit.stats import Evaluation

PACKAGES = ("taskfit", "torch", "transformers", "peft", "tokenizers", "numpy")
# What was fitted, where it is no classifier of one question.
QUESTIONS_FILE = "questions.json"
TUNED_FILE = "tuned.json"
# Old name -> name, of what finished runs of earlier versions recorded.
RENAMED = {"spared_seconds": "cached_seconds"}
SEARCH_FILE = "search/search.json"
# Columns of `results.csv` that are the same for all evaluation sets of a run.
OF_RUN = (
    *("name", "method", "weights", "model", "task"),
    *("num_train", "num_demonstrations", "seed"),
)


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came out of a run; the contents of `result.json`.

    Attributes:
        name: How tables call the run, such as `few-shot`.
        method: Name of the method.
        weights: none, full, lora or qlora.
        model: The model as the user named it.
        task: Name and version of the task.
        num_train: Training examples.
        num_demonstrations: Labelled examples in the prompt.
        seed: The run's seed.
        evaluations: Metrics by evaluation set.
        duration_seconds: The whole run, models loaded, settings searched, sets evaluated.
        training_seconds: Of that, in the loop with its validations, over all interruptions.
        cpu_seconds: Processor time of the run, all threads; what other programs do at the same
            time hardly changes it.
        peak_memory_bytes: Most memory in use above what the process had at its start.
        memory_by_stage: What each stage added to it.
        tokens: `unique` tokens run, `padded` tokens of the same work in padded batches (training).
        num_parameters: Of the model.
        num_trainable: Of them, trained.
        best_step: Step whose weights were kept; 0 without training.
        cached_seconds: What the run would have taken in addition, had no earlier run left features
            in the cache; costs are compared with it.
        evaluation_seconds: Seconds to score each evaluation set, all of it at once.
        latency_seconds: Median seconds to predict one text by itself; None if it was not measured.
        details: What else the method records, such as answers that named no label.
        versions: Versions of the libraries that decide results.
        machine: Processor and cores; where a language model is read, its device and number format,
            which `model.dtype=auto` takes by what the device computes in.
        created: When, UTC.
        search_seconds: Of `duration_seconds`, in the search for settings before the run.
        search: What that search found and cost (see `SearchRecord`); empty without one.
    """

    name: str
    method: str
    weights: str
    model: str
    task: str
    num_train: int
    num_demonstrations: int
    seed: int
    evaluations: dict[str, Evaluation]
    duration_seconds: float
    training_seconds: float
    peak_memory_bytes: int
    memory_by_stage: dict[str, int]
    tokens: dict[str, int]
    num_parameters: int
    num_trainable: int
    best_step: int
    cpu_seconds: float = 0.0
    cached_seconds: float = 0.0
    evaluation_seconds: dict[str, float] = field(default_factory=dict)
    latency_seconds: float | None = None
    details: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: library_versions())
    machine: dict[str, str] = field(default_factory=lambda: describe_machine())
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    search_seconds: float = 0.0
    search: dict[str, Any] = field(default_factory=dict)

    @property
    def whole_seconds(self) -> float:
        """Return what the run takes where nothing is cached."""
        return self.duration_seconds + self.cached_seconds

    def save(self, folder: Path) -> None:
        """Write `result.json` into a run's folder."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain["evaluations"] = {name: e.to_dict() for name, e in self.evaluations.items()}
        write_json_atomic(folder / RESULT_FILE, plain)

    @classmethod
    def load(cls, folder: Path) -> "RunResult":
        """Read the result of a finished run.

        Raises:
            CheckpointError: If there is none, or it cannot be read.
        """
        path = folder / RESULT_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{folder} holds no finished run: there is no {RESULT_FILE} in it. If it was "
                f"interrupted, continue with `taskfit fit --resume {folder}`."
            )
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            data = {RENAMED.get(key, key): value for key, value in stored.items()}
            evaluations = {n: Evaluation.from_dict(e) for n, e in data.pop("evaluations").items()}
            return cls(evaluations=evaluations, **data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error


def write_results_csv(path: Path, results: Sequence[RunResult]) -> None:
    """Write a row for every run and evaluation set, all columns flat."""
    rows = [row for result in results for row in result_rows(result)]
    # Without any evaluation there is at least a header, so that the file can be read.
    table = pd.DataFrame(rows, columns=None if rows else ["name", "evaluation", "num_examples"])
    write_text_atomic(path, table.to_csv(index=False))


def result_rows(result: RunResult) -> list[dict[str, Any]]:
    """Return the rows of one run in `results.csv`."""
    rows = []
    for name, evaluation in result.evaluations.items():
        row: dict[str, Any] = {key: getattr(result, key) for key in OF_RUN}
        row["evaluation"] = name
        for metric in ("num_examples", "accuracy", "mcc", "macro_f1", "log_loss", "ece"):
            row[metric] = getattr(evaluation, metric)
            if metric in evaluation.intervals:
                row[f"{metric}_low"], row[f"{metric}_high"] = evaluation.intervals[metric]
        seconds = result.evaluation_seconds.get(name)
        rows.append(
            {
                **row,
                "duration_seconds": result.duration_seconds,
                "training_seconds": result.training_seconds,
                "search_seconds": result.search_seconds,
                "search_trials": result.search.get("num_trials", 0),
                "cpu_seconds": result.cpu_seconds,
                "cached_seconds": result.cached_seconds,
                "samples_per_second": evaluation.num_examples / seconds if seconds else None,
                "latency_seconds": result.latency_seconds,
                "peak_memory_bytes": result.peak_memory_bytes,
                "tokens_unique": result.tokens["unique"],
                "tokens_padded": result.tokens["padded"],
            }
        )
    return rows


def read_search(run: Path) -> dict[str, Any]:
    """Return what the search before a run found and cost, as JSON values; empty without one."""
    path = run / SEARCH_FILE
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide results."""
    return {name: metadata.version(name) for name in PACKAGES}


def describe_machine() -> dict[str, str]:
    """Return the processor and what Python runs on."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    return {
        "processor": processor,
        "cores": str(os.cpu_count()),
        "system": platform.system(),
        "python": platform.python_version(),
    }
