"""Sentence embeddings of texts, each text computed once and kept on disk.

Legend: N texts, D width of the encoder.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from taskfit.curate.items import digest
from taskfit.data.fetch import cache_folder
from taskfit.methods.features import FeatureCache
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
        folder = cache_folder() / "embeddings"
        self._cache = FeatureCache(folder, fingerprint(model, beside=beside))

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
        stored = zip(by_key, self._cache.load(list(by_key)), strict=True)
        found = {key: row[0] for key, row in stored if row is not None}
        missing = sorted(set(by_key) - set(found))
        advance(len(found))
        # Long texts are cut by the encoder; most of what it cuts need not be tokenized.
        longest = 16 * self._encoder.max_length
        for start in range(0, len(missing), CHUNK):
            keys = missing[start : start + CHUNK]
            # A text of blanks has no vector of its own.
            chunk = [by_key[key][:longest].strip() or "." for key in keys]
            vectors = embed_texts(self._encoder, chunk)
            self._cache.save(keys, vectors)
            found.update(zip(keys, vectors, strict=True))
            advance(len(keys))
        rows = np.empty((len(order), self.width), np.float32)
        for row, key in enumerate(order):
            rows[row] = found[key]
        return rows
