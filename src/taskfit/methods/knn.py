"""Nearest neighbours in frozen features: labels of the most similar training texts vote."""

from collections.abc import Sequence

import numpy as np

from taskfit.data import Example
from taskfit.method_settings import KnnSettings
from taskfit.methods.method import Advance, FloatArray, Method, MethodContext, MethodState
from taskfit.methods.retrieval import Retriever
from taskfit.methods.targets import target_matrix

# Similarities are cosines; this is how much a tenth of one counts (e for each).
SHARPNESS = 10.0


class NearestNeighbors(Method):
    """Averages the targets of the k most similar training texts, weighted by exp(10 cosine).

    One further vote goes to the labels' frequencies in training, so that no probability is 0.
    """

    serves_multi_label = True
    settings: KnnSettings

    def __init__(self, context: MethodContext) -> None:
        """Load what measures similarity."""
        super().__init__(context)
        self._retriever = Retriever(context, self.settings.retriever)
        self._readers = [self._retriever.reader]
        self._targets: FloatArray = np.empty((0, len(self.task.labels)))

    def prepare(self, train: Sequence[Example], validation: Sequence[Example]) -> None:
        """Embed the training texts."""
        self._retriever.fit(train)
        self._targets = target_matrix(train, self.task.label_names)

    def probabilities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> FloatArray:
        """Return the weighted votes, (N, L)."""
        if not examples:
            return np.empty((0, len(self.task.labels)))
        similarity = self._retriever.similarities(examples, advance=advance).astype(np.float64)
        count = min(self.settings.num_neighbors, similarity.shape[1])
        chosen = np.argpartition(-similarity, count - 1, axis=1)[:, :count]  # (N, k)
        nearest = np.take_along_axis(similarity, chosen, axis=1)
        votes = np.exp(SHARPNESS * (nearest - nearest.max(axis=1, keepdims=True)))
        total = (votes[:, :, None] * self._targets[chosen]).sum(axis=1) + self._targets.mean(axis=0)
        return np.asarray(total / (votes.sum(axis=1, keepdims=True) + 1))

    def dry_run(self, examples: Sequence[Example]) -> None:
        """Embed a few examples."""
        self._retriever.reader.features(examples)

    def state(self) -> MethodState:
        """Return the training examples, their embeddings and targets."""
        found = self._retriever.state()
        return MethodState(found.values, {**found.arrays, "targets": self._targets})

    def restore(self, state: MethodState) -> None:
        """Continue with indexed examples."""
        self._retriever.restore(state)
        self._targets = np.asarray(state.arrays["targets"], np.float64)
