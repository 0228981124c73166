"""`report.html` of a tuning run: before and after, on numbers and on the same prompts."""

import base64
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from taskfit.files import read_jsonl, write_text_atomic
from taskfit.report.run_plots import plot_history, plot_memory
from taskfit.runs.records import RunResult
from taskfit.runs.tuning.run import SAMPLES

METRICS = {
    "loss": "loss (nats)",
    "perplexity": "perplexity",
    "reward_accuracy": "reward accuracy",
    "reward_margin": "reward margin",
    "accuracy": "better answer more probable",
}


def report_tuning(folder: Path, result: RunResult) -> Path:
    """Write the report of a tuning run; return the file's path."""
    plots = folder / "plots"
    pictures = {}
    records = read_jsonl(folder / "metrics.jsonl")
    if any(record["kind"] == "step" for record in records):
        unit = "pair" if result.method == "dpo" else "token"
        plot_history(records, plots / "history", metric=None, unit=unit)
        pictures["Training"] = _data(plots / "history.png")
    plot_memory(result.memory_by_stage, plots / "memory")
    pictures["Memory"] = _data(plots / "memory.png")
    home = resources.files("taskfit.report")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(home.joinpath("tuning.html").read_text("utf-8")).render(
        result=result,
        before=result.details["before"],
        after=result.details["after"],
        metrics=METRICS,
        pictures=pictures,
        samples=side_by_side(read_jsonl(folder / SAMPLES)),
        megabyte=1e6,
    )
    path = folder / "report.html"
    write_text_atomic(path, page)
    return path


def side_by_side(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return a record for each prompt with the answers before and after."""
    found: dict[str, dict[str, str]] = {}
    for sample in samples:
        entry = found.setdefault(
            sample["id"], {key: sample[key] for key in ("id", "prompt", "reference")}
        )
        entry[sample["when"]] = sample["answer"]
    return list(found.values())


def _data(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")
