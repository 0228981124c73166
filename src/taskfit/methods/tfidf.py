"""TF-IDF of words and word pairs with logistic regression: what every method should beat."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from taskfit.data import Example
from taskfit.errors import DataError
from taskfit.method_settings import TfidfSettings
from taskfit.methods.linear import FloatArray, LinearModel, fit_linear
from taskfit.methods.majority import target_matrix
from taskfit.methods.method import Advance, Method, MethodContext, MethodState


class Tfidf(Method):
    """scikit-learn's TF-IDF over words and pairs of words, logarithmic counts, L2 norm."""

    serves_multi_label = True
    settings: TfidfSettings

    def __init__(self, context: MethodContext) -> None:
        """Know no words yet."""
        super().__init__(context)
        self._vectorizer = _vectorizer(None)
        self._linear: LinearModel | None = None

    def prepare(self, train: Sequence[Example], validation: Sequence[Example]) -> None:
        """Collect the words and fit.

        Raises:
            DataError: If there are no training examples, or no word in them.
        """
        targets = target_matrix(train, self.task.label_names)
        try:
            features = self._vectorizer.fit_transform(self._texts(train))
        except ValueError as error:
            raise DataError(
                "tfidf found no word in the training texts (single characters do not count as "
                "words). Use another method for texts like these."
            ) from error
        self._linear = fit_linear(
            csr_matrix(features),
            targets,
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
        features = csr_matrix(self._vectorizer.transform(self._texts(examples)))
        if advance is not None:
            advance(len(examples))
        return self._linear.probabilities(features)

    def state(self) -> MethodState:
        """Return words, their weights, and the linear layer."""
        assert self._linear is not None
        return MethodState(
            values={
                "words": self._vectorizer.get_feature_names_out().tolist(),
                "strength": self._linear.strength,
            },
            arrays={
                "idf": self._vectorizer.idf_,
                "weight": self._linear.weight,
                "bias": self._linear.bias,
            },
        )

    def restore(self, state: MethodState) -> None:
        """Continue with saved words and weights."""
        arrays = {name: np.asarray(array, np.float64) for name, array in state.arrays.items()}
        self._vectorizer = _vectorizer(list(state.values["words"]))
        self._vectorizer.idf_ = arrays["idf"]
        self._linear = LinearModel(
            arrays["weight"], arrays["bias"], self.task.multi_label, float(state.values["strength"])
        )

    @property
    def num_parameters(self) -> int:
        """Return the weights of the regression."""
        return 0 if self._linear is None else self._linear.weight.size + self._linear.bias.size

    def _texts(self, examples: Sequence[Example]) -> list[str]:
        return ["\n".join(example.texts[name] for name in self.task.text) for example in examples]


def _vectorizer(words: list[str] | None) -> Any:  # noqa: ANN401 - scikit-learn has no types
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, vocabulary=words)
