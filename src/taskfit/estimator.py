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
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from taskfit.data import Example
from taskfit.data.in_memory import (
    check_same_kind,
    check_some_text,
    label_array,
    label_name,
    text_rows,
)
from taskfit.errors import CheckpointError, DataError, SettingsError
from taskfit.overrides import nested_setting
from taskfit.report.pages import write_page
from taskfit.runs.classes import read_classes, with_earlier, write_classes
from taskfit.runs.classifier import Classifier
from taskfit.runs.file_names import SETTINGS_FILE
from taskfit.runs.load import load_classifier
from taskfit.runs.origin import continued_settings, read_task
from taskfit.screen import PlainScreen, Screen, SilentScreen
from taskfit.search.search_and_fit import search_and_fit
from taskfit.settings_base import merge_settings
from taskfit.settings_file import load_run_settings, load_settings
from taskfit.tasks.questions import Questionnaire

LABEL = "label"
# Stands in no label, since none is several here.
NO_SEPARATOR = "\x1f"
# One text or row, or many.
Texts = str | Mapping[str, str] | Sequence[str | Mapping[str, str]] | pd.Series | pd.DataFrame


class TextClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A language model as a text classifier with scikit-learn's interface.

    Texts are a sequence of strings, or of mappings from column names to strings (such as premise
    and hypothesis), a Series, or a DataFrame, all of whose columns are text in `fit`; prediction
    takes those it needs. It takes one string or mapping too, and gives back one label, or the
    probabilities of one. Labels are strings, whole numbers or booleans; predictions are of the same
    type, also after `save` and `load`, and as text of runs of the command line. What is missing,
    mixed or of another type is an error before anything is loaded.

    Fitted, it can be pickled: its run travels with it, and the base model is found by its name.

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
        warm_start: True: `fit` goes on from what the last `fit`, or `load`, left; a folder: from
            the run in it. Parameters left at their defaults are those of that run then, its classes
            stay and new ones are added. It learns from the texts given to `fit` alone.

    Attributes:
        classes_: The distinct labels, sorted, in the order of `predict_proba`'s columns.
        feature_names_in_: The columns it was fitted on, where it was a DataFrame.
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
        warm_start: bool | str | Path = False,
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
        self.warm_start = warm_start

    def fit(self, texts: Texts, y: Sequence[Any] | pd.Series) -> "TextClassifier":
        """Fit on labelled texts.

        Args:
            texts: Many.
            y: Their labels.

        Raises:
            TaskfitError: If data or settings do not allow it.
        """
        if y is None:
            name = type(self).__name__
            raise DataError(f"{name} requires y to be passed, but the target y is None.")
        values = label_array(y)
        start = self._start()
        task = None if start is None else read_task(start)
        rows = text_rows(texts, None if task is None else task.text)
        if len(rows) != len(values):
            raise DataError(f"{len(rows)} texts, but {len(values)} labels; give one for each.")
        check_some_text(rows)
        if LABEL in rows[0]:
            raise DataError(f"No text column may be called {LABEL!r} here. Rename it.")
        if (self.settings or {}).get("task.multi_label"):
            raise SettingsError(
                "TextClassifier gives a text one label, but task.multi_label is set. Use `taskfit "
                "fit` for several; `taskfit.load` reads such runs."
            )
        classes, places = np.unique(values, return_inverse=True)
        if len(classes) < 2 and start is None:
            raise DataError(
                f"All {len(values)} labels are {classes.tolist()[0]!r}: one class. A classifier "
                "needs at least two."
            )
        names = [label_name(value) for value in classes.tolist()]
        folder = self._new_folder()
        lines = [
            json.dumps({**row, LABEL: names[place]}, ensure_ascii=False) + "\n"
            for row, place in zip(rows, places, strict=True)
        ]
        (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
        given = self._flags(folder / "train.jsonl", list(rows[0]))
        if start is not None:
            given["start"] = {"earlier_rows": False}
        for key, value in (self.settings or {}).items():
            merge_settings(given, nested_setting(key, value))
        if start is None:
            settings = load_settings(flags=given)
        else:
            settings = continued_settings(start, given, tests=False)
        run, screen = folder / "run", self._screen()
        # Baselines are measured on test texts, which whoever uses an estimator mostly keeps.
        told = bool(settings.data.tests or settings.data.test_fraction)
        searched = search_and_fit(settings, run, report=write_page, screen=screen, baselines=told)
        fitted = searched.fitted
        assert isinstance(fitted, Classifier), "a table of labels is one question"
        columns = list(rows[0]) if isinstance(texts, pd.DataFrame) else None
        by_name = with_earlier(start, dict(zip(names, classes.tolist(), strict=True)))
        labels = fitted.task.label_names
        # Earlier classes may have longer names.
        kind = None if classes.dtype.kind == "U" else classes.dtype
        found = np.array([by_name[name] for name in labels], dtype=kind)
        write_classes(run, found, labels, columns)
        self._take(fitted, run)
        return self

    def predict_proba(self, texts: Texts) -> NDArray[np.float64]:
        """Return the probability of every class, (texts, classes), columns as in `classes_`.

        Of one string or mapping it is (classes,).

        Raises:
            DataError: If there are no texts, or they lack a column of the task's.
        """
        check_is_fitted(self, "classifier_")
        if isinstance(texts, str | Mapping):
            return self._probabilities([texts])[0]  # type: ignore[no-any-return]
        return self._probabilities(texts)

    def __call__(self, texts: Texts) -> Any:  # noqa: ANN401 - as many as there are texts
        """Return the probability of every class by its name, most probable first.

        Args:
            texts: As for `predict`.

        Returns:
            A dictionary for one text, a list of them for many.
        """
        names = self.classes_.tolist()
        found = np.atleast_2d(self.predict_proba(texts))
        rows = [{names[i]: float(row[i]) for i in np.argsort(-row, kind="stable")} for row in found]
        return rows[0] if isinstance(texts, str | Mapping) else rows

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
        given = np.atleast_2d(self.predict_proba(texts))
        found = np.empty_like(given)
        found[:, self._columns] = given
        sets = self.classifier_.only.prediction_sets(found, coverage, per_class=per_class)
        sets = sets[:, self._columns]
        return sets[0] if isinstance(texts, str | Mapping) else sets

    def predict(self, texts: Texts) -> Any:  # noqa: ANN401 - labels are what the user gave
        """Return the most probable class of each text, (texts,); of one, the class itself.

        Of a run whose texts may have several labels, whether each of `classes_` holds, as 1 or 0,
        (texts, classes), by the run's own thresholds.
        """
        found = self.predict_proba(texts)
        if self.classifier_.task.multi_label:
            return (found >= self.classifier_.only.thresholds[self._columns]).astype(int)
        if found.ndim == 1:
            return self.classes_.tolist()[found.argmax()]
        return np.asarray(self.classes_[found.argmax(axis=1)])

    def score(
        self, texts: Texts, y: ArrayLike | pd.Series, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return the accuracy on labelled texts.

        Args:
            texts: Many, as for `predict`.
            y: Their labels, of the type of `classes_`.
            sample_weight: How much each text counts; None: all the same.

        Raises:
            DataError: If texts or labels are not what `fit` takes, or of another type.
        """
        check_is_fitted(self, "classifier_")
        if self.classifier_.task.multi_label:
            return float(super().score(texts, y, sample_weight))
        values = label_array(y)
        predicted = self.classes_[self._probabilities(texts).argmax(axis=1)]
        if len(predicted) != len(values):
            raise DataError(f"{len(predicted)} texts, but {len(values)} labels; give one for each.")
        check_same_kind(values, self.classes_)
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=float)
        return float(np.average(predicted == values, weights=weights))

    def save(self, folder: str | Path) -> None:
        """Write the fitted run into a new folder, which `taskfit predict` understands too.

        Raises:
            CheckpointError: If the folder exists and is not empty.
        """
        check_is_fitted(self, "classifier_")
        target = Path(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise CheckpointError(f"{target} exists already. Give a new folder.")
        self._check_run()
        shutil.copytree(self._run, target, dirs_exist_ok=True)

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str = "auto", allow_other_base: bool = False
    ) -> "TextClassifier":
        """Load a run, fitted here or by `taskfit fit`, for prediction; see `taskfit.load`.

        Raises:
            CheckpointError: If the folder holds no finished run.
        """
        classifier = load_classifier(Path(folder), device=device, allow_other_base=allow_other_base)
        if isinstance(classifier.asked, Questionnaire):
            raise CheckpointError(
                f"{folder} is a run of several questions; use `taskfit predict {folder}`."
            )
        settings = load_run_settings(Path(folder) / SETTINGS_FILE)
        estimator = cls(model=settings.model.name, method=settings.method.name)
        estimator._take(classifier, Path(folder).resolve())
        return estimator

    def __getstate__(self) -> dict[str, Any]:
        """Return the parameters and, fitted, the files of the run in place of what runs on them."""
        state = dict(super().__getstate__())
        if "classifier_" in state:
            self._check_run()
            run = state.pop("_run")
            device = state.pop("classifier_").method.context.settings.model.device
            files = [path for path in sorted(run.rglob("*")) if path.is_file()]
            found = {path.relative_to(run).as_posix(): path.read_bytes() for path in files}
            state["_packed"] = {"device": device, "files": found}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Write the run's files into a folder of its own and load them."""
        state = dict(state)
        packed = state.pop("_packed", None)
        super().__setstate__(state)
        if packed is not None:
            run = self._new_folder() / "run"
            for name, content in packed["files"].items():
                (run / name).parent.mkdir(parents=True, exist_ok=True)
                (run / name).write_bytes(content)
            self._take(load_classifier(run, device=packed["device"]), run)

    def _probabilities(self, texts: Texts) -> NDArray[np.float64]:
        """Return the probabilities of many texts, columns as in `classes_`."""
        rows = text_rows(texts, self.classifier_.task.text)
        examples = [Example(f"texts[{i}]", row) for i, row in enumerate(rows)]
        with self._screen().progress("predicting", len(rows)) as advance:
            found = self.classifier_.probabilities(examples, advance=advance)
        return found[:, self._columns]

    def _take(self, classifier: Classifier, run: Path) -> None:
        """Serve a fitted run, with its classes as they were given to `fit`."""
        names = classifier.task.label_names
        classes, columns = read_classes(run, names)
        order = np.argsort(classes, kind="stable")
        self.classifier_, self._run, self.classes_ = classifier, run, classes[order]
        # Where the probability of each class stands in those of the run.
        self._columns = order
        if columns is not None:
            self.feature_names_in_ = np.array(columns, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _check_run(self) -> None:
        if not self._run.is_dir():
            raise CheckpointError(f"The run that was loaded is gone from {self._run}.")

    def _flags(self, train: Path, columns: list[str]) -> dict[str, Any]:
        given = {
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
        }
        training: dict[str, Any] = {"tensorboard": False}
        training |= {name: value for name, value in given.items() if value is not None}
        # Whoever uses an estimator keeps the test texts to themselves.
        data = {
            "train": str(train),
            "text": columns,
            "label": LABEL,
            # A label is one label, whatever stands in its name.
            "label_separator": NO_SEPARATOR,
            "test_fraction": 0.0,
        }
        own: dict[str, dict[str, Any]] = {
            "seed": {"seed": self.seed},
            "model": {"model": {"name": self.model}},
            "method": {"method": {"name": self.method}},
            "num_demonstrations": {"method": {"num_demonstrations": self.num_demonstrations}},
            "weights": {"adapter": {"weights": self.weights}},
        }
        flags: dict[str, Any] = {"data": data, "training": training}
        # A run to go on from has settings of its own; what is not given is taken from there.
        usual = {} if self._start() is None else type(self)().get_params()
        for name, given in own.items():
            if name not in usual or getattr(self, name) != usual[name]:
                merge_settings(flags, given)
        return flags

    def _start(self) -> Path | None:
        """Return the folder of the run to go on from, if `fit` goes on from one."""
        if isinstance(self.warm_start, bool):
            return self._run if self.warm_start and hasattr(self, "classifier_") else None
        return Path(self.warm_start)

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
