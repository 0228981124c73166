"""Where a comparison stands, read from its files: finished, under way, and the time left."""

import json
import os
import shlex
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from taskfit.errors import TaskfitError
from taskfit.files import read_jsonl
from taskfit.report.aligned import align
from taskfit.report.evidence import Evidence, read_evidence
from taskfit.report.variants import MethodVariant
from taskfit.runs.file_names import RESULT_FILE, SETTINGS_FILE
from taskfit.ui.project import Project
from taskfit.ui.verdict import read_verdict
from taskfit.ui.worker import START_SECONDS, STATUS, at_work

METRICS = ("accuracy", "mcc", "macro_f1")


def phase_of(project: Project) -> str:
    """Return new; comparing; judging; done; failed; or interrupted: its process is gone."""
    status, process = _read(project.folder / STATUS), at_work(project)
    phase = str(status.get("phase", "new"))
    if phase in ("comparing", "judging") and process is None:
        fresh = time.time() - float(status.get("started", 0)) < START_SECONDS
        return phase if fresh and _lives(status.get("process")) else "interrupted"
    return "comparing" if phase == "failed" and process is not None else phase


def state_of(project: Project) -> dict[str, Any]:
    """Return what the page shows of a comparison, as JSON values.

    `phase` is that of `phase_of`; of a failed comparison there is its `error`.
    """
    status, choices = _read(project.folder / STATUS), project.choices
    process, phase = at_work(project), phase_of(project)
    grid = _read(project.comparison / "grid.json")
    failures = {k: project.in_words(str(v)) for k, v in grid.get("failures", {}).items()}
    running = _running(project, grid) if process is not None else None
    verdict = read_verdict(project) if phase == "done" else None
    return {
        "phase": phase,
        "process": process,
        "error": status.get("error"),
        "stopped": bool(status.get("stopped")),
        "started": status.get("started"),
        "finished": status.get("finished"),
        "budget": choices.budget,
        "methods": _rows(project),
        "num_runs": len(grid.get("runs", ())),
        "num_finished": grid.get("num_finished", 0),
        "failures": failures,
        "running": running,
        "seconds_left": _seconds_left(grid, choices.planned, running, project),
        "verdict": verdict,
        "commands": None if verdict is None else _commands(project, verdict["best"]["run"]),
    }


def _commands(project: Project, run: str) -> dict[str, str]:
    """Return what to type to put a run to work."""
    folder = shlex.quote(str(project.comparison / "runs" / run))
    return {
        "serve": f"taskfit serve {folder}",
        "predict": f"taskfit predict {folder} new.csv -o labelled.csv",
    }


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _lives(process: Any) -> bool:  # noqa: ANN401 - from a file
    if not isinstance(process, int):
        return False
    with suppress(ChildProcessError):
        os.waitpid(process, os.WNOHANG)  # if it was ours and has ended
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def _rows(project: Project) -> list[dict[str, Any]]:
    """Return the methods that have finished runs, with scores and costs."""
    finished = sorted(project.comparison.glob(f"runs/*/{RESULT_FILE}"))
    if not finished:
        return []
    stamp = tuple((str(path), path.stat().st_mtime_ns) for path in finished)
    with suppress(TaskfitError):  # such as a file that is being written
        return _scored(project.comparison, stamp)
    return []


@lru_cache(maxsize=64)
def _scored(comparison: Path, _: tuple[tuple[str, int], ...]) -> list[dict[str, Any]]:
    evidence = read_evidence(comparison)
    return [_row(evidence, variant) for variant in evidence.variants]


def _row(evidence: Evidence, variant: MethodVariant) -> dict[str, Any]:
    contender = variant.at(variant.sizes[-1], evidence.in_domain)
    assert contender is not None, "all runs of a grid are measured on the same sets"
    scores = {}
    for metric in ("accuracy",) if evidence.multi_label else METRICS:
        answers = evidence.answers[evidence.in_domain]
        (score,) = align([contender], [answers], metric=metric).comparison.scores
        scores[metric] = [score.mean, *score.interval]
    costs = contender.costs
    return {
        "method": variant.name,
        "run": contender.first.folder.name,
        "draws": len(contender.runs),
        "scores": scores,
        "seconds": costs["train_seconds"],
        "memory_bytes": costs["memory_bytes"],
        "num_examples": contender.first.result.evaluations[evidence.in_domain].num_examples,
    }


def _running(project: Project, grid: dict[str, Any]) -> dict[str, Any] | None:
    """Return the run under way: its method, for how long, and the step of its training."""
    for folder in grid.get("left", ()):
        home = project.comparison / "runs" / folder
        if not (home / SETTINGS_FILE).is_file():
            continue
        steps = [r for r in read_jsonl(home / "metrics.jsonl") if r.get("kind") == "step"]
        # Settings are written first, anew where a run goes on.
        since = time.time() - (home / SETTINGS_FILE).stat().st_mtime
        found: dict[str, Any] = {"method": grid.get("names", {}).get(folder, folder)}
        found["seconds"] = max(0.0, since)
        if steps:
            last = steps[-1]
            left = last["seconds"] / last["step"] * (last["total_steps"] - last["step"])
            found |= {"step": last["step"], "total_steps": last["total_steps"], "left": left}
        return found
    return None


def _seconds_left(
    grid: dict[str, Any],
    planned: dict[str, float],
    running: dict[str, Any] | None,
    project: Project,
) -> float | None:
    """Return the planned time of what is left, times what the finished took of their plan."""
    names = grid.get("names", {})
    left = [names.get(folder) for folder in grid.get("left", ())]
    if not left or not all(name in planned for name in left):
        return None
    draws = {row["method"]: (row["seconds"], row["draws"]) for row in _rows(project)}
    took = sum(seconds * draws for seconds, draws in draws.values() if seconds)
    plan = sum(planned.get(name, 0.0) * draws for name, (_, draws) in draws.items())
    # Runs of a second say little about those of minutes.
    pace = took / plan if plan > START_SECONDS / 2 and took else 1.0
    seconds = pace * sum(planned[name] for name in left if name)
    if running is not None:
        whole = pace * planned[running["method"]]
        seconds += running.get("left", max(0.0, whole - running["seconds"])) - whole
    return max(0.0, seconds)
