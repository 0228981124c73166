"""Digests of files, kept in the cache so that large files are read for them only once."""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from taskfit.data.fetch import cache_folder
from taskfit.errors import CheckpointError
from taskfit.files import write_json_atomic

# Smaller files are hashed faster than looked up.
CACHED_BYTES = 2**20
# A file that changed just now could change again without another time: it is not kept.
SETTLED_SECONDS = 2.0


def kept_digests(
    path: Path, compute: Callable[[Path], dict[str, str]], *, kind: str
) -> dict[str, str]:
    """Return what is computed of a file; of a large one that did not change since, from a cache.

    Args:
        path: The file.
        compute: Reads it.
        kind: Of what is computed; several may be kept of a file.
    """
    found = path.stat()
    if found.st_size < CACHED_BYTES:
        return compute(path)
    # The time of the last change of the file's entry cannot be set by hand.
    state = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    place = str(path.resolve())
    key = short_digest(f"{kind} {place}".encode())
    cache = cache_folder() / "fingerprints" / f"{key}.json"
    with suppress(OSError, ValueError, KeyError):
        kept = json.loads(cache.read_text(encoding="utf-8"))
        if kept["file"] == [place, *state]:
            return dict(kept["digests"])
    began = time.time()
    digests = compute(path)
    if began - max(found.st_mtime, found.st_ctime) > SETTLED_SECONDS:
        with suppress(OSError, CheckpointError):
            write_json_atomic(cache, {"file": [place, *state], "digests": digests})
    return digests


def short_digest(content: bytes) -> str:
    """Return a digest of 24 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:24]
