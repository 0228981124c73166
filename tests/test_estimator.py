from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_score

import tiny
from taskfit import TextClassifier
from taskfit.errors import CheckpointError, DataError, SettingsError

EXAMPLES = tiny.toy_examples(60)
TEXTS = [example.texts["text"] for example in EXAMPLES]
LABELS = [example.label for example in EXAMPLES]


def classifier(model_folder: Path, **settings: object) -> TextClassifier:
    defaults = {
        "model.dtype": "float32",
        "model.device": "cpu",
        "data.validation_fraction": 0.1,
        "data.max_validation": 6,
    }
    return TextClassifier(
        str(model_folder),
        method="label_words",
        num_demonstrations=0,
        epochs=6,
        learning_rate=2e-2,
        settings={**defaults, **settings},
    )


def test_it_learns_and_its_probabilities_belong_to_its_classes(model_folder: Path) -> None:
    fitted = classifier(model_folder).fit(TEXTS, LABELS)
    assert fitted.classes_.tolist() == ["bad", "good"]
    probabilities = fitted.predict_proba(TEXTS)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-9)
    assert fitted.predict(TEXTS).tolist() == fitted.classes_[probabilities.argmax(1)].tolist()
    assert fitted.score(TEXTS, LABELS) > 0.9


def test_saved_and_loaded_it_predicts_the_same(model_folder: Path, tmp_path: Path) -> None:
    fitted = classifier(model_folder, **{"training.max_steps": 2}).fit(TEXTS, LABELS)
    fitted.save(tmp_path / "run")
    loaded = TextClassifier.load(tmp_path / "run", device="cpu")
    assert loaded.classes_.tolist() == fitted.classes_.tolist()
    np.testing.assert_allclose(loaded.predict_proba(TEXTS), fitted.predict_proba(TEXTS), atol=1e-6)
    with pytest.raises(CheckpointError, match="exists already"):
        fitted.save(tmp_path / "run")


def test_it_works_in_cross_validation_and_clones(model_folder: Path) -> None:
    estimator = classifier(model_folder, **{"training.max_steps": 1})
    assert clone(estimator).get_params() == estimator.get_params()
    scores = cross_val_score(estimator, TEXTS, LABELS, cv=2)
    assert scores.shape == (2,)


def test_numbers_as_labels_come_back_as_numbers_in_their_order(model_folder: Path) -> None:
    labels = [10 if label == "good" else 2 for label in LABELS]
    fitted = classifier(model_folder, **{"training.max_steps": 1}).fit(TEXTS, labels)
    assert fitted.classes_.tolist() == [2, 10]
    assert set(fitted.predict(TEXTS[:5]).tolist()) <= {2, 10}


def test_two_columns_are_given_as_mappings(model_folder: Path) -> None:
    rows = [{"premise": text, "hypothesis": "So it was."} for text in TEXTS]
    fitted = classifier(model_folder, **{"training.max_steps": 1}).fit(rows, LABELS)
    assert fitted.classifier_.task.text == ("premise", "hypothesis")
    assert len(fitted.predict(rows[:3])) == 3


def test_wrong_input_says_what_was_found(model_folder: Path) -> None:
    with pytest.raises(DataError, match="60 texts, but 3 labels"):
        classifier(model_folder).fit(TEXTS, LABELS[:3])
    with pytest.raises(DataError, match=r"texts\[1\] is a int"):
        classifier(model_folder).fit(["a", 5], ["x", "y"])
    with pytest.raises(SettingsError, match=r"training\.epochs is 'many'"):
        TextClassifier(str(model_folder), epochs="many").fit(TEXTS, LABELS)


def test_warm_start_goes_on_where_the_last_fit_ended_and_adds_classes(model_folder: Path) -> None:
    fitted = classifier(model_folder, **{"data.validation_fraction": 0.0}).fit(TEXTS, LABELS)
    before = fitted.predict_proba(TEXTS)
    fitted.set_params(warm_start=True, learning_rate=1e-12, epochs=1).fit(TEXTS[:8], LABELS[:8])
    np.testing.assert_allclose(fitted.predict_proba(TEXTS), before, rtol=1e-3, atol=1e-6)
    fitted.fit(TEXTS[:4], ["good", "bad", "odd", "odd"])
    assert fitted.classes_.tolist() == ["bad", "good", "odd"]


def test_warm_start_from_a_folder_takes_the_settings_of_its_run(
    model_folder: Path, tmp_path: Path
) -> None:
    numbers = [int(label == "good") for label in LABELS]
    short = {"training.max_steps": 2}
    classifier(model_folder, **short).fit(TEXTS, numbers).save(tmp_path / "run")
    warm = TextClassifier(
        warm_start=tmp_path / "run", epochs=1, settings={"training.learning_rate": 1e-12}
    ).fit(TEXTS[:4], [1, 1, 1, 1])
    assert warm.classes_.tolist() == [0, 1]
    assert warm.classifier_.model_name == str(model_folder)
    loaded = TextClassifier.load(tmp_path / "run", device="cpu")
    np.testing.assert_allclose(
        warm.predict_proba(TEXTS), loaded.predict_proba(TEXTS), rtol=1e-3, atol=1e-6
    )
    again = loaded.set_params(warm_start=True, learning_rate=1e-12, epochs=1)
    again.fit(TEXTS[:4], LABELS[:4])
    assert again.classes_.tolist() == ["0", "1", "bad", "good"]
