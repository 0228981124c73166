"""Sentence embeddings of texts, each text computed once and kept on disk.

Legend: N texts, D width of the encoder.
"""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from taskfit.curate.items import digest
from taskfit.data.fetch import cache_folder
from taskfit.models.encoder import embed_texts, load_encoder
from taskfit.models.fingerprint import fingerprint
from taskfit.models.load import resolve_device, resolve_dtype

Vectors = NDArray[np.float32]
# Texts between two savings: what a killed run loses.
CHUNK = 512


class Embedder:
    """Embeds texts with one encoder."""

    def __init__(self, name: str) -> None:
        """Load an encoder.

        Args:
            name: Packaged encoder, folder or hub id.

        Raises:
            ModelError: If it cannot be had.
        """
        device = resolve_device("auto")
        dtype = resolve_dtype("auto", device)
        self._encoder = load_encoder(name, device=device, dtype=dtype, num_labels=None)
        self.width = int(self._encoder.model.config.hidden_size)
        model, beside = self._encoder.model, f" {self._encoder.max_length}{self._encoder.reading}"
        self._path = cache_folder() / "embeddings" / f"{fingerprint(model, beside=beside)}.sqlite"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._open()) as database, database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB NOT NULL)"
            )

    def embed(self, texts: Sequence[str], *, advance: Callable[[int], None]) -> Vectors:
        """Return a vector of length 1 for each text, in float32, (N, D).

        Texts run in the order of their hashes, so that what a batch holds, and with it the last
        bits of its vectors, does not depend on the order of files.

        Args:
            texts: Each of them is embedded once, however often it stands there.
            advance: Called with the number of texts just finished.
        """
        order = [digest(text) for text in texts]
        by_key = dict(zip(order, texts, strict=True))
        found = self._load(list(by_key))
        missing = sorted(set(by_key) - set(found))
        advance(len(found))
        # Long texts are cut by the encoder; most of what it cuts need not be tokenized.
        longest = 16 * self._encoder.max_length
        for start in range(0, len(missing), CHUNK):
            keys = missing[start : start + CHUNK]
            # A text of blanks has no vector of its own.
            chunk = [by_key[key][:longest].strip() or "." for key in keys]
            vectors = embed_texts(self._encoder, chunk)
            self._save(keys, vectors)
            found.update(zip(keys, vectors, strict=True))
            advance(len(keys))
        rows = np.empty((len(order), self.width), np.float32)
        for row, key in enumerate(order):
            rows[row] = found[key]
        return rows

    def _load(self, keys: Sequence[bytes]) -> dict[bytes, Vectors]:
        found = {}
        with closing(self._open()) as database:
            for key in keys:
                row = database.execute(
                    "SELECT vector FROM vectors WHERE text = ?", (key,)
                ).fetchone()
                if row is not None:
                    found[key] = np.frombuffer(row[0], np.float32)
        return found

    def _save(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        with closing(self._open()) as database, database:
            database.executemany(
                "INSERT OR REPLACE INTO vectors VALUES (?, ?)",
                [(key, vector.tobytes()) for key, vector in zip(keys, vectors, strict=True)],
            )

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=60)
