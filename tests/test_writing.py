"""Files whole or not at all, as the umask says, and one message where the system does not write."""

import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from taskfit.errors import CheckpointError, SettingsError, WriteError
from taskfit.files import (
    append_jsonl,
    explain_failed_write,
    failed_write,
    file_atomic,
    folder_atomic,
    refuse_over_input,
    write_text_atomic,
)


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_and_folders_are_for_whom_the_umask_lets_read_them(
    umask: int, tmp_path: Path
) -> None:
    write_text_atomic(tmp_path / "a.txt", "a")
    with folder_atomic(tmp_path / "run") as scratch:
        save_file({"x": np.zeros(3)}, scratch / "x.safetensors")
        (scratch / "private").touch(0o600)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o777 & ~umask
    for path in (tmp_path / "a.txt", *(tmp_path / "run").iterdir()):
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path


ERRORS = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError(errno.EROFS, "Read-only file system"),
    OSError(errno.EFBIG, "File too large"),
    PermissionError(errno.EACCES, "Permission denied", "x"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    SafetensorError("Error while serializing: I/O error: Permission denied (os error 13)"),
    pa.ArrowInvalid("[Errno 28] Error writing bytes to file"),
    sqlite3.OperationalError("database or disk is full"),
    sqlite3.OperationalError("attempt to write a readonly database"),
    sqlite3.OperationalError("unable to open database file"),
    RuntimeError("[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing"),
]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_whichever_library_could_not_write_the_message_is_one(
    error: Exception, tmp_path: Path
) -> None:
    target = tmp_path / "run" / "weights"
    with (
        pytest.raises(WriteError) as found,
        folder_atomic(target) as scratch,
        file_atomic(scratch / "inner"),
    ):
        raise error
    message = str(found.value)
    assert f"{target} could not be written" in message  # not the scratch file within
    assert "What was saved before is intact" in message
    assert "--resume" in message
    assert not any(target.parent.iterdir())  # no scratch is left behind


def test_other_errors_and_files_that_are_missing_to_be_read_stay_what_they_are(
    tmp_path: Path,
) -> None:
    for error in (RuntimeError("shape mismatch"), CheckpointError("disk is full, said a table")):
        assert failed_write(error, tmp_path) is None
    with pytest.raises(FileNotFoundError), explain_failed_write(tmp_path / "out" / "a.csv"):
        Path("/nowhere/input.csv").read_text()
    assert failed_write(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None


def test_what_stands_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file is a file, where a folder"):
        write_text_atomic(tmp_path / "file" / "a.txt", "")
    with pytest.raises(WriteError, match="is a folder, where a file is needed"):
        write_text_atomic(tmp_path, "")
    with pytest.raises(WriteError, match="file is a file"), folder_atomic(tmp_path / "file"):
        pass
    with pytest.raises(WriteError, match="the name is longer"):
        write_text_atomic(tmp_path / ("x" * 300), "")
    with pytest.raises(WriteError, match="cannot be made there"):
        write_text_atomic(Path("/proc/taskfit/a.txt"), "")
    with pytest.raises(WriteError, match="The disk is full: /dev/full"):
        append_jsonl(Path("/dev/full"), {})


def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / f"{'ä' * 125}.csv", "a")
    (path,) = tmp_path.iterdir()
    assert path.read_text() == "a"


def test_an_input_is_not_written_over_by_whatever_name_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "a" / "in.csv"
    source.parent.mkdir()
    source.write_text("text\n")
    Path("link.csv").symlink_to(source)
    os.link(source, "hard.csv")
    for out in (source, Path("a/../a/in.csv"), Path("link.csv"), Path("hard.csv"), Path("a")):
        with pytest.raises(SettingsError, match="would be written over"):
            refuse_over_input(out, [None, "owner/name", str(source)], overwrite=False)
        refuse_over_input(out, [source], overwrite=True)
    other = tmp_path / "out.csv"
    refuse_over_input(other, [source], overwrite=False)
    other.touch()
    refuse_over_input(other, [source, "owner/name"], overwrite=False)
