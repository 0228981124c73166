"""Fetch archives from the Python package index, pinned by their hash, into a cache folder."""

import hashlib
import os
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from taskfit.errors import DataError
from taskfit.files import explain_failed_write


@dataclass(frozen=True, slots=True)
class PinnedPackage:
    """A file of a Python package.

    Attributes:
        name: Package name.
        version: Exact version.
        filename: Name of the wheel or source archive.
        sha256: Hash of that file.
    """

    name: str
    version: str
    filename: str
    sha256: str


def cache_folder() -> Path:
    """Return the folder for downloads and converted models: TASKFIT_CACHE or the user's cache."""
    if "TASKFIT_CACHE" in os.environ:
        return Path(os.environ["TASKFIT_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "taskfit"


def writing_to_cache(path: Path) -> AbstractContextManager[None]:
    """Return what says of an error of writing into the cache how to put it elsewhere.

    Args:
        path: The file or folder of the cache.

    Raises:
        WriteError: From within it.
    """
    return explain_failed_write(
        path,
        safe=(
            "It is a cache, which TASKFIT_CACHE=FOLDER puts elsewhere, and nothing is lost: "
            "{remedy}, then give the command again, or `taskfit fit --resume` and the run's folder."
        ),
    )


def fetch_package(package: PinnedPackage) -> Path:
    """Return the archive's path in the cache, downloading it with pip on first use.

    Its dependencies are not installed, and nothing of it is run by taskfit.

    Raises:
        DataError: If it cannot be downloaded, or its hash is not the pinned one.
    """
    target = cache_folder() / "packages" / package.filename
    if target.is_file():
        _check_hash(target, package)
        return target
    with (
        writing_to_cache(target),
        scratch_folder(target.parent, prefix=".download-") as scratch,
    ):
        command = [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"),
            *("--disable-pip-version-check", "--dest", scratch),
            f"{package.name}=={package.version}",
        ]
        if not package.filename.endswith(".whl"):
            command[4:4] = ["--no-binary", ":all:"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        downloaded = Path(scratch) / package.filename
        if result.returncode != 0 or not downloaded.is_file():
            lines = [line for line in result.stderr.splitlines() if line.strip()]
            raise DataError(
                f"{package.name} {package.version} is not in the cache ({target.parent}) and pip "
                f"could not download it: {lines[-1] if lines else 'it gave no reason'} Where there "
                f"is no network, put the file {package.filename} into that folder."
            )
        _check_hash(downloaded, package)
        os.replace(downloaded, target)
    return target


def scratch_folder(folder: Path, *, prefix: str) -> tempfile.TemporaryDirectory[str]:
    """Return a new folder in a folder of the cache, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=folder, prefix=prefix)


def move_into_cache(ready: Path, folder: Path, *, sign: str) -> None:
    """Give a folder that was filled beside it its name in the cache.

    Args:
        ready: The folder as it is to be.
        folder: Where it is to be.
        sign: A file that only a whole one has.
    """
    try:
        os.replace(ready, folder)
    except OSError:
        # Another process was faster; its folder is as good as ours.
        if not (folder / sign).is_file():
            raise


def _check_hash(path: Path, package: PinnedPackage) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise DataError(
            f"{path} is not the pinned file of {package.name} {package.version}: its sha256 is "
            f"{found}, expected {package.sha256}. Delete it; if a fresh download is the same, "
            "do not use it."
        )
