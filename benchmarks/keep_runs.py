"""The runs of a comparison as one small file, without weights and texts, and back.

    python benchmarks/keep_runs.py pack runs/experiments/nli results/experiments/nli-runs.tar.xz
    python benchmarks/keep_runs.py unpack results/experiments/nli-runs.tar.xz runs/experiments/nli

Settings, records, histories and slices are kept as they are; of a classifier its task and number
format; of predictions the ids, the answers and the probabilities, these in four digits. What is
unpacked can be reported (`taskfit report`), and `taskfit compare` goes on from it: finished runs
count as finished. It cannot predict.
"""

import argparse
import io
import json
import lzma
import tarfile
from pathlib import Path

import pandas as pd

# Of a run's folder, what report and comparison read.
KEPT = {".json", ".jsonl", ".yaml", ".csv"}
WEIGHTS = ("model", "adapter")
# Holds the demonstrations, which are texts, beside the task, which reports read.
CLASSIFIER = "classifier.json"
# Tells the order of the runs, which tables keep.
GRID = "grid.json"
DIGITS = 4


def pack(folder: Path, file: Path) -> int:
    """Write the finished runs of a comparison into a file; return how many."""
    runs = sorted(path.parent for path in (folder / "runs").glob("*/result.json"))
    if not runs:
        raise SystemExit(f"{folder} holds no finished run of a comparison.")
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:xz") as tar:
        if (folder / GRID).is_file():
            _add(tar, GRID, (folder / GRID).read_bytes())
        for run in runs:
            for path in sorted(run.rglob("*")):
                name = str(path.relative_to(folder))
                inner = {*path.relative_to(run).parts}
                if path.name == CLASSIFIER:
                    whole = json.loads(path.read_text(encoding="utf-8"))
                    # What was packed by an earlier version and unpacked has no number format.
                    kept = {"task": whole["task"], "dtype": whole.get("dtype")}
                    _add(tar, name, json.dumps(kept, ensure_ascii=False).encode())
                elif path.suffix in KEPT and inner.isdisjoint(WEIGHTS):
                    _add(tar, name, path.read_bytes())
                elif path.suffix == ".parquet":
                    _add(tar, f"{name.removesuffix('.parquet')}.csv", _answers(path))
    return len(runs)


def _answers(path: Path) -> bytes:
    table = pd.read_parquet(path)
    own = [c for c in table if c in ("id", "gold", "predicted") or str(c).startswith("p_")]
    return table[own].round(DIGITS).to_csv(index=False).encode()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def unpack(file: Path, folder: Path) -> int:
    """Write packed runs into a comparison's folder; return how many."""
    found = set()
    with tarfile.open(file, "r:xz") as tar:
        for member in tar:
            content = tar.extractfile(member)
            target = folder / member.name
            # Such as runs/NAME/result.json: never outside of the folder.
            if content is None or ".." in target.parts or Path(member.name).is_absolute():
                raise ValueError(f"{file} holds {member.name}, which is no file of a run")
            if member.name != GRID:
                found.add(Path(member.name).parts[1])
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.parent.name == "predictions":
                table = pd.read_csv(
                    content,
                    dtype={"id": str, "gold": str, "predicted": str},
                    keep_default_na=False,
                    na_values={"predicted": [""]},
                )
                table.to_parquet(target.with_suffix(".parquet"), index=False)
            else:
                target.write_bytes(content.read())
    return len(found)


def main() -> None:
    """Pack or unpack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["pack", "unpack"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    given = parser.parse_args()
    if given.what == "pack":
        count = pack(given.source, given.target)
    else:
        try:
            count = unpack(given.source, given.target)
        except (EOFError, FileNotFoundError, lzma.LZMAError, tarfile.ReadError) as error:
            message = f"{given.source} is no whole file of packed runs: {error}"
            raise SystemExit(message) from error
    print(f"{count} runs: {given.target}")


if __name__ == "__main__":
    main()
