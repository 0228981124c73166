"""Put an exported folder on the hub, or show what would go there."""

import re
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import OfflineModeIsEnabled

from taskfit.errors import CheckpointError, SettingsError


@dataclass(frozen=True, slots=True)
class Upload:
    """What goes to the hub.

    Attributes:
        repository: OWNER/NAME.
        private: Whether only the owner sees it.
        files: Path in the repository and size (bytes), in order.
    """

    repository: str
    private: bool
    files: tuple[tuple[str, int], ...]

    @property
    def num_bytes(self) -> int:
        """Return the size of everything (bytes)."""
        return sum(size for _, size in self.files)


def plan_upload(folder: Path, repository: str, *, private: bool) -> Upload:
    """List what goes to the hub; asks no network.

    Raises:
        SettingsError: If the repository's name cannot be one.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository):
        raise SettingsError(
            f"--push {repository}: write it as OWNER/NAME, of letters, digits, '-', '_' and '.'."
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return Upload(
        repository,
        private,
        tuple((path.relative_to(folder).as_posix(), path.stat().st_size) for path in files),
    )


def push(folder: Path, upload: Upload) -> str:
    """Upload a folder, in one commit; return its address.

    A repository that does not exist is made; of one that does, files of the same name are
    replaced.

    Raises:
        CheckpointError: If there is no token, no network, or the hub refuses. The folder stays.
    """
    again = f"The export stays in {folder}; repeat with `-o {folder} --push {upload.repository}`."
    if get_token() is None:
        raise CheckpointError(
            "There is no token for the hub: log in with `hf auth login`, or set HF_TOKEN. " + again
        )
    api = HfApi()
    try:
        api.create_repo(upload.repository, private=upload.private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=upload.repository,
            folder_path=folder,
            commit_message="Export of a taskfit run",
        )
    except (httpx2.HTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"The hub could not take it: {lines[0]} {again}") from error
    return str(commit.commit_url)
