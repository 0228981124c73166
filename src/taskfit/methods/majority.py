"""The baseline that never looks at the text: how frequent each label is in training."""

from collections.abc import Sequence

import numpy as np

from taskfit.data import Example
from taskfit.methods.method import Advance, FloatArray, Method, MethodContext, MethodState
from taskfit.methods.targets import target_matrix


class Majority(Method):
    """Gives every text the labels' frequencies in training."""

    serves_multi_label = True

    def __init__(self, context: MethodContext) -> None:
        """Know nothing yet."""
        super().__init__(context)
        self._shares: FloatArray = np.full(len(self.task.labels), 1 / len(self.task.labels))

    def prepare(self, train: Sequence[Example], validation: Sequence[Example]) -> None:
        """Count labels."""
        self._shares = target_matrix(train, self.task.label_names).mean(axis=0)

    def probabilities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> FloatArray:
        """Return the training frequencies for every text, (N, L)."""
        if advance is not None:
            advance(len(examples))
        return np.tile(self._shares, (len(examples), 1))

    def state(self) -> MethodState:
        """Return the frequencies."""
        return MethodState(arrays={"shares": self._shares})

    def restore(self, state: MethodState) -> None:
        """Continue with saved frequencies."""
        self._shares = np.asarray(state.arrays["shares"])
