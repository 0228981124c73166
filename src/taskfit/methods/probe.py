"""Probe: logistic regression on frozen features, of the model, of a sentence encoder, or both.

Legend: N examples, D features, L labels.
"""

from collections.abc import Sequence

import numpy as np

from taskfit.data import Example
from taskfit.errors import DataError
from taskfit.method_settings import ProbeSettings
from taskfit.methods.features import MODEL, Features, feature_reader
from taskfit.methods.linear import LinearMethod
from taskfit.methods.method import Advance, FloatArray, MethodContext, MethodState

# The encoder whose embeddings stand beside the model's features.
BESIDE = "minilm"


class Probe(LinearMethod):
    """Standardises the features of frozen weights and fits a logistic regression; seconds."""

    settings: ProbeSettings

    def __init__(self, context: MethodContext) -> None:
        """Make the readers of the features that `method.features` names.

        Raises:
            ModelError: If there is no such encoder.
        """
        super().__init__(context)
        asked = self.settings.features
        names = (MODEL, BESIDE) if asked == "both" else (asked,)
        self._readers = [feature_reader(context, name) for name in names]
        self._mean = self._scale = np.empty(0)

    def prepare(self, train: Sequence[Example], validation: Sequence[Example]) -> None:
        """Read the features and fit.

        Raises:
            DataError: If there is no training example.
        """
        if not train:
            raise DataError("probe needs training examples: give a table, or a built-in task.")
        features = self._features(train).astype(np.float64)
        self._mean = features.mean(axis=0)
        deviation = features.std(axis=0)
        self._scale = np.where(deviation > 0, deviation, 1.0)
        self._fit((features - self._mean) / self._scale, train)

    def weights_of_features(self) -> tuple[FloatArray, FloatArray]:
        """Return weights (L, D) and biases (L,) of the features as they are, not standardised."""
        assert self._linear is not None
        weight = self._linear.weight / self._scale
        return weight, self._linear.bias - weight @ self._mean

    def dry_run(self, examples: Sequence[Example]) -> None:
        """Read the features of a few examples."""
        self._features(examples)

    def state(self) -> MethodState:
        """Return the scaling and the linear layer."""
        linear = super().state()
        return MethodState(
            linear.values, {"mean": self._mean, "scale": self._scale, **linear.arrays}
        )

    def restore(self, state: MethodState) -> None:
        """Continue with a fitted probe."""
        super().restore(state)
        for reader in self._readers:
            reader.keep_no_more()
        self._mean, self._scale = (
            np.asarray(state.arrays[name], np.float64) for name in ("mean", "scale")
        )

    @property
    def num_parameters(self) -> int:
        """Return the weights of what is read and of the regression."""
        return super().num_parameters + int(sum(r.num_parameters for r in self._readers))

    def _read(self, examples: Sequence[Example], advance: Advance | None = None) -> FloatArray:
        features = self._features(examples, advance)
        return np.asarray((features - self._mean) / self._scale, np.float64)

    def _features(self, examples: Sequence[Example], advance: Advance | None = None) -> Features:
        """Return the features of all readers side by side, (N, D)."""
        first, *others = self._readers
        # A text is finished once, by the larger model.
        found = [first.features(examples, advance=advance)]
        return np.hstack([*found, *(reader.features(examples) for reader in others)])
