"""Predictions under way, kept beside their target, so that a killed command goes on where it was.

The folder `OUT.partial` holds finished chunks as Parquet files and a description of what they were
made from. The same command takes them over; another one starts anew.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from taskfit.errors import DataError
from taskfit.files import file_atomic, write_json_atomic
from taskfit.runs.classifier import ADAPTER, ARRAYS, FILE, MODEL
from taskfit.runs.records import QUESTIONS_FILE, SETTINGS_FILE, TUNED_FILE

MADE_FROM = "made_from.json"
# Larger files, such as a whole model's weights, are told apart by size and time.
HASHED_BYTES = 256 * 2**20


class PartialPredictions:
    """The finished chunks of a prediction.

    Attributes:
        folder: `OUT.partial`.
        started_anew: What differed from the chunks of another command that were thrown away.
    """

    def __init__(self, target: Path, made_from: Mapping[str, str]) -> None:
        """Open the folder beside a target, with the chunks that the same command left.

        Args:
            target: The file of predictions.
            made_from: What the predictions depend on, by name.

        Raises:
            DataError: If there is something else of this name.
        """
        self.folder = target.with_name(f"{target.name}.partial")
        self.started_anew: list[str] = []
        marker = self.folder / MADE_FROM
        if self.folder.exists() and not marker.is_file() and not _is_empty(self.folder):
            raise DataError(
                f"{self.folder} is where finished chunks are kept, but it holds something else. "
                "Rename it, or give another file with --out."
            )
        if marker.is_file():
            before = _read_marker(marker)
            names = before.keys() | made_from.keys()
            self.started_anew = sorted(n for n in names if before.get(n) != made_from.get(n))
            if self.started_anew:
                shutil.rmtree(self.folder)
        write_json_atomic(marker, made_from)

    def path(self, index: int) -> Path:
        """Return the file of a chunk."""
        return self.folder / f"part-{index:06d}.parquet"

    def has(self, index: int) -> bool:
        """Return whether a chunk is finished."""
        return self.path(index).is_file()

    def write(self, index: int, table: pd.DataFrame) -> None:
        """Keep a finished chunk."""
        with file_atomic(self.path(index)) as scratch:
            # A chunk without any answer would otherwise have a column of no type.
            chunk = pa.Table.from_pandas(table, schema=_schema(table), preserve_index=False)
            pq.write_table(chunk, scratch)

    def count(self, column: str, *, num_chunks: int) -> Counter[str]:
        """Return how often each value of a column occurs in all chunks."""
        counts: Counter[str] = Counter()
        for index in range(num_chunks):
            values = pq.read_table(self.path(index), columns=[column]).column(column)
            counts.update(str(value) for value in values.to_pylist() if value is not None)
        return counts

    def join(self, target: Path, *, num_chunks: int) -> None:
        """Write all chunks to the target, whole or not at all, one at a time; remove the folder."""
        with file_atomic(target) as scratch:
            paths = [self.path(index) for index in range(num_chunks)]
            if target.suffix.lower() == ".parquet":
                with pq.ParquetWriter(scratch, pq.read_schema(paths[0])) as writer:
                    for path in paths:
                        writer.write_table(pq.read_table(path))
            else:
                _join_text(paths, scratch, kind=target.suffix.lower())
        shutil.rmtree(self.folder)


def describe_run(folder: Path) -> str:
    """Return a hash of all that a finished run predicts with."""
    files = [folder / name for name in (FILE, QUESTIONS_FILE, TUNED_FILE, ARRAYS, SETTINGS_FILE)]
    for name in (ADAPTER, MODEL):
        files += sorted(path for path in (folder / name).rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        if not path.is_file():
            continue
        found = path.stat()
        digest.update(f"{path.relative_to(folder)} {found.st_size}\n".encode())
        if found.st_size <= HASHED_BYTES:
            digest.update(path.read_bytes())
        else:
            digest.update(str(found.st_mtime_ns).encode())
    return digest.hexdigest()[:16]


def _read_marker(path: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return found


def _is_empty(folder: Path) -> bool:
    # What begins with a dot is a file that was being written.
    return folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir())


def _schema(table: pd.DataFrame) -> pa.Schema:
    kinds = {"f": pa.float64(), "i": pa.int64()}
    return pa.schema(
        [(str(name), kinds.get(table[name].dtype.kind, pa.string())) for name in table.columns]
    )


def _join_text(paths: Sequence[Path], target: Path, *, kind: str) -> None:
    with target.open("w", encoding="utf-8", newline="") as file:
        for place, path in enumerate(paths):
            table = pd.read_parquet(path)
            if kind == ".jsonl":
                table.to_json(
                    file, orient="records", lines=True, force_ascii=False, double_precision=15
                )
            else:
                separator = "\t" if kind == ".tsv" else ","
                table.to_csv(file, index=False, sep=separator, header=place == 0)
