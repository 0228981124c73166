"""The study that decides what `taskfit fit mine.csv` does with no settings.

    python benchmarks/defaults.py --threads 1 --part 1/2    # beside it the same with --part 2/2
    python benchmarks/defaults.py --report                  # results/defaults.md and .json

Needs TASKFIT_DATA (or --data). A job is a contender on a data set with a number of labels and a
seed: taskfit reads the drawn table from a CSV file, as it would a user's, and fits into a folder
that is deleted afterwards. The record of a finished job is a file of the work folder, so that the
command goes on where it was stopped; one made with other settings is made again. After a change of
taskfit itself, delete the records that it concerns, `runs/defaults/records/*-default.json`. Parts
must be given the same sets, sizes and seeds: they share out the cells of these.

SetFit runs in an environment of its own (`--peer-python`, with `setfit`, `sentence-transformers`,
`datasets` and taskfit installed), once a set at the smallest size.
"""

import argparse
import functools
import gc
import hashlib
import json
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
import yaml
from sklearn.metrics import matthews_corrcoef
from threadpoolctl import threadpool_limits

import taskfit
from defaults_data import READERS, Row, Table, load_table, write_csv, write_peer_data
from defaults_report import DEFAULT, SETFIT, judge, page
from machine import describe
from peer_data import PeerOptions
from peer_table import work_seconds
from peers import Job as PeerJob
from peers import child_environment, run_job
from taskfit.files import write_json_atomic, write_text_atomic
from taskfit.models.packaged import packaged_folder
from taskfit.runs.fit import fit
from taskfit.runs.records import RunResult
from taskfit.settings_base import merge_settings
from taskfit.settings_file import load_settings

SIZES = (64, 256, 1024)
# 4, 8 and 14 labels a class.
OWN_SIZES = {"banking77": dict(zip(SIZES, (308, 616, 1078), strict=True))}
BEFORE: dict[str, Any] = {
    "data": {"validation_fraction": 0.1, "test_fraction": 0.0},
    "adapter": {"layers": "all", "lora_dropout": 0.05},
    "training": {"epochs": 1.0, "batch_size": 16, "learning_rate": 5e-4, "keep": "best"},
}
# Name -> nested settings, beside those of the data and the seed. The default is last, so that a
# cell in which it is done has all others.
CONTENDERS: dict[str, dict[str, Any]] = {
    "majority": {"method": {"name": "majority"}},
    "tfidf": {"method": {"name": "tfidf"}},
    "probe": {"method": {"name": "probe"}},
    "probe-minilm": {"method": {"name": "probe", "features": "minilm"}},
    "head": {"method": {"name": "head"}},
    "label_words": {"method": {"name": "label_words"}},
    "head before": {**BEFORE, "method": {"name": "head", "start": "zero"}},
    "label_words before": {**BEFORE, "method": {"name": "label_words"}},
    "default, all layers": {"adapter": {"layers": "all"}},
    "default, half": {"adapter": {"layers": "half"}},
    "default, top third": {"adapter": {"layers": 10}},
    "default, head from zero": {"method": {"start": "zero"}},
    SETFIT: {},
    DEFAULT: {},
}
SMALL = 4000  # characters of JSON up to which an entry of a result's details is kept


@dataclass(frozen=True, slots=True)
class Job:
    """One contender on one table: keys of `READERS` and `CONTENDERS`, a member of `SIZES`."""

    data: str
    size: int
    seed: int
    contender: str

    @property
    def num_labels(self) -> int:
        """Return how many labelled rows the table has."""
        return OWN_SIZES.get(self.data, {}).get(self.size, self.size)

    def path(self, work: Path) -> Path:
        """Return the file of the job's record."""
        name = self.contender.replace(" ", "_")
        return work / "records" / f"{self.data}-{self.size}-{self.seed}-{name}.json"

    def __str__(self) -> str:
        return f"{self.data} {self.num_labels} seed {self.seed} {self.contender}"


def plan(
    sets: Sequence[str],
    sizes: Iterable[int],
    seeds: Sequence[int],
    contenders: Sequence[str],
    *,
    part: tuple[int, int] = (1, 1),
) -> list[Job]:
    """Return one part's jobs, cheap cells first: seed by seed, size by size, then set by set.

    The parts share out the cells such that each set, size and seed occurs in all of them.

    Args:
        sets: Keys of `READERS`.
        sizes: Members of `SIZES`.
        seeds: Seeds.
        contenders: Keys of `CONTENDERS`; SetFit is left out at all sizes but the smallest.
        part: Which part, from 1, of how many.
    """
    jobs = []
    mine, parts = part
    for k, seed in enumerate(seeds):
        for j, size in enumerate(sorted(sizes)):
            for i, data in enumerate(sets):
                if (i + j + k) % parts == mine - 1:
                    jobs += [
                        Job(data, size, seed, name)
                        for name in CONTENDERS
                        if name in contenders and (name != SETFIT or size == SIZES[0])
                    ]
    return jobs


def read_record(job: Job, work: Path) -> dict[str, Any] | None:
    """Return the record of a finished job, or None if it is still to be done."""
    path = job.path(work)
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record if is_current(record) else None


def is_current(record: Mapping[str, Any]) -> bool:
    """Return whether a record was made with the settings that its contender has by now."""
    return bool(record["given"] == CONTENDERS.get(record["contender"]))


def run_ours(job: Job, table: Table, rows: Sequence[Row], scratch: Path) -> dict[str, Any]:
    """Fit one of our contenders; return its figures and predictions."""
    flags: dict[str, Any] = {
        "seed": job.seed,
        "data": {
            "train": str(write_csv(scratch / "train.csv", rows)),
            "tests": {"test": str(write_csv(scratch / "test.csv", table.test))},
            "text": table.columns,
            "label": "label",
        },
    }
    merge_settings(flags, CONTENDERS[job.contender])
    folder = scratch / "run"
    result = fit(load_settings(flags=flags), folder, baselines=False).result
    settings = yaml.safe_load((folder / "settings.yaml").read_text(encoding="utf-8"))
    predictions = pd.read_parquet(folder / "predictions" / "test.parquet")
    if predictions["gold"].tolist() != [row["label"] for row in table.test]:
        raise RuntimeError(f"{job}: the predictions are of other texts than the test table's.")
    place = {label: index for index, label in enumerate(table.labels)}
    answers = [place.get(answer, -1) for answer in predictions["predicted"]]
    resolved = {name: settings[name] for name in ("method", "adapter", "training")}
    return {**figures_of(result), **scores_of(table, answers), "settings": resolved}


def figures_of(result: RunResult) -> dict[str, Any]:
    """Return what a run's result says of quality and cost."""
    test = result.evaluations["test"]
    names = ("method", "num_train", "cached_seconds", "cpu_seconds", "training_seconds")
    names += ("latency_seconds", "peak_memory_bytes", "best_step", "versions")
    return {
        **{name: getattr(result, name) for name in names},
        "macro_f1": test.macro_f1,
        "log_loss": test.log_loss,
        "seconds": result.whole_seconds,
        "evaluation_seconds": result.evaluation_seconds["test"],
        "details": {k: v for k, v in result.details.items() if len(json.dumps(v)) <= SMALL},
    }


def scores_of(table: Table, answers: Sequence[int]) -> dict[str, Any]:
    """Return gold and predicted labels by index, and what follows from these alone."""
    place = {label: index for index, label in enumerate(table.labels)}
    gold = [place[row["label"]] for row in table.test]
    return {
        "num_test": len(gold),
        "accuracy": float(np.mean(np.equal(gold, answers))),
        "mcc": float(matthews_corrcoef(gold, answers)),
        "gold": gold,
        "predicted": list(answers),
    }


def run_peer(
    job: Job, table: Table, rows: Sequence[Row], scratch: Path, *, python: str, threads: int
) -> dict[str, Any]:
    """Train SetFit on the same rows, in a process of another environment; as `run_ours`.

    Its seconds are those of training and evaluation, without imports and the weights' loading.
    """
    data = scratch / "data"
    write_peer_data(data, table, rows)
    encoder = str(packaged_folder("minilm"))
    options = PeerOptions(model="", encoder=encoder, scratch="", epochs=1, seed=job.seed)
    own = PeerJob("SetFit MiniLM", job.data, job.num_labels, scratch / "peer", data, python)
    found = run_job(own, options, child_environment(threads))
    with np.load(scratch / "peer" / "probabilities.npz") as arrays:
        answers = arrays["test"].argmax(axis=1).tolist()
    return {
        **{name: found["evaluations"]["test"][name] for name in ("macro_f1", "log_loss")},
        **{name: found[name] for name in ("process_seconds", "settings", "versions")},
        "method": SETFIT,
        "seconds": work_seconds(found),
        "cpu_seconds": work_seconds(found, "cpu_seconds"),
        "training_seconds": found["seconds"]["training"],
        "evaluation_seconds": found["seconds"]["evaluation"],
        **scores_of(table, answers),
    }


def run_one(job: Job, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a job to its end; return and store its record."""
    table = read_table(job.data, arguments.data)
    rows = table.draw(job.num_labels, seed=job.seed)
    load, started = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryDirectory(dir=arguments.work, prefix="scratch-") as name:
        if job.contender == SETFIT:
            peer = {"python": arguments.peer_python, "threads": arguments.threads}
            found = run_peer(job, table, rows, Path(name), **peer)
        else:
            found = run_ours(job, table, rows, Path(name))
    gc.collect()  # the model, before the next one is loaded
    words = [len(row[column].split()) for row in (*rows, *table.test) for column in table.columns]
    record = {
        **asdict(job),
        "num_labels": job.num_labels,
        "given": CONTENDERS[job.contender],
        "mean_words": sum(words) / (len(rows) + len(table.test)),
        "num_classes": len(table.labels),
        "job_seconds": time.perf_counter() - started,
        "load": load,
        "threads": arguments.threads,
        "command": shown_command(),
        "code": code_state(),
        "machine": machine(),
        **found,
    }
    write_json_atomic(job.path(arguments.work), record)
    return record


@functools.lru_cache(maxsize=2)
def read_table(data: str, folder: Path) -> Table:
    """Return a data set, the last ones read kept."""
    return load_table(data, folder)


@functools.cache
def machine() -> dict[str, Any]:
    """Return what the jobs run on, measured once a command."""
    return {k: v for k, v in describe().items() if k not in ("versions", "threads")}


@functools.cache
def code_state() -> str:
    """Return a hash of taskfit's code as it was at the first job."""
    folder = Path(taskfit.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def shown_command() -> str:
    """Return the command as anyone would give it, without this machine's paths."""
    words = ["python", "benchmarks/defaults.py", *sys.argv[1:]]
    for flag, shown in (
        ("--peer-python", "ENV/bin/python"),
        ("--data", "DATA"),
        ("--work", "WORK"),
    ):
        if flag in words[:-1]:
            words[words.index(flag) + 1] = shown
    return shlex.join(words)


def seconds_left(jobs: Sequence[Job], records: Sequence[Mapping[str, Any]]) -> float:
    """Return about how long jobs take, from records of the same contender, at best of its size."""

    def mean_of(keep: Callable[[Mapping[str, Any]], bool]) -> float | None:
        found = [float(record["job_seconds"]) for record in records if keep(record)]
        return sum(found) / len(found) if found else None

    @functools.cache
    def expected(contender: str, size: int) -> float:
        same = mean_of(lambda r: r["contender"] == contender and r["size"] == size)
        same = same or mean_of(lambda r: r["contender"] == contender)
        return same or mean_of(lambda _: True) or 0.0

    return sum(expected(job.contender, job.size) for job in jobs)


def run_jobs(jobs: Sequence[Job], arguments: argparse.Namespace) -> list[str]:
    """Run the jobs that have no record yet, with a line each; return those that failed."""
    records = {job: read_record(job, arguments.work) for job in jobs}
    todo = [job for job in jobs if records[job] is None]
    done = [record for record in records.values() if record is not None]
    print(f"{len(jobs)} jobs, {len(done)} of them done already", flush=True)
    failed = []
    for number, job in enumerate(todo, start=1):
        try:
            record = run_one(job, arguments)
        except Exception:
            # The others are still worth their time; the failure is told again at the end.
            print(f"[{number}/{len(todo)}] {job} failed:\n{traceback.format_exc()}", flush=True)
            failed.append(str(job))
            continue
        done.append(record)
        left = seconds_left(todo[number:], done)
        print(
            f"[{number}/{len(todo)}] {job}: MCC {record['mcc']:.3f}, accuracy "
            f"{record['accuracy']:.3f}, {record['seconds']:.0f} s ({record['method']}); about "
            f"{left / 60:.0f} min left",
            flush=True,
        )
    return failed


def write_report(work: Path, out: Path) -> None:
    """Write the tables of all records in the work folder."""
    paths = sorted((work / "records").glob("*.json"))
    stored = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    records = [record for record in stored if is_current(record)]
    print(f"{len(records)} records; {len(stored) - len(records)} of other settings left out: {out}")
    if not records:
        raise SystemExit("There is nothing to report yet.")
    judged = judge(records)
    write_text_atomic(out, page(judged))
    write_json_atomic(out.with_suffix(".json"), judged)


def parse_part(text: str) -> tuple[int, int]:
    """Return `I/N` as numbers."""
    mine, parts = (int(number) for number in text.split("/"))
    if not 1 <= mine <= parts:
        raise ValueError
    return mine, parts


def main() -> None:
    """Run what is left of the selected jobs, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("TASKFIT_DATA"))
    parser.add_argument("--work", type=Path, default=Path("runs/defaults"))
    parser.add_argument("--sets", nargs="+", choices=list(READERS), default=list(READERS))
    parser.add_argument("--sizes", nargs="+", type=int, choices=SIZES, default=list(SIZES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--part", type=parse_part, default=(1, 1), metavar="I/N")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False))
    parser.add_argument("--peer-python", metavar="PATH", help="runs SetFit; left out without it")
    parser.add_argument("--report", action="store_true", help="write the tables and run nothing")
    parser.add_argument("--out", type=Path, default=Path("results/defaults.md"))
    arguments = parser.parse_args()
    if arguments.report:
        write_report(arguments.work, arguments.out)
        return
    if arguments.data is None:
        raise SystemExit("Where is the data? Set TASKFIT_DATA or give --data.")
    # Stopped from outside, what a job has in its scratch folder is deleted too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)
    torch.set_num_threads(arguments.threads)
    chosen = list(arguments.only)
    if SETFIT in chosen and arguments.peer_python is None:
        print("setfit: left out without --peer-python", flush=True)
        chosen.remove(SETFIT)
    arguments.work.mkdir(parents=True, exist_ok=True)
    selected = (arguments.sets, arguments.sizes, arguments.seeds, chosen)
    with threadpool_limits(arguments.threads):
        failed = run_jobs(plan(*selected, part=arguments.part), arguments)
    if failed:
        raise SystemExit(f"Failed: {'; '.join(failed)}.")


if __name__ == "__main__":
    main()
