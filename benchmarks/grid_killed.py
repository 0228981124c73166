"""A grid of 70 real runs, killed twice and resumed, against the same grid left alone.

    python benchmarks/grid_killed.py --out results/grid_killed.json

Seven methods at two sample sizes and five draws on the packaged model and `sentiment`. One folder
is made by one command; the other by three, of which two are killed (SIGKILL to the whole group) in
the middle of a training. Then every column of both results.csv that is no time and no memory must
be the same, digit by digit. Finished folders are kept: the command itself can be stopped.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from machine import describe
from taskfit.files import write_json_atomic

GRID: dict[str, Any] = {
    "base": {
        "task": {"name": "sentiment"},
        "data": {"max_test": 30, "max_validation": 30},
        "training": {
            "keep": "last",
            "tensorboard": False,
            "batch_size": 4,
            "eval_every_steps": 100_000,
            "save_every_steps": 2,
        },
    },
    "sizes": {16: {"training": {"epochs": 2}}, 32: {"training": {"epochs": 1}}},
    "seeds": 5,
    "methods": {
        "majority": {"method": {"name": "majority"}},
        "tfidf": {"method": {"name": "tfidf"}},
        "knn": {"method": {"name": "knn"}},
        "probe": {"method": {"name": "probe"}},
        "head": {"method": {"name": "head"}},
        "label words": {"method": {"name": "label_words"}},
        "label text": {"method": {"name": "label_text"}},
    },
}
KILLED_AT = (0.5, 0.8)  # of all runs finished; the cheap ones come first
MEASURED = re.compile("second|memory")


def start(config: Path, out: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start `taskfit compare` in a group of its own."""
    command = [sys.executable, "-m", "taskfit", "compare", "--config", str(config)]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*command, "--out", str(out)], stdout=output, stderr=output, start_new_session=True
        )


def finish(config: Path, out: Path, log: Path) -> float:
    """Run `taskfit compare` to its end; return its seconds."""
    started = time.perf_counter()
    if start(config, out, log).wait() != 0:
        raise SystemExit(f"The grid failed: see {log}.")
    return time.perf_counter() - started


def kill_in_training(config: Path, out: Path, log: Path, *, finished: int) -> str:
    """Start, and kill it when so many runs are done and another has a checkpoint; return which."""
    process = start(config, out, log)
    while process.poll() is None:
        time.sleep(0.05)
        if len(list(out.glob("runs/*/result.json"))) < finished:
            continue
        for folder in out.glob("runs/*/checkpoints"):
            if any(folder.iterdir()) and not (folder.parent / "result.json").exists():
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return folder.parent.name
    raise SystemExit(f"The grid ended before it could be killed: see {log}.")


def compare(whole: Path, broken: Path) -> dict[str, Any]:
    """Compare the tables of two grids; the first cell that differs ends the command."""
    found: dict[str, Any] = {}
    for name in ("results.csv", "history.csv"):
        tables = [pd.read_csv(folder / name, low_memory=False) for folder in (whole, broken)]
        measured = [column for column in tables[0] if MEASURED.search(str(column))]
        kept = [table.drop(columns=measured) for table in tables]
        pd.testing.assert_frame_equal(kept[0], kept[1], check_exact=True)
        found[name] = {"rows": len(kept[0]), "equal_columns": list(kept[0]), "measured": measured}
    return found


def main() -> None:
    """Make both grids, compare, and write."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/grid-killed"))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    config = work / "grid.yaml"
    config.write_text(yaml.safe_dump(GRID, sort_keys=False), encoding="utf-8")
    num = len(GRID["methods"]) * len(GRID["sizes"]) * GRID["seeds"]
    seconds = finish(config, work / "whole", work / "whole.log")
    # A kill has happened if its run is written down; a stopped benchmark goes on behind it.
    kills_file = work / "kills.json"
    kills: list[str] = json.loads(kills_file.read_text())["kills"] if kills_file.exists() else []
    for share in KILLED_AT[len(kills) :]:
        finished = round(share * num)
        killed = kill_in_training(config, work / "broken", work / "broken.log", finished=finished)
        kills.append(f"{killed} (after {finished} finished runs)")
        write_json_atomic(kills_file, {"kills": kills})
    finish(config, work / "broken", work / "broken.log")
    tables = compare(work / "whole", work / "broken")
    runs = pd.read_csv(work / "whole" / "results.csv", low_memory=False)
    record = {
        "grid": GRID,
        "runs": num,
        "runs_that_failed": len(json.loads((work / "broken/grid.json").read_text())["failures"]),
        "killed_in": kills,
        "undisturbed_seconds": round(seconds),
        "tables": tables,
        "columns_in_all": len(runs.columns),
        "machine": describe(),
    }
    print(json.dumps(record, indent=2))
    if arguments.out:
        write_json_atomic(arguments.out, record)


if __name__ == "__main__":
    main()
