"""Probe: logistic regression on the frozen model's last hidden state."""

from collections.abc import Sequence

import numpy as np

from taskfit.data import Example
from taskfit.errors import DataError
from taskfit.methods.features import FeatureReader, Features
from taskfit.methods.linear import FloatArray, LinearModel, fit_linear
from taskfit.methods.majority import target_matrix
from taskfit.methods.method import Advance, Method, MethodContext, MethodState
from taskfit.models import count_parameters
from taskfit.settings import MethodSettings


class Probe(Method):
    """Standardises the features of frozen weights and fits a logistic regression; seconds."""

    serves_multi_label = True

    @classmethod
    def shows_demonstrations(cls, settings: MethodSettings) -> bool:
        """Return whether there is a prompt."""
        return settings.prompt

    def __init__(self, context: MethodContext) -> None:
        """Make the reader of features."""
        super().__init__(context)
        self._reader = FeatureReader(context)
        self._mean = self._scale = np.empty(0)
        self._linear: LinearModel | None = None

    def prepare(self, train: Sequence[Example], validation: Sequence[Example]) -> None:
        """Read the features and fit.

        Raises:
            DataError: If there is no training example.
        """
        if not train:
            raise DataError("probe needs training examples: give --data, or a built-in task.")
        features = self._reader.features(train).astype(np.float64)
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
        return self._linear.probabilities(
            self._standardised(self._reader.features(examples, advance=advance))
        )

    @property
    def spared_seconds(self) -> float:
        """Return the seconds of features that were in the cache."""
        return self._reader.spared_seconds

    def rehearse(self, examples: Sequence[Example]) -> None:
        """Read the features of a few examples."""
        self._reader.features(examples)

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
        self._reader.keep_no_more()
        arrays = {name: np.asarray(array, np.float64) for name, array in state.arrays.items()}
        self._mean, self._scale = arrays["mean"], arrays["scale"]
        self._linear = LinearModel(
            arrays["weight"], arrays["bias"], self.task.multi_label, float(state.values["strength"])
        )

    @property
    def num_parameters(self) -> int:
        """Return the weights of the model and of the regression."""
        model = self.context.need_model().tree.model
        own = 0 if self._linear is None else self._linear.weight.size + self._linear.bias.size
        return count_parameters(model) + own

    def _standardised(self, features: Features | FloatArray) -> FloatArray:
        return np.asarray((features - self._mean) / self._scale, np.float64)
