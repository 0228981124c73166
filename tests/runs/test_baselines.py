"""What a run is held against, and the warnings."""

import numpy as np
import pytest

from taskfit.runs.baselines import Row, has_converged, missed_labels, row_of, warnings_of
from taskfit.stats import Evaluation, evaluate_probabilities

LABELS = ["ham", "spam"]


def evaluation(predicted: list[int], gold: list[int]) -> Evaluation:
    return evaluate_probabilities(0.8 * np.eye(2)[predicted] + 0.1, np.array(gold), labels=LABELS)


def told(predicted: list[int], gold: list[int], others: list[Row], **kw: list[float]) -> str:
    found = evaluation(predicted, gold)
    rows = [*others, row_of("this run", found)]
    return "\n".join(
        warnings_of(rows, found, test_set="test", losses=kw.get("losses", []), guessing=np.log(2))
    )


GOLD = [0] * 12 + [1] * 8
ROW = Row("tfidf", {"accuracy": 0.9, "mcc": 0.8, "macro_f1": 0.9, "log_loss": 0.3})


def test_a_run_that_is_best_and_says_both_classes_gets_no_warning() -> None:
    assert told(GOLD, GOLD, [ROW]) == ""


def test_a_better_baseline_is_named_with_both_numbers_and_what_to_do() -> None:
    text = told([0] * 14 + [1] * 6, [1] * 4 + [0] * 10 + [1] * 6, [ROW])
    assert "tfidf is better than this run on test (MCC 0.800 against" in text
    assert "taskfit compare" in text


def test_one_class_for_all_is_said() -> None:
    assert "says 'ham' to all 20 texts of test" in told([0] * 20, GOLD, [])


def test_labels_that_are_next_to_never_found_are_said_most_frequent_first() -> None:
    labels = ["a", "b", "c", "d", "e"]
    gold = np.repeat([0, 1, 2, 3, 4], [50, 20, 12, 9, 30])
    predicted = np.where(gold == 4, 4, 0)
    predicted[50] = 1  # one of twenty is found
    found = evaluate_probabilities(np.eye(5)[predicted], gold, labels=labels)
    (text,) = missed_labels(found, "test")  # of nine texts none may be found by chance
    assert "of test the run finds 5% of the 20 that are 'b', 0% of the 12 that are 'c'." in text
    assert "method.class_weights=balanced" in text
    assert missed_labels(evaluation(GOLD, GOLD), "test") == []
    assert missed_labels(evaluation([1] * 20, GOLD), "test") == []  # one class for all is said


def test_a_majority_that_makes_accuracy_misleading_is_said() -> None:
    gold = [0] * 17 + [1] * 3
    assert "85% of test are 'ham'" in told(gold, gold, [])


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], True),
        (list(np.linspace(0.7, 0.05, 100)), True),  # small by now
        ([0.69] * 100, True),  # nothing to learn, and no longer falling
        (list(np.linspace(1.4, 0.5, 100)), False),
        ([0.7, 0.69, 0.68], False),
    ],
)
def test_convergence_is_judged_by_the_loss_s_last_half(losses: list[float], expected: bool) -> None:
    assert has_converged(losses, guessing=float(np.log(4))) is expected


def test_a_training_that_was_cut_off_is_said_with_the_setting() -> None:
    falling = list(np.linspace(0.69, 0.3, 100))
    assert "training.epochs" in told(GOLD, GOLD, [], losses=falling)
