"""Write files so that a reader never sees half of one."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from taskfit.errors import CheckpointError


@contextlib.contextmanager
def explain_full_disk(target: Path) -> Iterator[None]:
    """Turn a full disk into a message that says what is still there.

    Raises:
        CheckpointError: On `ENOSPC` or an exceeded quota; other errors pass through.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        if not full:
            raise
        raise CheckpointError(
            f"The disk is full: {target} could not be written. What was saved before is intact; "
            "make room, then continue: a fit with `taskfit fit --resume` and the run's folder, "
            "other commands by giving them again."
        ) from error


@contextlib.contextmanager
def file_atomic(path: Path) -> Iterator[Path]:
    """Lend a temporary path beside a file; what was written there takes its name at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with explain_full_disk(path):
        # The ending stays, since some writers choose the format by it.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=f"-{path.name}")
        os.close(handle)
        scratch = Path(name)
        try:
            yield scratch
            with scratch.open("rb") as file:
                os.fsync(file.fileno())
            scratch.chmod(0o644)
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it."""
    with file_atomic(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json_atomic(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file under a temporary name, then rename it."""
    write_text_atomic(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def folder_atomic(path: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name; it appears under its own name whole or not at all.

    A folder of that name is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        with explain_full_disk(path):
            yield scratch
            for file in scratch.rglob("*"):
                if file.is_file():
                    with file.open("rb") as handle:
                        os.fsync(handle.fileno())
            scratch.chmod(0o755)
            if path.exists():
                old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-old-"))
                os.replace(path, old / path.name)
                os.replace(scratch, path)
                shutil.rmtree(old)
            else:
                os.replace(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Append one record as a line, and flush it."""
    with explain_full_disk(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        file.flush()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read records, leaving out a last line that was cut off when the writer was killed."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    records = [json.loads(line) for line in lines[:-1] if line.strip()]
    with contextlib.suppress(json.JSONDecodeError):
        if lines[-1].strip():
            records.append(json.loads(lines[-1]))
    return records
