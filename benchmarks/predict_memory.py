"""Memory of `taskfit predict` by the rows that are done, with tables of any size.

    python benchmarks/predict_memory.py RUN --rows 1000000 --endings .csv --out FILE.json

makes a table of rows of 20 words, lets the command label it in a process of its own, and looks at
that process's memory (resident, of it anonymous: what a file in the system's cache lends is not
counted) while windows of 5,000 rows are finished. A run folder may be given that exists; without
one a bag of words (`tfidf`) is fitted on 2,000 such rows.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from machine import describe

WORDS = [f"{start}{end}" for start in ("ta", "mo", "ri", "ke", "lu", "so") for end in "abcdefghij"]
NUM_WORDS = 20
SECONDS = 0.5


def rows(count: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """Yield ticket, text and label; the label is that of the more frequent of two words."""
    draw = random.Random(seed)
    for place in range(count):
        label = draw.choice(("good", "bad"))
        words = draw.choices(WORDS, k=NUM_WORDS - 3) + [label] * 3
        draw.shuffle(words)
        yield f"T{place}", " ".join(words), label


def write(path: Path, count: int, seed: int) -> None:
    """Write a table, in this process, whose memory is not measured."""
    names = ("ticket", "text", "label")
    if path.suffix == ".parquet":
        columns = map(list, zip(*rows(count, seed), strict=True))
        table = pa.table(dict(zip(names, columns, strict=True)))
        pq.write_table(table, path)  # in one row group, up to a million rows
        return
    mark = "\t" if path.suffix == ".tsv" else ","
    with path.open("w") as file:
        if path.suffix != ".jsonl":
            file.write(mark.join(names) + "\n")
        for row in rows(count, seed):
            is_json = path.suffix == ".jsonl"
            line = json.dumps(dict(zip(names, row, strict=True))) if is_json else mark.join(row)
            file.write(line + "\n")


def measure(run: Path, source: Path, target: Path, count: int) -> dict[str, Any]:
    """Return the memory of a prediction, sampled."""
    command = [sys.executable, "-m", "taskfit", "predict", str(run), str(source), "-o", str(target)]
    began = time.perf_counter()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    parts, curve = target.with_name(f"{target.name}.partial"), []
    while process.poll() is None:
        try:
            found = process.memory_info()
        except psutil.Error:
            break
        done = min(count, 5000 * len(list(parts.glob("part-*.parquet"))))
        own = found.rss - found.shared
        curve.append((round(time.perf_counter() - began, 1), done, found.rss, own))
        time.sleep(SECONDS)
    _, error = process.communicate()
    if process.returncode:
        raise SystemExit(error)
    at_work = [(done, own) for _, done, _, own in curve if done]
    tenth = max(own for done, own in at_work if done <= max(count // 10, at_work[0][0]))
    return {
        "rows": count,
        "format": source.suffix,
        "input_bytes": source.stat().st_size,
        "seconds": round(time.perf_counter() - began, 1),
        "peak_rss": max(rss for _, _, rss, _ in curve),
        "peak_own": max(own for _, _, _, own in curve),
        "peak_own_first_tenth": tenth,
        "curve": curve[:: max(1, len(curve) // 100)],
    }


def main() -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--endings", nargs="+", default=[".csv", ".jsonl", ".parquet"])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = options.run or folder / "run"
        if options.run is None:
            write(folder / "train.csv", 2000, seed=1)
            fit = ["fit", str(folder / "train.csv"), "--method", "tfidf", "--out", str(run)]
            subprocess.run([sys.executable, "-m", "taskfit", *fit], check=True, capture_output=True)
        found = []
        for ending in options.endings:
            source, target = folder / f"in{ending}", folder / "out.csv"
            write(source, options.rows, seed=2)
            found.append(measure(run, source, target, options.rows))
            source.unlink()
            with target.open() as file:
                found[-1]["rows_out"] = sum(1 for _ in file) - 1
            target.unlink()
            record = {"machine": describe(), "method": _method(run), "tables": found}
            options.out.write_text(json.dumps(record, indent=1) + "\n")
            shown = {k: v for k, v in found[-1].items() if k != "curve"}
            sys.stdout.write(json.dumps(shown) + "\n")


def _method(run: Path) -> str:
    settings = (run / "settings.yaml").read_text()
    return settings.partition("method:")[2].partition("name:")[2].split()[0]


if __name__ == "__main__":
    main()
