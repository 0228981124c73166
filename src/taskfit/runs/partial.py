"""Predictions under way, kept beside their target, so that a killed command goes on where it was.

The folder `OUT.partial` holds finished chunks as Parquet files and a description of what they were
made from. The same command takes them over; another one starts anew.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from taskfit.errors import DataError
from taskfit.files import explain_failed_write, file_atomic, write_json_atomic
from taskfit.methods.method import Advance
from taskfit.runs.bases import BASES_FILE
from taskfit.runs.classifier import ARRAYS, FILE
from taskfit.runs.file_names import SETTINGS_FILE
from taskfit.runs.records import QUESTIONS_FILE, TUNED_FILE, library_versions
from taskfit.runs.saved import ADAPTER, MODEL
from taskfit.screen import Screen

MADE_FROM = "made_from.json"
# Larger files, such as a whole model's weights, are known by size and time.
HASHED_BYTES = 256 * 2**20


class PartialPredictions:
    """The finished chunks of a prediction."""

    def __init__(
        self,
        target: Path,
        made_from: Mapping[str, str],
        *,
        num_rows: int,
        chunk: int,
        screen: Screen,
    ) -> None:
        """Open the folder beside a target, with the chunks that the same command left.

        Args:
            target: The file of predictions.
            made_from: What the predictions depend on, by name.
            num_rows: Rows to predict.
            chunk: Rows of a chunk.
            screen: Where progress is shown.

        Raises:
            DataError: If there is something else of this name.
        """
        self._target = target
        self._folder = folder = target.with_name(f"{target.name}.partial")
        self._num_rows, self._chunk, self._screen = num_rows, chunk, screen
        starts = range(0, num_rows, chunk)
        self._paths = [folder / f"part-{index:06d}.parquet" for index in range(len(starts))]
        marker = folder / MADE_FROM
        if folder.exists() and not marker.is_file() and not _is_empty(folder):
            raise DataError(
                f"{folder} is where finished chunks are kept, but it holds something else. "
                "Rename it, or give another file with --out."
            )
        made_from = {**made_from, "chunks": str(chunk), "versions": str(library_versions())}
        if marker.is_file():
            before = _read_marker(marker)
            names = before.keys() | made_from.keys()
            changed = sorted(n for n in names if before.get(n) != made_from.get(n))
            if changed:
                shutil.rmtree(folder)
                screen.note(
                    f"{folder} held parts made from something else ({', '.join(changed)}); "
                    "started anew"
                )
        with explain_failed_write(target):
            write_json_atomic(marker, made_from)

    def fill(self, label: str, answer: Callable[[int, slice, Advance], pd.DataFrame]) -> None:
        """Make the chunks that are missing.

        Args:
            label: What progress shows.
            answer: Returns the table of a chunk, given its place among them, its rows, and what
                counts those just finished.
        """
        done = sum(path.is_file() for path in self._paths)
        if done:
            self._screen.note(
                f"going on from {self._folder}: {done} of {len(self._paths)} parts are finished"
            )
        with self._screen.progress(label, self._num_rows) as advance:
            for index, path in enumerate(self._paths):
                start = index * self._chunk
                end = min(start + self._chunk, self._num_rows)
                if path.is_file():
                    advance(end - start)
                    continue
                table = answer(index, slice(start, end), advance)
                with explain_failed_write(self._target):
                    write_part(path, table)

    @property
    def num_rows(self) -> int:
        """Return the rows to predict."""
        return self._num_rows

    @property
    def num_missing_rows(self) -> int:
        """Return those of them that are not finished."""
        starts = [index * self._chunk for index in self.missing()]
        return sum(min(self._chunk, self._num_rows - start) for start in starts)

    def missing(self) -> dict[int, Path]:
        """Return the chunks that are not there yet, by their place, and where they belong."""
        return {i: path for i, path in enumerate(self._paths) if not path.is_file()}

    def values(self, column: str) -> Iterator[Any]:
        """Yield the values of a column in all chunks; None where there is none."""
        for path in self._paths:
            yield from pq.read_table(path, columns=[column]).column(column).to_pylist()

    def table(self, columns: Sequence[str]) -> pd.DataFrame:
        """Return some columns of all chunks, in the order of their rows."""
        parts = (pq.read_table(path, columns=list(columns)) for path in self._paths)
        found: pd.DataFrame = pa.concat_tables(parts).to_pandas()
        return found[list(columns)]

    def count(self, column: str) -> Counter[str]:
        """Return how often each value of a column occurs in all chunks."""
        return Counter(str(value) for value in self.values(column) if value is not None)

    def join(self, *, without: Sequence[str] = ()) -> None:
        """Write all chunks to the target, whole or not at all, one at a time; remove the folder.

        Args:
            without: Columns that are left out.
        """
        kind = self._target.suffix.lower()
        schema = pq.read_schema(self._paths[0])
        names = [name for name in schema.names if name not in without]
        with file_atomic(self._target) as scratch:
            if kind == ".parquet":
                kept = pa.schema([schema.field(name) for name in names])
                with pq.ParquetWriter(scratch, kept) as writer:
                    for path in self._paths:
                        writer.write_table(pq.read_table(path, columns=names))
            else:
                _join_text(self._paths, scratch, names, kind=kind)
        self.discard()

    def discard(self) -> None:
        """Remove the folder with all finished chunks."""
        # Their description goes last, so that what a kill leaves is known as ours.
        for path in self._paths:
            path.unlink()
        shutil.rmtree(self._folder)


def write_part(path: Path, table: pd.DataFrame) -> None:
    """Write a chunk, whole or not at all.

    Raises:
        WriteError: If the system does not write.
    """
    with file_atomic(path) as scratch:
        # A chunk without any answer would otherwise have a column of no type.
        found = pa.Table.from_pandas(table, _schema(table), preserve_index=False)
        pq.write_table(found, scratch)


def describe_run(folder: Path) -> str:
    """Return a hash of all that a finished run predicts with."""
    names = (FILE, QUESTIONS_FILE, TUNED_FILE, ARRAYS, SETTINGS_FILE, BASES_FILE)
    files = [folder / name for name in names]
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
    kinds = {"f": pa.float64(), "i": pa.int64(), "b": pa.bool_()}
    return pa.schema(
        [(str(name), kinds.get(table[name].dtype.kind, pa.string())) for name in table.columns]
    )


def _join_text(paths: Sequence[Path], target: Path, names: list[str], *, kind: str) -> None:
    with target.open("w", encoding="utf-8", newline="") as file:
        for place, path in enumerate(paths):
            # A missing whole number must not make fractions of the others.
            table = pq.read_table(path, columns=names).to_pandas(integer_object_nulls=True)
            write_text_table(table, file, kind=kind, header=place == 0)


def write_text_table(table: pd.DataFrame, file: IO[str], *, kind: str, header: bool = True) -> None:
    """Write predictions as text.

    Args:
        table: The rows.
        file: Where to.
        kind: .jsonl, .tsv, or any other for CSV.
        header: Whether the names of the columns stand above, but for JSONL.
    """
    if kind == ".jsonl":
        table.to_json(file, orient="records", lines=True, force_ascii=False, double_precision=15)
    else:
        separator = "\t" if kind == ".tsv" else ","
        table.to_csv(file, index=False, sep=separator, header=header)


def write_table(table: pd.DataFrame, target: Path) -> None:
    """Write a table, whole or not at all, in the format of the file's name."""
    kind = target.suffix.lower()
    with file_atomic(target) as scratch:
        if kind == ".parquet":
            table.to_parquet(scratch, index=False)
            return
        with scratch.open("w", encoding="utf-8", newline="") as file:
            write_text_table(table, file, kind=kind)
