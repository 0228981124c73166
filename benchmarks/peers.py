"""What people would use instead of taskfit: same examples, same model, same machine, one run.

    python benchmarks/peers.py --out results/benchmarks/peers.json

Every contender runs in a process of its own, one after the other, with the same number of threads,
on files that are written once by taskfit's data preparation. A finished job is kept in the work
folder, so that the command continues where it was stopped. Needs the `peers` extra. `--only` and
`--sets` choose a part; `--python NAME=PATH` runs a contender in another environment.

The result is a JSON file and beside it a Markdown page with one table a data set. Seconds are those
of training and evaluation with imports and weights loaded; memory is the peak of the process.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from peer_contender import CONTENDERS
from peer_data import PeerOptions, read_data
from peer_ours import OURS
from peer_prepare import DATA_SETS, is_present, write_data
from peer_table import compare, evaluate_job, page, slug
from taskfit.data import cache_folder
from taskfit.files import write_json_atomic, write_text_atomic
from taskfit.models.packaged import packaged_folder

SETS = ["sentiment:64", "sentiment:256", "sentiment:1024", "cola:1024", "banking77:8"]
OTHER_SETS = [name for name in SETS if name != "banking77:8"]
# Variants are run where their price is small. DecisionFormer reads all labels with every text: on
# Banking77 a step of it takes half a minute on two cores, and the others' epochs two hours: it is
# stopped after 20 steps, which tell its price, not what it can learn.
LEFT_OUT = {
    ("Trainer classifier, prompt", "sentiment:1024"),
    ("Trainer classifier, prompt", "banking77:8"),
    ("DecisionFormer", "banking77:8"),
    ("DecisionFormer, gentler", "banking77:8"),
    *(("DecisionFormer, gentler, 20 steps", name) for name in OTHER_SETS),
    # Of one token, label words are the same either way.
    *(("taskfit label words, joint", name) for name in OTHER_SETS),
}
SAMPLE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Job:
    """One contender on one data set.

    Attributes:
        contender: A key of `CONTENDERS`.
        data: A key of `DATA_SETS`.
        num_labels: Labelled examples in all, or of each class.
        folder: Of its results.
        data_folder: What it reads.
        python: What runs it.
    """

    contender: str
    data: str
    num_labels: int
    folder: Path
    data_folder: Path
    python: str

    @property
    def set_name(self) -> str:
        """Return data set and number of labels, as on the command line."""
        return f"{self.data}:{self.num_labels}"


def run_job(job: Job, options: PeerOptions, environment: dict[str, str]) -> dict[str, Any]:
    """Run one contender to its end; return and store what it did and what was seen of it.

    Raises:
        RuntimeError: If it fails; the message has the end of its output.
    """
    if job.folder.is_dir():
        shutil.rmtree(job.folder)  # what an interrupted run left
    job.folder.mkdir(parents=True)
    command = [job.python, str(Path(__file__).with_name("peer_contender.py"))]
    command += ["--contender", job.contender, "--data", str(job.data_folder)]
    with tempfile.TemporaryDirectory(dir=job.folder) as scratch:
        # A cache of its own: features that an earlier job left would be no work at all.
        cache = Path(scratch) / "cache"
        cache.mkdir()
        for name in ("models", "packages"):
            (cache / name).symlink_to(cache_folder() / name)
        shared = asdict(options) | {"scratch": str(Path(scratch) / "run")}
        (Path(scratch) / "run").mkdir()
        command += ["--out", str(job.folder), "--options", json.dumps(shared)]
        started = time.perf_counter()
        with (job.folder / "output.log").open("wb") as log:
            process = psutil.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment | {"TASKFIT_CACHE": str(cache)},
            )
            peak = watch(process)
        seconds = time.perf_counter() - started
    if process.returncode != 0:
        tail = (job.folder / "output.log").read_text(errors="replace").splitlines()[-12:]
        raise RuntimeError(f"{job.contender} on {job.set_name} failed:\n" + "\n".join(tail))
    found = json.loads((job.folder / "contender.json").read_text(encoding="utf-8"))
    data = read_data(job.data_folder)
    if found["digest"] != data.digest():
        raise RuntimeError(f"{job.contender} saw other examples than {job.data_folder} holds.")
    result = {
        **found,
        "data": job.data,
        "num_labels": job.num_labels,
        "num_train": len(data.train),
        "side": "ours" if job.contender in OURS else "peer",
        "options": recorded(options, environment),
        "process_seconds": seconds,
        "peak_memory_bytes": peak,
        "evaluations": evaluate_job(data, job.folder / "probabilities.npz"),
    }
    write_json_atomic(job.folder / "result.json", result)
    return result


def recorded(options: PeerOptions, environment: dict[str, str]) -> dict[str, Any]:
    """Return what a result depends on beside its data; a kept one must have the same."""
    folders = ("model", "encoder", "scratch")
    shared = {k: v for k, v in asdict(options).items() if k not in folders}
    return shared | {"threads": int(environment["OMP_NUM_THREADS"])}


def kept_result(job: Job, options: PeerOptions, environment: dict[str, str]) -> dict[str, Any]:
    """Return the finished result of an earlier run on the same data and options, or nothing."""
    stored = job.folder / "result.json"
    if not stored.is_file():
        return {}
    found: dict[str, Any] = json.loads(stored.read_text(encoding="utf-8"))
    same = found["options"] == recorded(options, environment)
    return found if same and found["digest"] == read_data(job.data_folder).digest() else {}


def watch(process: psutil.Popen) -> int:
    """Wait for a process; return the most resident memory that it had (bytes).

    Sampled from outside: taskfit resets the kernel's own high-water mark between its stages.
    """
    peak = 0
    try:
        while process.poll() is None:
            try:
                peak = max(peak, process.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(SAMPLE_SECONDS)
        process.wait()
    finally:
        if process.poll() is None:  # interrupted
            process.terminate()
            process.wait()
    return peak


def child_environment(threads: int) -> dict[str, str]:
    """Return the variables of all contenders: threads, and no network."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def plan(arguments: argparse.Namespace) -> list[Job]:
    """Return all jobs, with the data that they read written."""
    pythons = dict(pair.split("=", 1) for pair in arguments.python)
    unknown = [name for name in (*pythons, *arguments.only) if name not in CONTENDERS]
    if unknown:
        raise SystemExit(f"No contender {unknown[0]!r}; there are: {', '.join(CONTENDERS)}.")
    jobs = []
    for name in arguments.sets:
        data, number = name.split(":")
        if data not in DATA_SETS or int(number) not in DATA_SETS[data].epochs:
            known = [f"{d}:{n}" for d, found in DATA_SETS.items() for n in found.epochs]
            raise SystemExit(f"No data set {name!r}; there are: {', '.join(known)}.")
        if not is_present(data):
            print(f"{name}: left out, no folder {data} in TASKFIT_DATA", flush=True)
            continue
        seed, folder = arguments.seed, arguments.work / f"{data}-{number}"
        limits = {"max_test": arguments.max_test, "max_other": arguments.max_other}
        write_data(folder / "data", data, int(number), seed=seed, **limits)
        for contender in arguments.only or CONTENDERS:
            if (contender, name) in LEFT_OUT and not arguments.only:
                continue
            python = pythons.get(contender, sys.executable)
            own = folder / slug(contender)
            jobs.append(Job(contender, data, int(number), own, folder / "data", python))
    return jobs


def main() -> None:
    """Run every job that has no result yet; then compare and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=SETS, metavar="DATA:LABELS")
    parser.add_argument("--only", nargs="+", default=[], metavar="CONTENDER")
    parser.add_argument("--work", type=Path, default=Path("runs/peers"))
    parser.add_argument("--out", type=Path, help="JSON file; a Markdown page stands beside it")
    parser.add_argument("--python", nargs="+", default=[], metavar="CONTENDER=PATH")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False))
    parser.add_argument("--seed", type=int, default=0, help="of the draw and of every contender")
    parser.add_argument("--max-test", type=int, default=1000)
    parser.add_argument("--max-other", type=int, default=300)
    parser.add_argument("--max-steps", type=int, help="for a trial of everything")
    arguments = parser.parse_args()
    # Stopped from outside, the contender under way is stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    model, encoder = str(packaged_folder("smollm2-135m")), str(packaged_folder("minilm"))
    environment = child_environment(arguments.threads)
    jobs, results, failed = plan(arguments), [], []
    for number, job in enumerate(jobs, start=1):
        where = f"[{number}/{len(jobs)}] {job.set_name} {job.contender}"
        options = PeerOptions(
            model=model,
            encoder=encoder,
            scratch="",
            epochs=DATA_SETS[job.data].epochs[job.num_labels],
            seed=arguments.seed,
            max_steps=arguments.max_steps,
        )
        if kept := kept_result(job, options, environment):
            results.append(kept)
            print(f"{where}: kept", flush=True)
            continue
        print(f"{where} ...", flush=True)
        try:
            result = run_job(job, options, environment)
        except RuntimeError as error:
            # The others are still worth their time; the failure is told again at the end.
            print(f"  {error}", flush=True)
            failed.append(f"{job.set_name} {job.contender}")
            continue
        results.append(result)
        scores = {name: round(e["accuracy"], 3) for name, e in result["evaluations"].items()}
        print(f"  {result['process_seconds']:.0f} s, accuracy {scores}", flush=True)
    # Here, because the contenders must not wait for it, nor it for them.
    from machine import describe

    compared = {
        "machine": describe(),
        "threads": arguments.threads,
        "seed": arguments.seed,
        "failed": failed,
        **compare(results, {job.set_name: job.folder.parent for job in jobs}),
    }
    written = page(compared)
    print(written)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(arguments.out, compared)
        write_text_atomic(arguments.out.with_suffix(".md"), written)
    if failed:
        raise SystemExit(f"Failed: {'; '.join(failed)}.")


if __name__ == "__main__":
    main()
