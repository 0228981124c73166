"""Probe: logistic regression on frozen features, of the model, of a sentence encoder, or both.

Legend: N examples, D features, L labels.
"""

from collections.abc import Sequence

import numpy as np

from taskfit.data import Example
from taskfit.errors import DataError
from taskfit.method_settings import ProbeSettings
from taskfit.methods.features import EncoderFeatures, FeatureReader, Features
from taskfit.methods.linear import FloatArray, LinearModel, fit_linear
from taskfit.methods.majority import target_matrix
from taskfit.methods.method import Advance, Method, MethodContext, MethodState

MODEL, BOTH = "model", "both"
# The encoder whose embeddings stand beside the model's features.
BESIDE = "minilm"


class Probe(Method):
    """Standardises the features of frozen weights and fits a logistic regression; seconds."""

    serves_multi_label = True
    settings: ProbeSettings

    def __init__(self, context: MethodContext) -> None:
        """Make the readers of the features that `method.features` names.

        Raises:
            ModelError: If there is no such encoder.
        """
        super().__init__(context)
        name = self.settings.features
        self._readers: list[FeatureReader | EncoderFeatures] = []
        if name in (MODEL, BOTH):
            self._readers.append(FeatureReader(context))
        if name != MODEL:
            self._readers.append(EncoderFeatures(context, BESIDE if name == BOTH else name))
        self._mean = self._scale = np.empty(0)
        self._linear: LinearModel | None = None

    def prepare(self, train: Sequence[Example], validation: Sequence[Example]) -> None:
        """Read the features and fit.

        Raises:
            DataError: If there is no training example.
        """
        if not train:
            raise DataError("probe needs training examples: give --data, or a built-in task.")
        features = self._features(train).astype(np.float64)
        self._mean = features.mean(axis=0)
        deviation = features.std(axis=0)
        self._scale = np.where(deviation > 0, deviation, 1.0)
        self._linear = fit_linear(
            self._standardised(features),
            target_matrix(train, self.task.label_names),
            multi_label=self.task.multi_label,
            balanced=self.settings.class_weights == "balanced",
            seed=self.context.settings.seed,
        )

    def probabilities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> FloatArray:
        """Return the probabilities of the logistic regression, (N, L)."""
        assert self._linear is not None
        if not examples:
            return np.empty((0, len(self.task.labels)))
        return self._linear.probabilities(self._standardised(self._features(examples, advance)))

    def weights_of_features(self) -> tuple[FloatArray, FloatArray]:
        """Return weights (L, D) and biases (L,) of the features as they are, not standardised."""
        assert self._linear is not None
        weight = self._linear.weight / self._scale
        return weight, self._linear.bias - weight @ self._mean

    @property
    def cached_seconds(self) -> float:
        """Return the seconds of features that were in the cache."""
        return sum(reader.cached_seconds for reader in self._readers)

    def rehearse(self, examples: Sequence[Example]) -> None:
        """Read the features of a few examples."""
        self._features(examples)

    def state(self) -> MethodState:
        """Return the scaling and the linear layer."""
        assert self._linear is not None
        return MethodState(
            values={"strength": self._linear.strength},
            arrays={
                "mean": self._mean,
                "scale": self._scale,
                "weight": self._linear.weight,
                "bias": self._linear.bias,
            },
        )

    def restore(self, state: MethodState) -> None:
        """Continue with a fitted probe."""
        for reader in self._readers:
            reader.keep_no_more()
        arrays = {name: np.asarray(array, np.float64) for name, array in state.arrays.items()}
        self._mean, self._scale = arrays["mean"], arrays["scale"]
        self._linear = LinearModel(
            arrays["weight"], arrays["bias"], self.task.multi_label, float(state.values["strength"])
        )

    @property
    def num_parameters(self) -> int:
        """Return the weights of what is read and of the regression."""
        own = 0 if self._linear is None else self._linear.weight.size + self._linear.bias.size
        return own + sum(reader.num_parameters for reader in self._readers)

    def _features(self, examples: Sequence[Example], advance: Advance | None = None) -> Features:
        """Return the features of all readers side by side, (N, D)."""
        first, *others = self._readers
        # A text is finished once, by the larger model.
        found = [first.features(examples, advance=advance)]
        return np.hstack([*found, *(reader.features(examples) for reader in others)])

    def _standardised(self, features: Features | FloatArray) -> FloatArray:
        return np.asarray((features - self._mean) / self._scale, np.float64)
