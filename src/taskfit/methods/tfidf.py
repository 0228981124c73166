"""TF-IDF of words and word pairs with logistic regression: what every method should beat."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from taskfit.data import Example
from taskfit.errors import DataError
from taskfit.method_settings import TfidfSettings
from taskfit.methods.linear import LinearMethod
from taskfit.methods.method import Advance, MethodContext, MethodState
from taskfit.methods.targets import target_matrix


class Tfidf(LinearMethod):
    """scikit-learn's TF-IDF over words and pairs of words, logarithmic counts, L2 norm."""

    settings: TfidfSettings

    def __init__(self, context: MethodContext) -> None:
        """Know no words yet."""
        super().__init__(context)
        self._vectorizer = _vectorizer(None)

    def prepare(self, train: Sequence[Example], validation: Sequence[Example]) -> None:
        """Collect the words and fit.

        Raises:
            DataError: If there are no training examples, or no word in them.
        """
        target_matrix(train, self.task.label_names)  # says so if there are no examples
        try:
            features = self._vectorizer.fit_transform(self._texts(train))
        except ValueError as error:
            raise DataError(
                "tfidf found no word in the training texts (single characters do not count as "
                "words). Use another method for texts like these."
            ) from error
        self._fit(csr_matrix(features), train)

    def state(self) -> MethodState:
        """Return words, their weights, and the linear layer."""
        words, linear = self._vectorizer.get_feature_names_out().tolist(), super().state()
        return MethodState(
            {"words": words, **linear.values}, {"idf": self._vectorizer.idf_, **linear.arrays}
        )

    def restore(self, state: MethodState) -> None:
        """Continue with saved words and weights."""
        super().restore(state)
        self._vectorizer = _vectorizer(list(state.values["words"]))
        self._vectorizer.idf_ = np.asarray(state.arrays["idf"], np.float64)

    def _read(self, examples: Sequence[Example], advance: Advance | None = None) -> csr_matrix:
        features = csr_matrix(self._vectorizer.transform(self._texts(examples)))
        if advance is not None:
            advance(len(examples))
        return features

    def _texts(self, examples: Sequence[Example]) -> list[str]:
        return ["\n".join(example.texts[name] for name in self.task.text) for example in examples]


def _vectorizer(words: list[str] | None) -> Any:  # noqa: ANN401 - scikit-learn has no types
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, vocabulary=words)
