"""Answers on disk, each saved the moment it arrives: one SQLite file, one row an answer."""

import contextlib
import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from taskfit.remote.chat import Answer

# Another process may be writing its answers into the same file.
LOCK_TIMEOUT_SECONDS = 60.0


class CacheError(Exception):
    """The file cannot be read or written; `RemoteModel` turns it into a `RemoteError`."""


def cache_key(url: str, body: dict[str, Any]) -> str:
    """Return the sha256 of an endpoint's address and a request's body, model included (hex)."""
    text = json.dumps([url, body], sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class AnswerCache:
    """An open cache file, shared by threads; processes may share the file as well."""

    def __init__(self, path: Path) -> None:
        """Open a file, making it and its folder where they are missing.

        Raises:
            CacheError: If the file is not such a cache, or cannot be opened.
        """
        self.path = path
        self._lock = threading.Lock()
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            # No implicit transactions: every statement is on disk when it returns.
            self._database = sqlite3.connect(
                path, timeout=LOCK_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            with self._explained():
                self._database.execute("PRAGMA journal_mode = WAL")
                # The answer is JSON in ASCII: a text cut inside a character is no valid UTF-8.
                self._database.execute(
                    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, "
                    "answer TEXT NOT NULL, saved_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP)"
                )
        except CacheError:
            self._database.close()
            raise

    def get_many(self, keys: Iterable[str]) -> dict[str, Answer]:
        """Return those answers that are there.

        Raises:
            CacheError: If the file cannot be read.
        """
        found = {}
        with self._lock, self._explained():
            for key in keys:
                row = self._database.execute(
                    "SELECT answer FROM answers WHERE key = ?", (key,)
                ).fetchone()
                if row is not None:
                    found[key] = Answer.from_json(row[0], from_cache=True)
        return found

    def put(self, key: str, answer: Answer) -> None:
        """Save one answer; it is on disk when this returns.

        Raises:
            CacheError: If the file cannot be written.
        """
        with self._lock, self._explained():
            self._database.execute(
                "INSERT OR REPLACE INTO answers (key, answer) VALUES (?, ?)",
                (key, answer.to_json()),
            )

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise CacheError(
                f"The cache of answers {self.path} cannot be used ({error}). It must be a file "
                "that only taskfit writes, in a folder with room: name another one"
            ) from error
