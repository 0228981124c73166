"""Texts without an answer count as wrong and are never guessed; several labels a text."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from taskfit.stats import evaluate_multi_label, evaluate_probabilities

NO = [np.nan, np.nan]


def test_no_answer_is_wrong_in_every_metric_and_stands_in_no_column() -> None:
    gold = np.array([0, 0, 1, 1])
    answered = evaluate_probabilities(
        np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.3, 0.7]]), gold, labels=["a", "b"]
    )
    silent = evaluate_probabilities(
        np.array([[0.9, 0.1], NO, [0.1, 0.9], NO]), gold, labels=["a", "b"]
    )
    assert silent.num_unanswered == 2
    assert silent.accuracy == 0.5 < answered.accuracy
    assert silent.mcc < answered.mcc
    assert np.sum(silent.confusion_matrix) == 2
    assert silent.log_loss == pytest.approx((-np.log(0.9) * 2 - np.log(0.5) * 2) / 4)
    low, high = silent.intervals["macro_f1"]
    assert low <= silent.macro_f1 <= high


def test_a_method_that_never_answers_scores_nothing() -> None:
    found = evaluate_probabilities(
        np.full((4, 2), np.nan), np.array([0, 1, 0, 1]), labels=["a", "b"]
    )
    assert (found.accuracy, found.mcc, found.macro_f1) == (0, 0, 0)
    assert found.num_unanswered == 4


def test_half_an_answer_is_an_error_of_ours() -> None:
    with pytest.raises(ValueError, match="not finite"):
        evaluate_probabilities(np.array([[np.nan, 0.5]]), np.array([0]), labels=["a", "b"])


def test_several_labels_are_measured_as_scikit_learn_does() -> None:
    generator = np.random.default_rng(0)
    present = generator.random((200, 3)) < (0.5, 0.2, 0.8)
    probabilities = np.clip(present * 0.5 + generator.random((200, 3)) * 0.6, 0, 1)
    found = evaluate_multi_label(probabilities, present, labels=["a", "b", "c"])
    predicted = probabilities >= 0.5
    assert found.accuracy == pytest.approx((predicted == present).all(axis=1).mean())
    assert found.macro_f1 == pytest.approx(f1_score(present, predicted, average="macro"))
    each = [matthews_corrcoef(present[:, i], predicted[:, i]) for i in range(3)]
    assert found.mcc == pytest.approx(np.mean(each))
    assert np.sum(found.confusion_matrix) == 600
    assert np.array(found.confusion_matrix)[:, 3].tolist() == (present & predicted).sum(0).tolist()
    for name, (low, high) in found.intervals.items():
        assert low <= getattr(found, name) <= high
    order = generator.permutation(200)
    again = evaluate_multi_label(probabilities[order], present[order], labels=["a", "b", "c"])
    assert again.macro_f1 == pytest.approx(found.macro_f1)
    assert again.log_loss == pytest.approx(found.log_loss)


def test_perfect_and_certain_answers_have_no_calibration_error() -> None:
    present = np.array([[True, False], [False, False]])
    found = evaluate_multi_label(present.astype(float), present, labels=["a", "b"])
    assert (found.accuracy, found.ece) == (1, 0)
    assert found.log_loss == pytest.approx(0, abs=1e-9)
