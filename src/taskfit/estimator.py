"""`TextClassifier`: the same fit and prediction, in scikit-learn's words."""

import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from taskfit.data import Example
from taskfit.data.cells import NotText, sound, text_of
from taskfit.data.tables import as_text
from taskfit.errors import CheckpointError, DataError, suggestion
from taskfit.report.pages import write_page
from taskfit.runs.classifier import Classifier
from taskfit.runs.load import load_classifier, load_run
from taskfit.runs.records import TUNED_FILE
from taskfit.runs.tuning.model import TunedModel
from taskfit.screen import PlainScreen, Screen, SilentScreen
from taskfit.search.search_and_fit import search_and_fit
from taskfit.settings_file import load_settings
from taskfit.tasks.questions import Questionnaire

LABEL = "label"
# One text or row, or many.
Texts = str | Mapping[str, str] | Sequence[str | Mapping[str, str]] | pd.Series | pd.DataFrame


class TextClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A language model as a text classifier with scikit-learn's interface.

    Texts are a sequence of strings, or of mappings from column names to strings (such as premise
    and hypothesis), a Series, or a DataFrame, all of whose columns are text in `fit`; prediction
    takes those it needs. It takes one string or mapping too, and gives back one label, or the
    probabilities of one. Labels are strings or numbers; predictions are of the same kind.

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
        verbose: Whether progress is shown.

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
        verbose: bool = False,
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
        self.verbose = verbose

    def fit(self, texts: Texts, labels: Sequence[Any] | pd.Series) -> "TextClassifier":
        """Fit on labelled texts.

        Raises:
            TaskfitError: If data or settings do not allow it.
        """
        if isinstance(texts, str | Mapping):
            raise DataError("There is one text; give a list of texts to learn from.")
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
        run, screen = folder / "run", self._screen()
        found = search_and_fit(settings, run, report=write_page, screen=screen)
        fitted = found.fitted
        assert isinstance(fitted, Classifier), "a table of labels is one question"
        self.classifier_, self._run = fitted, run
        by_name = {str(value): value for value in np.unique(values).tolist()}
        self.classes_ = np.array([by_name[name] for name in self.classifier_.task.label_names])
        return self

    def predict_proba(self, texts: Texts) -> NDArray[np.float64]:
        """Return the probability of every class, (texts, classes), columns as in `classes_`.

        Of one string or mapping it is (classes,).

        Raises:
            DataError: If there are no texts, or they lack a column of the task's.
        """
        check_is_fitted(self, "classifier_")
        if isinstance(texts, str | Mapping):
            found: NDArray[np.float64] = self.predict_proba([texts])[0]
            return found
        rows = _rows(texts, self.classifier_.task.text)
        examples = [Example(f"texts[{i}]", row) for i, row in enumerate(rows)]
        with self._screen().progress("predicting", len(rows)) as advance:
            return self.classifier_.probabilities(examples, advance=advance)

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
            (texts, classes), columns as in `classes_`; of one string or mapping (classes,).

        Raises:
            SettingsError: If no scores were kept, or too few for the coverage.
        """
        found = np.atleast_2d(self.predict_proba(texts))
        sets = self.classifier_.only.prediction_sets(found, coverage, per_class=per_class)
        return sets[0] if isinstance(texts, str | Mapping) else sets

    def predict(self, texts: Texts) -> Any:  # noqa: ANN401 - labels are what the user gave
        """Return the most probable class of each text, (texts,); of one, the class itself."""
        found = self.predict_proba(texts)
        if found.ndim == 1:
            return self.classes_[found.argmax()].item()
        return np.asarray(self.classes_[found.argmax(axis=1)])

    def save(self, folder: str | Path) -> None:
        """Write the fitted run into a new folder, which `taskfit predict` understands too.

        Raises:
            CheckpointError: If the folder exists and is not empty.
        """
        check_is_fitted(self, "classifier_")
        target = Path(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise CheckpointError(f"{target} exists already. Give a new folder.")
        if not self._run.is_dir():
            raise CheckpointError(f"The run that was loaded is gone from {self._run}.")
        shutil.copytree(self._run, target, dirs_exist_ok=True)

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto") -> "TextClassifier":
        """Load a run, fitted here or by `taskfit fit`, for prediction.

        Raises:
            CheckpointError: If the folder holds no finished run.
        """
        classifier = load_classifier(Path(folder), device=device)
        if isinstance(classifier.asked, Questionnaire):
            raise CheckpointError(
                f"{folder} is a run of several questions; use `taskfit predict {folder}`."
            )
        estimator = cls(model=classifier.model_name, method=classifier.method.settings.name)
        estimator.classes_ = np.array(classifier.task.label_names)
        estimator.classifier_, estimator._run = classifier, Path(folder).resolve()
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
        folder = Path(tempfile.mkdtemp(prefix="taskfit-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def _screen(self) -> Screen:
        """Return where progress is shown."""
        return PlainScreen() if self.verbose else SilentScreen()

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401 - scikit-learn's own type
        """Tell scikit-learn that inputs are texts, not arrays of numbers."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags


def load_any(folder: str | Path, *, device: str = "auto") -> TextClassifier | TunedModel:
    """Load a run for use: of a task with labels or, where it was tuned, of answers.

    Raises:
        CheckpointError: If the folder holds no finished run, or one of several questions.
    """
    if (Path(folder) / TUNED_FILE).is_file():
        found = load_run(Path(folder), device=device)
        assert isinstance(found, TunedModel)
        return found
    return TextClassifier.load(folder, device=device)


def _rows(texts: Texts, columns: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Return texts as rows of columns.

    Args:
        texts: Many, as `fit` takes them.
        columns: The task's, which every row must have; None: those that are there.

    Raises:
        DataError: If there are none, one is neither text nor mapping, or a column is missing.
    """
    if isinstance(texts, pd.DataFrame):
        names = [str(name) for name in texts.columns]
        _check_columns(names, columns or (), "The DataFrame")
        chosen = as_text(texts.set_axis(names, axis=1)[list(columns or names)])
        rows = [
            {str(k): _text(v, f"{k} of row {index}") for k, v in row.items()}
            for index, row in enumerate(chosen.to_dict("records"))
        ]
    else:
        rows = [_row(text, f"texts[{index}]", columns) for index, text in enumerate(texts)]
    if not rows:
        raise DataError("There are no texts.")
    return rows


def _row(text: object, where: str, columns: Sequence[str] | None) -> dict[str, str]:
    """Return one text as a row of columns; see `_rows`."""
    if isinstance(text, Mapping):
        row = {str(key): _text(value, f"{where}[{key!r}]") for key, value in text.items()}
        _check_columns(list(row), columns or (), where)
        return {name: row[name] for name in columns or row}
    if not isinstance(text, str):
        raise DataError(
            f"{where} is a {type(text).__name__}; give strings, or mappings from column names to "
            "strings."
        )
    if columns is not None and len(columns) > 1:
        raise DataError(
            f"{where} is one string, but this task reads the columns {', '.join(columns)}; give "
            "mappings with these, or a DataFrame."
        )
    return {columns[0] if columns else "text": _text(text, where)}


def _text(value: object, where: str) -> str:
    """Return a value as text.

    Raises:
        DataError: If it is a list or an object, or holds half of a surrogate pair.
    """
    text = text_of(value)
    if isinstance(text, NotText):
        raise DataError(f"{where} is {text.what}; give a string.")
    return sound(text, where)


def _check_columns(present: Sequence[str], columns: Sequence[str], where: str) -> None:
    for name in columns:
        if name not in present:
            raise DataError(
                f"{where} has no column {name!r}, which this task reads; it has: "
                f"{', '.join(present)}.{suggestion(name, present)}"
            )
