"""For each text the training examples most similar to it.

Legend: N texts, M training examples, D width of the embedding, k neighbours.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.errors import DataError
from taskfit.methods.features import EncoderFeatures, feature_reader
from taskfit.methods.method import Advance, MethodContext, MethodState

Embeddings = NDArray[np.float32]


class Retriever:
    """Finds nearest training examples by the cosine of sentence embeddings or hidden states.

    Attributes:
        reader: Reads what is compared.
    """

    def __init__(self, context: MethodContext, name: str) -> None:
        """Load what measures similarity: `method.retriever` is its name."""
        self._train: list[Example] = []
        self._embeddings: Embeddings = np.empty((0, 0), np.float32)
        # One direction that all hidden states share would make all cosines alike.
        self._mean: Embeddings | None = None
        self.reader = feature_reader(context, name)

    def fit(self, train: Sequence[Example]) -> None:
        """Embed the training texts.

        Raises:
            DataError: If there are none.
        """
        if not train:
            raise DataError(
                "Nearest neighbours need training examples to choose from. Give a table, or a "
                "built-in task."
            )
        self._train = list(train)
        self._mean = None
        self._embeddings = self.embed(train)

    def embed(self, examples: Sequence[Example], *, advance: Advance | None = None) -> Embeddings:
        """Return embeddings of length 1, (N, D)."""
        features = self.reader.features(examples, advance=advance)
        if isinstance(self.reader, EncoderFeatures):
            return features
        if self._mean is None:
            self._mean = features.mean(axis=0)
        centred = features - self._mean
        norms = np.linalg.norm(centred, axis=1, keepdims=True)
        return np.asarray(centred / np.maximum(norms, 1e-12), np.float32)

    def similarities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> Embeddings:
        """Return the cosine of every text with every training example, (N, M)."""
        return self.embed(examples, advance=advance) @ self._embeddings.T

    def nearest(self, examples: Sequence[Example], count: int) -> list[list[Example]]:
        """Return the most similar training examples of each text, the most similar last.

        Liu et al. 2022 (arXiv:2101.06804). A training example with the very text is passed over:
        its label would be copied.
        """
        if count > len(self._train):
            raise DataError(
                f"{count} demonstrations are asked for, but there are only {len(self._train)} "
                "training examples to choose from. Set method.num_demonstrations lower."
            )
        chosen = []
        for example, row in zip(examples, self.similarities(examples), strict=True):
            order = np.argsort(-row, kind="stable")[: count + 1]
            others = [self._train[i] for i in order if self._train[i].texts != example.texts]
            chosen.append(others[:count][::-1])
        return chosen

    def state(self) -> MethodState:
        """Return the training examples with their embeddings."""
        rows = [[e.id, dict(e.texts), e.label] for e in self._train]
        arrays = {"embeddings": self._embeddings}
        if self._mean is not None:
            arrays["mean"] = self._mean
        return MethodState(values={"train": rows}, arrays=arrays)

    def restore(self, state: MethodState) -> None:
        """Continue with indexed examples."""
        self.reader.keep_no_more()
        self._train = [Example(id_, texts, label) for id_, texts, label in state.values["train"]]
        self._embeddings = np.asarray(state.arrays["embeddings"], np.float32)
        if "mean" in state.arrays:
            self._mean = np.asarray(state.arrays["mean"], np.float32)
