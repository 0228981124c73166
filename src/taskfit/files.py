"""Write files so that a reader never sees half of one, and say in words why one could not be."""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from taskfit.errors import SettingsError, TaskfitError, WriteError

# Why the system does not write, and what helps; {name} is the path that it stumbled over.
REASONS = {
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("your quota of the disk is used up", "make room"),
    errno.EFBIG: (
        "the file would be larger than is allowed here (`ulimit -f`, or the file system)",
        "raise the limit, or write to another place",
    ),
    errno.EROFS: ("the file system is read-only", "give another place"),
    errno.EACCES: ("there is no permission to write {name}", "get it, or give another place"),
    errno.EPERM: ("there is no permission to write {name}", "get it, or give another place"),
    errno.ENOTDIR: (
        "{name} needs a folder where there is a file",
        "rename the file, or give another place",
    ),
    errno.EEXIST: (
        "{name} is a file, where a folder is needed",
        "rename the file, or give another place",
    ),
    errno.EISDIR: (
        "{name} is a folder, where a file is needed",
        "rename it, or give another place",
    ),
    errno.ENAMETOOLONG: ("the name is longer than the file system allows", "give a shorter one"),
    errno.ENOENT: ("{name} cannot be made there", "give another place"),
    errno.EIO: ("the disk reported an error", "look after the disk, or give another place"),
    errno.ESTALE: ("the file system went away meanwhile", "mount it again"),
}
# What libraries say that have no error number: SQLite, and PyTorch, which keeps the reason back.
PHRASES = {
    "disk is full": errno.ENOSPC,
    "No space left": errno.ENOSPC,
    "readonly database": errno.EROFS,
    "unable to open database file": errno.EACCES,
    "disk I/O error": errno.EIO,
    "PytorchStreamWriter failed writing": errno.ENOSPC,
}
# Outside of a writing these are as often a mistake of ours.
AMBIGUOUS = (errno.ENOENT, errno.EEXIST)


def failed_write(
    error: BaseException, target: Path | str | None = None, *, safe: str | None = None
) -> WriteError | None:
    """Return what to tell of an error of writing, whichever library raised it; None: it is another.

    Args:
        error: An `OSError`, or what SafeTensors, PyArrow, SQLite or PyTorch make of one.
        target: What was to be written; None: the path that the error names.
        safe: What is safe, and how to go on; None: said of runs and other commands alike.
    """
    number = None if isinstance(error, TaskfitError) else _number(error)
    if number is None or (target is None and number in AMBIGUOUS):
        return None
    name = getattr(error, "filename", None)
    target = target or name or "standard output or a file"
    reason, remedy = REASONS[number]
    reason = reason.format(name=name or target)
    head = f"{target} could not be written: {reason}."
    if number == errno.ENOSPC:
        head = f"The disk is full: {target} could not be written."
    safe = safe or (
        "What was saved before is intact; {remedy}, then continue: a fit with "
        "`taskfit fit --resume` and the run's folder, other commands by giving them again."
    )
    return WriteError(f"{head} {safe.format(remedy=remedy)}")


def _number(error: BaseException) -> int | None:
    """Return the system's number of an error of writing."""
    number = getattr(error, "errno", None)
    if not isinstance(number, int):
        text = str(error)
        # As Rust and PyArrow write it.
        told = re.search(r"\(os error (\d+)\)|\[Errno (\d+)\]", text)
        if told:
            number = int(told[1] or told[2])
        else:
            number = next((code for phrase, code in PHRASES.items() if phrase in text), None)
    return number if number in REASONS else None


@contextlib.contextmanager
def explain_failed_write(target: Path, *, safe: str | None = None) -> Iterator[None]:
    """Turn a full disk, a missing permission and their like into one message.

    Args:
        target: What is written.
        safe: What is safe, and how to go on; see `failed_write`.

    Raises:
        WriteError: Where the system does not write; other errors pass through.
    """
    try:
        yield
    except Exception as error:
        # The file within is one that the user never named.
        cause = error.__cause__ if isinstance(error, WriteError) else error
        told = None if cause is None else failed_write(cause, target, safe=safe)
        if told is None or _is_read(error, target):
            raise
        raise told from cause


def _is_read(error: Exception, target: Path) -> bool:
    """Tell a file that was to be read and is not there from one that cannot be made."""
    name = getattr(error, "filename", None)
    if _number(error) != errno.ENOENT or not isinstance(name, str):
        return False
    return Path(name) not in (target, *target.parents) and Path(name).parent != target.parent


@contextlib.contextmanager
def file_atomic(path: Path) -> Iterator[Path]:
    """Lend a temporary path beside a file; what was written there takes its name at the end.

    Raises:
        WriteError: If the system does not write; see `failed_write`.
    """
    with explain_failed_write(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        # The ending stays, since some writers choose the format by it.
        scratch = _beside(path, path.suffix)
        # Who may read it is for the user's umask to say; tempfile's files are for their owner.
        os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = scratch.stat().st_mode & 0o666
        try:
            yield scratch
            scratch.chmod(mode)  # some writers put a file of their own in its place
            with scratch.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)


def _beside(path: Path, rest: str = "") -> Path:
    """Return a new name beside a path; it stays short where the name is as long as may be."""
    return path.with_name(f".{path.stem[:40]}-{secrets.token_hex(4)}{rest}")


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

    Raises:
        WriteError: If the system does not write; see `failed_write`.
    """
    with explain_failed_write(path):
        if path.exists() and not path.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch, old = _beside(path), _beside(path, "-old")
        scratch.mkdir()
        mode = scratch.stat().st_mode & 0o666  # what the umask leaves
        try:
            yield scratch
            for file in scratch.rglob("*"):
                if file.is_file():
                    file.chmod(mode)  # some writers leave files for their owner alone
                    with file.open("rb") as handle:
                        os.fsync(handle.fileno())
            if path.exists():
                os.replace(path, old)
            os.replace(scratch, path)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def new_folder(home: Path, stem: str) -> Path:
    """Make and return the first of the folders STEM, STEM-2, STEM-3, ... that is not there yet."""
    number = 1
    while True:
        folder = home / (stem if number == 1 else f"{stem}-{number}")
        try:
            # Made at once, so that two commands at the same time have two folders.
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
            continue
        return folder


def refuse_over_input(
    out: Path, inputs: Iterable[str | Path | None], *, overwrite: bool | None
) -> None:
    """Check before any work that a command does not write over what it reads.

    Args:
        out: File or folder that will be written.
        inputs: Files and folders that are read; names of what is no file, such as hub ids, and None
            are passed over.
        overwrite: Whether the user has asked for it; None: the command never does it.

    Raises:
        SettingsError: If it would, also by another name of the file (a link, another path).
    """
    if overwrite or not out.exists():
        return
    for source in inputs:
        path = None if source is None else Path(source).expanduser()
        if path is None or not path.exists():
            continue
        same = "" if str(out) == str(source) else f" ({out} is the same file)"
        if not os.path.samefile(out, path):
            if not path.resolve().is_relative_to(out.resolve()):
                continue
            same = f" (it lies in {out}, which is replaced)"
        other = "" if overwrite is None else ", or --overwrite to write over it"
        raise SettingsError(
            f"{source} is read and would be written over{same}: what it holds would be gone. Give "
            f"another place to write with -o{other}."
        )


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Append one record as a line, and flush it."""
    with explain_failed_write(path), path.open("a", encoding="utf-8") as file:
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
