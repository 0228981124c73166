"""`TextClassifier`: the same fit and prediction, in scikit-learn's words."""

import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from taskfit.data import Example
from taskfit.errors import CheckpointError, DataError
from taskfit.report.pages import write_page
from taskfit.runs.classifier import Classifier
from taskfit.search.search_and_fit import search_and_fit
from taskfit.settings_file import load_settings
from taskfit.tasks.questions import Questionnaire

LABEL = "label"
Texts = Sequence[str] | Sequence[Mapping[str, str]]


class TextClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A language model as a text classifier with scikit-learn's interface.

    Texts are a sequence of strings, or of mappings from column names to strings (such as premise
    and hypothesis). Labels are strings or numbers; predictions are of the same kind.

    Args:
        model: Hub id, local folder or packaged model.
        method: `auto`, `label_words`, `in_context`, `head`, `probe`, `tfidf`, ...; see
            `method.name` in docs/settings.md.
        weights: `lora`, `qlora` or `full`.
        num_demonstrations: Labelled examples in the prompt; None: up to four, one a class.
        epochs: Passes over the training set; None: by the number of labels.
        learning_rate: Peak learning rate; None: 5e-4 for adapters, 2e-5 for full weights.
        batch_size: Examples per optimizer step; None: by the length of texts.
        seed: Seed of every draw.
        settings: Further settings as `{"section.key": value}`, see docs/settings.md.

    Attributes:
        classes_: The labels in the order of `predict_proba`'s columns.
    """

    def __init__(
        self,
        model: str = "smollm2-135m",
        *,
        method: str = "auto",
        weights: str = "lora",
        num_demonstrations: int | None = None,
        epochs: float | None = None,
        learning_rate: float | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep the parameters; nothing is loaded before `fit`."""
        self.model = model
        self.method = method
        self.weights = weights
        self.num_demonstrations = num_demonstrations
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.seed = seed
        self.settings = settings

    def fit(self, texts: Texts, labels: Sequence[Any]) -> "TextClassifier":
        """Fit on labelled texts.

        Raises:
            TaskfitError: If data or settings do not allow it.
        """
        if len(texts) != len(labels):
            raise DataError(f"{len(texts)} texts, but {len(labels)} labels; give one for each.")
        rows = _rows(texts)
        if LABEL in rows[0]:
            raise DataError(f"No text column may be called {LABEL!r} here. Rename it.")
        folder = self._new_folder()
        values = np.asarray(labels)
        lines = [
            json.dumps({**row, LABEL: str(label)}, ensure_ascii=False) + "\n"
            for row, label in zip(rows, values.tolist(), strict=True)
        ]
        (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
        settings = load_settings(
            flags=self._flags(folder / "train.jsonl", list(rows[0])),
            overrides=[f"{k}={json.dumps(v)}" for k, v in (self.settings or {}).items()],
        )
        fitted = search_and_fit(settings, folder / "run", report=write_page).fitted
        assert isinstance(fitted, Classifier), "a table of labels is one question"
        self.classifier_ = fitted
        by_name = {str(value): value for value in np.unique(values).tolist()}
        self.classes_ = np.array([by_name[name] for name in self.classifier_.task.label_names])
        return self

    def predict_proba(self, texts: Texts) -> NDArray[np.float64]:
        """Return the probability of every class, (texts, classes), columns as in `classes_`."""
        check_is_fitted(self, "classifier_")
        rows = _rows(texts)
        return self.classifier_.probabilities(
            [Example(f"texts[{i}]", row) for i, row in enumerate(rows)]
        )

    def predict_set(
        self, texts: Texts, *, coverage: float, per_class: bool = False
    ) -> NDArray[np.bool_]:
        """Return which classes are in each set that holds the right one with a chosen probability.

        Fit with `settings={"calibration.prediction_sets": True}`; see
        `AskedQuestion.prediction_sets`.

        Args:
            texts: As for `predict`.
            coverage: The probability, over texts like those it was fitted on.
            per_class: Whether it is to hold for the texts of every class.

        Returns:
            (texts, classes), columns as in `classes_`.

        Raises:
            SettingsError: If no scores were kept, or too few for the coverage.
        """
        probabilities = self.predict_proba(texts)
        return self.classifier_.only.prediction_sets(probabilities, coverage, per_class=per_class)

    def predict(self, texts: Texts) -> NDArray[Any]:
        """Return the most probable class of each text."""
        return np.asarray(self.classes_[self.predict_proba(texts).argmax(axis=1)])

    def save(self, folder: str | Path) -> None:
        """Write the fitted run into a new folder, which `taskfit predict` understands too.

        Raises:
            CheckpointError: If the folder exists and is not empty.
        """
        check_is_fitted(self, "classifier_")
        target = Path(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise CheckpointError(f"{target} exists already. Give a new folder.")
        shutil.copytree(self._folder / "run", target, dirs_exist_ok=True)

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto") -> "TextClassifier":
        """Load a run, fitted here or by `taskfit fit`, for prediction.

        Raises:
            CheckpointError: If the folder holds no finished run.
        """
        classifier = Classifier.load(Path(folder), device=device)
        if isinstance(classifier.asked, Questionnaire):
            raise CheckpointError(
                f"{folder} is a run of several questions; use `taskfit predict {folder}`."
            )
        estimator = cls(model=classifier.model_name, method=classifier.method.settings.name)
        estimator.classes_ = np.array(classifier.task.label_names)
        estimator.classifier_ = classifier
        shutil.copytree(folder, estimator._new_folder() / "run")
        return estimator

    def _flags(self, train: Path, columns: list[str]) -> dict[str, Any]:
        given = {
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
        }
        training: dict[str, Any] = {"tensorboard": False}
        training |= {name: value for name, value in given.items() if value is not None}
        return {
            "seed": self.seed,
            # Whoever uses an estimator keeps the test texts to themselves.
            "data": {"train": str(train), "text": columns, "label": LABEL, "test_fraction": 0.0},
            "model": {"name": self.model},
            "method": {"name": self.method, "num_demonstrations": self.num_demonstrations},
            "adapter": {"weights": self.weights},
            "training": training,
        }

    def _new_folder(self) -> Path:
        """Make a folder for the run that goes when the estimator goes; `save` copies it."""
        self._folder = Path(tempfile.mkdtemp(prefix="taskfit-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401 - scikit-learn's own type
        """Tell scikit-learn that inputs are texts, not arrays of numbers."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags


def _rows(texts: Texts) -> list[dict[str, str]]:
    """Return texts as rows of columns.

    Raises:
        DataError: If there are none, or one is neither text nor mapping.
    """
    rows = []
    for index, text in enumerate(texts):
        if isinstance(text, str):
            rows.append({"text": text})
        elif isinstance(text, Mapping):
            rows.append({str(key): str(value) for key, value in text.items()})
        else:
            raise DataError(
                f"texts[{index}] is a {type(text).__name__}; give strings, or mappings from column "
                "names to strings."
            )
    if not rows:
        raise DataError("There are no texts.")
    return rows
