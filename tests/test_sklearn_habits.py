"""`TextClassifier` among scikit-learn's own tools: the checks of its estimators, and its tools."""

import copy
import pickle
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

import taskfit
import tiny
from taskfit import TextClassifier
from taskfit.errors import CheckpointError, DataError, SettingsError
from taskfit.runs.fit import fit
from taskfit.settings_file import settings_from_dict

EXAMPLES = tiny.toy_examples(24)
TEXTS = [example.texts["text"] for example in EXAMPLES]
GOOD = [example.label == "good" for example in EXAMPLES]
KINDS: dict[str, Any] = {
    "strings": np.where(GOOD, "good", "bad"),
    "objects": np.where(GOOD, "good", "Bad").astype(object),
    "numbers": np.where(GOOD, 10, -2),
    "small numbers": np.where(GOOD, 1, 0).astype(np.int8),
    "floats": np.where(GOOD, 1.0, 0.0),
    "booleans": np.array(GOOD),
}
# Of scikit-learn's checks all pass that make sense once numbers are written as words; what it
# skips by itself, or what cannot be asked of texts, stands here with the reason.
NOT_FOR_TEXTS = {
    "check_array_api_input": "texts are no arrays of numbers, on no device",
}


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """Leave out what takes most of a tiny fit's time: its page, and the choice of a strength."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("taskfit.estimator.write_page", lambda _: None)
        patch.setattr("taskfit.methods.linear._choose_strength", lambda *_: 1.0)
        yield


def quick(**settings: Any) -> TextClassifier:
    return TextClassifier(method="tfidf", settings=settings or None)


class NumbersAsWords(TextClassifier):
    """What scikit-learn's checks can be run on: every number of a row becomes a word."""

    def fit(self, texts: Any, y: Any) -> "TextClassifier":
        if y is not None:
            texts, y = validate_data(self, texts, y)
        return super().fit(self._written(texts), y)

    def predict_proba(self, texts: Any) -> Any:
        check_is_fitted(self)
        return super().predict_proba(self._written(validate_data(self, texts, reset=False)))

    def score(self, texts: Any, y: Any, sample_weight: Any = None) -> float:
        check_is_fitted(self)
        found = self._written(validate_data(self, texts, reset=False))
        return super().score(found, y, sample_weight)

    def _written(self, table: Any) -> list[str]:
        return [
            " ".join(
                f"c{column}{'minus' if value < 0 else 'plus'}{min(int(abs(value) * 2), 9)}"
                for column, value in enumerate(row)
            )
            for row in np.asarray(table, dtype=float)
        ]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = False
        tags.input_tags.two_d_array = True
        return tags


def test_scikit_learns_checks_pass() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are provoked on purpose
        own = check_estimator(quick(), on_skip=None)
        found = check_estimator(NumbersAsWords(method="tfidf"), on_skip=None, on_fail=None)
    assert {one["status"] for one in own} == {"passed"}
    assert len(found) > 40
    failed = {
        one["check_name"]: one["exception"]
        for one in found
        if one["status"] != "passed" and one["check_name"] not in NOT_FOR_TEXTS
    }
    assert not failed


def test_its_tags_say_texts() -> None:
    tags = quick().__sklearn_tags__()
    assert tags.estimator_type == "classifier"
    assert tags.input_tags.string
    assert not tags.input_tags.two_d_array
    assert tags.target_tags.required


@pytest.fixture(scope="module", params=KINDS)
def fitted(request: pytest.FixtureRequest) -> tuple[TextClassifier, Any]:
    labels = KINDS[request.param]
    return quick().fit(TEXTS, labels), labels


def assert_alike(other: TextClassifier, one: TextClassifier, labels: Any) -> None:
    assert other.classes_.dtype == one.classes_.dtype
    assert other.classes_.tolist() == one.classes_.tolist()
    assert np.array_equal(other.predict_proba(TEXTS), one.predict_proba(TEXTS))
    assert other.score(TEXTS, labels) == 1.0


def test_labels_keep_their_type_on_every_way(
    fitted: tuple[TextClassifier, Any], tmp_path: Path
) -> None:
    one, labels = fitted
    assert one.classes_.dtype == labels.dtype
    assert one.classes_.tolist() == np.unique(labels).tolist()
    found = one.predict(TEXTS)
    assert found.dtype == labels.dtype
    assert found.tolist() == labels.tolist()
    single = one.predict(TEXTS[0])
    assert single == labels[0]
    assert type(single) is type(labels.tolist()[0])
    one.save(tmp_path / "run")
    assert_alike(TextClassifier.load(tmp_path / "run"), one, labels)
    assert_alike(taskfit.load(tmp_path / "run"), one, labels)  # type: ignore[arg-type]
    assert_alike(pickle.loads(pickle.dumps(one)), one, labels)
    assert_alike(copy.deepcopy(one), one, labels)
    joblib.dump(one, tmp_path / "one.joblib")
    again = joblib.load(tmp_path / "one.joblib")
    assert_alike(again, one, labels)
    again.save(tmp_path / "again")
    assert_alike(TextClassifier.load(tmp_path / "again"), one, labels)


def test_a_run_of_the_command_line_gives_labels_as_text(tmp_path: Path) -> None:
    table = pd.DataFrame({"text": TEXTS, "label": np.where(GOOD, 10, -2)})
    table.to_csv(tmp_path / "train.csv", index=False)
    data = {"train": str(tmp_path / "train.csv"), "test_fraction": 0}
    settings = settings_from_dict({"data": data, "method": {"name": "tfidf"}})
    fit(settings, tmp_path / "run")
    loaded = taskfit.load(tmp_path / "run")
    assert isinstance(loaded, TextClassifier)
    assert loaded.classes_.tolist() == ["-2", "10"]
    assert loaded.score(TEXTS, table["label"].astype(str)) == 1.0
    with pytest.raises(DataError, match=r"classes are text .* labels are numbers"):
        loaded.score(TEXTS, table["label"])


def test_columns_of_probabilities_are_sorted_as_scikit_learns_measures_read_them() -> None:
    labels = np.array(["b", "a10", "Z", "a2"] * 6)
    texts = [f"word{label} {text}" for label, text in zip(labels, TEXTS, strict=True)]
    one = quick().fit(texts, labels)
    assert one.classes_.tolist() == sorted(set(labels))
    assert one.score(texts, labels) == 1.0
    assert log_loss(labels, one.predict_proba(texts)) < 1
    scores = cross_val_score(quick(), texts, labels, cv=2, scoring="neg_log_loss")
    assert (scores > -np.log(4)).all()


def test_it_works_in_pipelines_searches_and_ensembles() -> None:
    labels = KINDS["numbers"]
    shout = FunctionTransformer(lambda texts: [text.upper() for text in texts])
    pipeline = make_pipeline(shout, quick()).fit(TEXTS, labels)
    assert pipeline.score(TEXTS, labels) == 1.0
    grid = GridSearchCV(quick(), {"method": ["majority", "tfidf"], "seed": np.arange(1)}, cv=2)
    grid.fit(pd.Series(TEXTS, index=range(50, 74)), labels)
    assert grid.best_params_["method"] == "tfidf"
    assert grid.predict(TEXTS).tolist() == labels.tolist()
    numbers = quick(**{"data.max_validation": np.int64(3), "data.folder": Path("none")})
    assert numbers.fit(TEXTS, labels).score(TEXTS, labels) == 1.0
    named = np.where(GOOD, "a|b", np.where(np.arange(24) % 4 > 1, "a", "b"))
    assert quick().fit(TEXTS, named).classes_.tolist() == ["a", "a|b", "b"]
    voted = VotingClassifier([("one", quick()), ("two", clone(quick()))], voting="soft")
    assert voted.fit(TEXTS, labels).score(TEXTS, labels) == 1.0


def test_the_columns_of_a_data_frame_are_known(tmp_path: Path) -> None:
    table = pd.DataFrame({"title": TEXTS, "body": "So it was."}, index=range(7, 31))
    one = quick().fit(table, pd.Series(KINDS["strings"], index=range(24)))
    assert one.feature_names_in_.tolist() == ["title", "body"]
    expected = one.predict(table).tolist()
    assert one.predict(table.assign(more=1)[["more", "body", "title"]]).tolist() == expected
    with pytest.raises(DataError, match=r"no column 'body'.*Did you mean Body"):
        one.predict(table.rename(columns={"body": "Body"}))
    with pytest.raises(DataError, match="missing in column 'title'"):
        one.predict(table.mask(table == TEXTS[0]))
    with pytest.raises(DataError, match=r"texts\[0\] is one string, but this task reads"):
        one.predict(TEXTS)
    one.save(tmp_path / "run")
    assert TextClassifier.load(tmp_path / "run").feature_names_in_.tolist() == ["title", "body"]
    assert not hasattr(one.fit(TEXTS, KINDS["strings"]), "feature_names_in_")


def test_what_is_wrong_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("taskfit.estimator.search_and_fit", never)
    monkeypatch.setattr(TextClassifier, "_new_folder", never)
    labels = KINDS["strings"].tolist()

    def refused(message: str, texts: Any = TEXTS, labels: Any = labels, **settings: Any) -> None:
        with pytest.raises((DataError, SettingsError), match=message):
            quick(**settings).fit(texts, labels)

    refused("requires y to be passed, but the target y is None", labels=None)
    refused(r"labels\[3\] \(None\) is missing", labels=[*labels[:3], None, *labels[4:]])
    refused("texts is one string; give a list", texts=TEXTS[0], labels=labels[:1])
    refused("24 texts, but 23 labels", labels=labels[1:])
    refused("one class", labels=["good"] * 24)
    refused(r"texts\[0\] is without any text", texts=["", *TEXTS[1:]])
    refused(r"labels\[1\] is a list", labels=["good", ["bad"], *labels[2:]])
    refused("task.multi_label is set", **{"task.multi_label": True})
    refused("No text column may be called 'label'", texts=pd.DataFrame({"label": TEXTS}))


def test_what_is_not_there_is_said_as_scikit_learn_says_it() -> None:
    for ask in (TextClassifier.predict, TextClassifier.predict_proba, TextClassifier.save):
        with pytest.raises(NotFittedError):
            ask(quick(), TEXTS)  # type: ignore[arg-type]
    with pytest.raises(NotFittedError):
        quick().score(TEXTS, GOOD)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sample_weight'"):
        quick().fit(TEXTS, GOOD, sample_weight=np.ones(24))  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="Invalid parameter 'modell'"):
        quick().set_params(modell="x")
    one = quick().fit(TEXTS, GOOD)
    for texts, labels in ((TEXTS[0], GOOD[:1]), (TEXTS, GOOD[:3]), (TEXTS, [None] * 24)):
        with pytest.raises(DataError):
            one.score(texts, labels)
    assert one.score(TEXTS[:2], [GOOD[0], not GOOD[1]], sample_weight=[3, 1]) == 0.75
    assert len(one.predict([""])) == 1


def test_several_labels_of_a_text_are_told_as_an_indicator(tmp_path: Path) -> None:
    names = ["good|sure" if good else "sure" if i % 3 else "" for i, good in enumerate(GOOD)]
    table = pd.DataFrame({"text": TEXTS, "label": names})
    table.to_csv(tmp_path / "train.csv", index=False)
    given = {
        "data": {"train": str(tmp_path / "train.csv"), "test_fraction": 0},
        "method": {"name": "tfidf"},
        "task": {"multi_label": True},
    }
    fit(settings_from_dict(given), tmp_path / "run")
    loaded = TextClassifier.load(tmp_path / "run")
    found = loaded.predict(TEXTS)
    assert loaded.classes_.tolist() == ["good", "sure"]
    assert np.array_equal(found, (loaded.predict_proba(TEXTS) >= 0.5).astype(int))
    assert loaded.score(TEXTS, found) == 1.0
    assert loaded.predict(TEXTS[0]).shape == (2,)


def test_a_fitted_model_travels_with_its_run_and_says_when_that_is_gone(
    model_folder: Path, tmp_path: Path
) -> None:
    settings = {"model.dtype": "float32", "model.device": "cpu", "training.max_steps": 2}
    one = TextClassifier(
        str(model_folder), method="label_words", num_demonstrations=0, settings=settings
    ).fit(TEXTS, GOOD)
    again = pickle.loads(pickle.dumps(one))
    np.testing.assert_allclose(again.predict_proba(TEXTS), one.predict_proba(TEXTS), atol=1e-6)
    assert again.get_params() == one.get_params()
    assert again.classes_.tolist() == [False, True]
    one.save(tmp_path / "run")
    loaded = TextClassifier.load(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(CheckpointError, match="is gone"):
        pickle.dumps(loaded)
