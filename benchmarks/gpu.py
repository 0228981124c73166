"""Everything that only a GPU can tell, in one command of at most 8 minutes, without a network.

    python benchmarks/gpu.py --out results/benchmarks/gpu.json            # on a GPU
    python benchmarks/gpu.py --dry-run --out build/gpu.json               # tiny shapes, on a CPU
    python benchmarks/gpu.py --parts attention --minutes 3 --out gpu.json

Models are random, made on the spot; the packaged 135M model is taken where it is in the cache.
Each part runs in a process of its own with a time limit, and writes down each measure as soon as
it has it. What stands in the file without an error is not measured again, so a command that was
stopped goes on where it was. Parts come in the order of what they are worth:

- tree: values and gradients of trees in 16 bits, in NF4 and behind kept states, against padded
  passes of the same model, with float32 as the judge; loss scaling; the paged optimizer
- qlora: an 8B-shaped Llama in 4 bits at CoLA's lengths, ours against the published recipe: seconds
  of a step, memory, and the memory that `taskfit plan` foretells
- attention: ways to attend over a tree, 512 to 8,192 tokens, forward and backward
- scoring: 16 demonstrations in the prompt, against padded batches
- tuning: sft and dpo, against TRL where that is installed
"""

import argparse
import importlib
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Most seconds of each part, in the order of worth; together 8 minutes.
PARTS = {"tree": 80, "qlora": 140, "attention": 110, "scoring": 60, "tuning": 90}
MIN_SECONDS = 15.0  # a part takes about so long to start
# Runs a part: its name, the file and the most seconds.
Runner = Callable[[str, Path, float], int]


class Record:
    """The JSON file of all measures; it is whole after every one of them."""

    def __init__(self, path: Path) -> None:
        """Read what is there already."""
        self.path = path
        self.values: dict[str, Any] = {"parts": {}}
        if path.is_file():
            self.values = json.loads(path.read_text(encoding="utf-8"))

    def part(self, name: str) -> dict[str, Any]:
        """Return what is known of a part; changes are kept by `save`."""
        found: dict[str, Any] = self.values["parts"].setdefault(name, {"measures": {}})
        return found

    def lacks(self, part: str, measure: str) -> bool:
        """Return whether a measure is missing, or failed."""
        return "error" in self.part(part)["measures"].get(measure, {"error": "missing"})

    def save(self) -> None:
        """Write the file, in one move."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_suffix(".part")
        scratch.write_text(json.dumps(self.values, indent=2) + "\n", encoding="utf-8")
        scratch.replace(self.path)


def run_part(name: str, record: Record, *, tiny: bool) -> None:
    """Measure all of a part that is not recorded; what fails is recorded, and the next goes on.

    Args:
        name: Of the part.
        record: Where measures go.
        tiny: Tiny shapes, for a dry run.
    """
    import gpu_bench

    bench = gpu_bench.Bench.here(tiny=tiny)
    if "machine" not in record.values:
        from machine import describe

        record.values |= {"dry_run": tiny, "machine": describe()}
    part = record.part(name)
    for measure, function in importlib.import_module(f"gpu_{name}").measures(bench):
        if not record.lacks(name, measure):
            continue
        started = time.perf_counter()
        try:
            found = function()
        except Exception as error:
            places = traceback.extract_tb(error.__traceback__)[-2:]
            found = {
                "error": f"{type(error).__name__}: {error}"[:600],
                "at": [f"{Path(p.filename).name}:{p.lineno} {p.name}" for p in places],
            }
        bench.tidy()
        part["measures"][measure] = {
            **found,
            "whole_seconds": round(time.perf_counter() - started, 2),
        }
        record.save()
        print(f"{name} {measure}: {json.dumps(part['measures'][measure])}", flush=True)


def in_own_process(name: str, path: Path, seconds: float, *, tiny: bool) -> int:
    """Run a part in a process of its own; return its exit code, or -1 if time ran out."""
    command = [sys.executable, __file__, "--part", name, "--out", str(path)]
    command += ["--dry-run"] if tiny else []
    try:
        return subprocess.run(command, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return -1


def run_all(names: Sequence[str], path: Path, *, minutes: float, runner: Runner) -> None:
    """Run parts one after the other until time is up; write down how each ended.

    Args:
        names: Of the parts, in their order.
        path: The JSON file.
        minutes: For all of them together.
        runner: Runs one.
    """
    ends = time.monotonic() + 60 * minutes
    for name in names:
        left = min(float(PARTS[name]), ends - time.monotonic())
        started = time.monotonic()
        code = runner(name, path, left) if left >= MIN_SECONDS else None
        record = Record(path)
        words = {0: "done", -1: f"stopped after {left:.0f} s", None: "no time left"}
        part = record.part(name)
        part["outcome"] = words.get(code, f"failed with code {code}")
        part["seconds"] = round(time.monotonic() - started, 1)
        record.save()
        print(f"{name}: {part['outcome']} ({part['seconds']} s)", flush=True)


def troubles(record: Record, names: Sequence[str]) -> list[str]:
    """Return what failed, and what was measured and is not as it must be."""
    found = []
    for name in names:
        part = record.part(name)
        if part.get("outcome", "done") != "done":
            found.append(f"{name}: {part['outcome']}")
        for measure, values in part["measures"].items():
            if "error" in values:
                found.append(f"{name} {measure}: {values['error']}")
            elif values.get("ok") is False:
                found.append(f"{name} {measure}: not as it must be")
    return found


def main() -> None:
    """Run what the arguments ask for; exit with 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="which of these, in this order")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, on a CPU")
    parser.add_argument("--out", type=Path, required=True, help="JSON file, continued if there")
    parser.add_argument("--part", choices=list(PARTS), help="(one part in this process)")
    options = parser.parse_args()
    if options.part:
        run_part(options.part, Record(options.out), tiny=options.dry_run)
        return
    names = options.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if Record(options.out).values.get("dry_run", options.dry_run) != options.dry_run:
        parser.error(f"{options.out} was made with{'out' * options.dry_run} --dry-run")

    import gpu_bench

    gpu_bench.Bench.here(tiny=options.dry_run)  # before all parts say so one by one

    def runner(name: str, path: Path, seconds: float) -> int:
        return in_own_process(name, path, seconds, tiny=options.dry_run)

    run_all(names, options.out, minutes=options.minutes, runner=runner)
    found = troubles(Record(options.out), names)
    print("\n".join(found) or "all as it must be")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
