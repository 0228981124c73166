"""The folder of a run: opened once, resumed only with the same settings and data."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from taskfit.errors import CheckpointError
from taskfit.files import write_json_atomic
from taskfit.lock import only_one_at_a_time
from taskfit.runs.file_names import DATA_FILE, RESULT_FILE, SETTINGS_FILE
from taskfit.runs.settle import as_settled
from taskfit.settings import RunSettings
from taskfit.settings_file import dump_settings, load_run_settings, settings_differences
from taskfit.training.distributed import check_same, on_main


def run_lock(folder: Path, *, resume: bool) -> AbstractContextManager[None]:
    """Return the lock of a run's folder, which one command holds at a time.

    Args:
        folder: The run's folder.
        resume: Whether the run goes on; then a folder that is not there stays so.
    """
    return nullcontext() if resume and not folder.is_dir() else only_one_at_a_time(folder)


def open_folder(settings: RunSettings, folder: Path, *, resume: bool) -> None:
    """Write the settings into a new folder, or check them against those of the run to resume.

    Raises:
        CheckpointError: If the folder holds another run, or the settings differ.
    """
    on_main(lambda: _open_folder(settings, folder, resume=resume))


def _open_folder(settings: RunSettings, folder: Path, *, resume: bool) -> None:
    path = folder / SETTINGS_FILE
    if resume:
        if not path.is_file():
            raise CheckpointError(
                f"{folder} holds no run to resume: no {SETTINGS_FILE} in it. Start one with "
                f"`taskfit fit --out {folder}`."
            )
        if (folder / RESULT_FILE).is_file():
            raise CheckpointError(
                f"The run in {folder} is finished; its result is in {RESULT_FILE}."
            )
        found = load_run_settings(path)
        changed = settings_differences(found, as_settled(settings, found))
        if changed:
            raise CheckpointError(
                f"The run in {folder} was started with other settings: {'; '.join(changed)}. "
                "Resume it without these, or start a new run in another folder."
            )
        return
    # A folder in which a run failed before its first checkpoint may be used again.
    if (folder / RESULT_FILE).is_file() or any((folder / "checkpoints").glob("step-*")):
        raise CheckpointError(
            f"{folder} holds a run already. Continue it with `taskfit fit --resume {folder}`, or "
            "give another folder with --out."
        )
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give a folder with --out.")
    folder.mkdir(parents=True, exist_ok=True)
    dump_settings(settings, path)


def check_fingerprint(folder: Path, fingerprint: Mapping[str, str], *, resume: bool) -> None:
    """Record which data the run sees, or check that a resumed one sees the same.

    Args:
        folder: The run's folder.
        fingerprint: Hash of each set, by name.
        resume: Whether the run goes on.

    Raises:
        CheckpointError: Naming the sets that changed.
        DataError: If another process of the run sees other data.
    """
    check_same("data", fingerprint)
    on_main(lambda: _check_fingerprint(folder, fingerprint, resume=resume))


def _check_fingerprint(folder: Path, fingerprint: Mapping[str, str], *, resume: bool) -> None:
    path = folder / DATA_FILE
    if resume and path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        names = before.keys() | fingerprint.keys()
        changed = sorted(name for name in names if before.get(name) != fingerprint.get(name))
        if changed:
            raise CheckpointError(
                f"The data changed since the run in {folder} was started: {', '.join(changed)}. "
                "Put the files back as they were, or start a new run in another folder."
            )
    write_json_atomic(path, fingerprint)
