"""One command at a time in a folder: a lock that is gone when its process is, however it ended."""

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from taskfit.errors import CheckpointError
from taskfit.files import explain_failed_write

FILE = ".lock"
# File systems that know no locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# Lock files that this process holds, and the thread that does.
_held: dict[Path, int] = {}


@contextlib.contextmanager
def only_one_at_a_time(place: Path, *, beside: bool = False) -> Iterator[None]:
    """Keep a second command out of a folder, or from a file, at which one is at work.

    The system's own lock on the file `.lock` decides, so that nothing is left to clean up after a
    process that was killed, or a machine that lost its power; it holds over network file systems
    too. What stands in the file is for people, and decides only where a file system has no locks.
    The same thread may enter twice: a search and the run behind it are one command.

    Args:
        place: The folder, which is made where it is missing; or what is to be written.
        beside: Whether the lock stands beside the place, as `.NAME.lock`, not in it.

    Raises:
        CheckpointError: If another command is at work, naming its process.
        WriteError: If the lock cannot be written.
    """
    folder = place.parent if beside else place
    path = folder / (f".{place.name[:60]}{FILE}" if beside else FILE)
    key, thread = Path(os.path.abspath(path)), threading.get_ident()
    if _held.get(key) == thread:
        yield
        return
    with explain_failed_write(place):
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        handle = _take(path, place)
    _held[key] = thread
    try:
        yield
    finally:
        del _held[key]
        try:
            # Removed while it is held, so that it is no other command's.
            with contextlib.suppress(OSError):
                path.unlink()
        finally:  # Ctrl-C may come in between
            os.close(handle)
        if is_new:
            with contextlib.suppress(OSError):  # a command that ended before it wrote anything
                folder.rmdir()


def process_at_work(place: Path) -> int | None:
    """Return the process of this machine that is at work in a folder; None if there is none."""
    try:
        handle = os.open(place / FILE, os.O_RDONLY)
    except OSError:
        return None
    try:
        holder = _holder(handle)
    finally:
        os.close(handle)
    here = holder.get("host") == socket.gethostname()
    return int(holder["process"]) if here and _is_alive(holder) else None


def _take(path: Path, place: Path) -> int:
    """Lock a file, and write into it who holds it; return its descriptor.

    Raises:
        CheckpointError: If another process holds it.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(handle):
                raise _busy(_holder(handle), path, place)
            if _is_there(handle, path):
                os.ftruncate(handle, 0)
                os.write(handle, json.dumps(_myself()).encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        # Its holder removed it between the two lines; the one that is there now counts.
        os.close(handle)


def _lock(handle: int) -> bool:
    """Return whether the lock of an open file is ours now."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        return not _is_alive(_holder(handle))
    return True


def _is_there(handle: int, path: Path) -> bool:
    """Return whether an open file is still the one of its name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _myself() -> dict[str, Any]:
    process = psutil.Process()
    return {
        "process": process.pid,
        "host": socket.gethostname(),
        # A number of a process is given anew; with the time of its start it is one of a kind.
        "started": process.create_time(),
    }


def _holder(handle: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(handle, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_alive(holder: dict[str, Any]) -> bool:
    """Return whether a process that a lock names still runs; of another machine it is believed."""
    if not holder:
        return False
    if holder.get("host") != socket.gethostname():
        return True
    try:
        started = psutil.Process(int(holder["process"])).create_time()
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False
    return abs(started - float(holder.get("started", 0))) < 1.0


def _busy(holder: dict[str, Any], path: Path, place: Path) -> CheckpointError:
    who = ""
    if holder:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(holder.get("started", 0))))
        who = f": process {holder.get('process')} on {holder.get('host')}, running since {since}"
    elsewhere = (
        f" If it is gone for good, remove {path}."
        if holder.get("host", "") not in ("", socket.gethostname())
        else ""
    )
    return CheckpointError(
        f"Another command is at work in {place}{who}. Wait for it, or stop it first; nothing that "
        f"it has finished is lost.{elsewhere}"
    )
