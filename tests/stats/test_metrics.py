import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, matthews_corrcoef

from taskfit.stats import Evaluation, evaluate_probabilities, reliability
from taskfit.stats.metrics import macro_f1_from_counts, mcc_from_counts
from taskfit.stats.multi_label import evaluate_multi_label

LABELS = ["a", "b", "c"]


def random_case(seed: int, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet([1, 1, 1], count)
    gold = np.array([generator.choice(3, p=row) for row in probabilities])
    return probabilities, gold


def test_a_case_worked_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    found = evaluate_probabilities(probabilities, np.array([0, 0, 1, 1]), labels=["x", "y"])
    assert found.accuracy == 0.75
    assert found.confusion_matrix == [[2, 0], [1, 1]]
    assert found.mcc == pytest.approx((2 * 1 - 0 * 1) / np.sqrt(3 * 1 * 2 * 2))
    assert found.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)
    assert found.log_loss == pytest.approx(-np.log([0.9, 0.8, 0.7, 0.4]).mean())
    # Each falls into a bin of its own: |1-.9| + |1-.8| + |1-.7| + |0-.6| over four.
    assert found.ece == pytest.approx((0.1 + 0.2 + 0.3 + 0.6) / 4)


def test_a_calibrated_model_has_a_small_ece_and_an_overconfident_one_a_large_one() -> None:
    probabilities, gold = random_case(0, 20_000)
    assert evaluate_probabilities(probabilities, gold, labels=LABELS).ece < 0.02
    sharp = probabilities**4 / (probabilities**4).sum(axis=1, keepdims=True)
    assert evaluate_probabilities(sharp, gold, labels=LABELS).ece > 0.15


@given(st.permutations([0, 1, 2]), st.integers(0, 5))
def test_permuting_labels_permutes_the_matrix_and_nothing_else(order: list[int], seed: int) -> None:
    probabilities, gold = random_case(seed, 60)
    plain = evaluate_probabilities(probabilities, gold, labels=LABELS)
    inverse = np.argsort(order)
    moved = evaluate_probabilities(
        probabilities[:, order], inverse[gold], labels=[LABELS[i] for i in order]
    )
    for metric in ("accuracy", "mcc", "macro_f1", "log_loss", "ece"):
        assert getattr(moved, metric) == pytest.approx(getattr(plain, metric), abs=1e-12)
    expected = np.array(plain.confusion_matrix)[np.ix_(order, order)]
    assert np.array_equal(moved.confusion_matrix, expected)


def test_the_vectorised_metrics_are_scikit_learns() -> None:
    generator = np.random.default_rng(1)
    gold, predicted = generator.integers(0, 3, (2, 50, 40))
    eye = np.eye(3)
    counts = [eye[x].sum(axis=1) for x in (gold, predicted)]
    hits = (eye[gold] * eye[predicted]).sum(axis=1)
    for i, (mcc, f1) in enumerate(
        zip(mcc_from_counts(hits, *counts, 40), macro_f1_from_counts(hits, *counts), strict=True)
    ):
        assert mcc == pytest.approx(matthews_corrcoef(gold[i], predicted[i]))
        assert f1 == pytest.approx(f1_score(gold[i], predicted[i], average="macro"))


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        right = generator.random(150) < 0.8
        probabilities = np.where(right[:, None], [[0.7, 0.3]], [[0.3, 0.7]])
        found = evaluate_probabilities(
            probabilities, np.zeros(150, dtype=int), labels=["x", "y"], seed=trial
        )
        low, high = found.intervals["accuracy"]
        covered += low <= 0.8 <= high
    assert 180 <= covered <= 199


@pytest.mark.parametrize("several", [False, True])
def test_intervals_of_a_classifier_that_is_hardly_ever_wrong_cover_the_truth(several: bool) -> None:
    generator = np.random.default_rng(3)
    covered = dict.fromkeys(("accuracy", "mcc", "macro_f1"), 0)
    truth = {"accuracy": 0.97, "mcc": 0.94, "macro_f1": 0.97}
    trials = 50 if several else 200
    for trial in range(trials):
        gold = generator.integers(0, 2, 60)
        answer = gold ^ (generator.random(60) < 0.03)
        if several:
            found = evaluate_multi_label(answer[:, None] * 1.0, gold[:, None] == 1, labels=["x"])
        else:
            found = evaluate_probabilities(np.eye(2)[answer], gold, labels=["x", "y"], seed=trial)
        for metric, value in truth.items():
            low, high = found.intervals[metric]
            covered[metric] += low <= value <= high
    # Resamples alone cover it in 84 % of the trials: one in six has no mistake.
    assert all(times >= 0.9 * trials for times in covered.values()), covered


def test_resampling_cells_is_resampling_examples() -> None:
    probabilities, gold = random_case(3)
    found = evaluate_probabilities(probabilities, gold, labels=LABELS)
    generator = np.random.default_rng(9)
    predicted = probabilities.argmax(axis=1)
    picks = generator.integers(0, len(gold), (1500, len(gold)))
    values = [matthews_corrcoef(gold[p], predicted[p]) for p in picks[:400]]
    np.testing.assert_allclose(
        found.intervals["mcc"], np.quantile(values, [0.025, 0.975]), atol=0.025
    )


def test_edges_a_single_example_a_missing_class_and_certain_mistakes() -> None:
    one = evaluate_probabilities(np.array([[0.0, 1.0]]), np.array([0]), labels=["x", "y"])
    assert one.num_examples == 1
    assert one.log_loss == pytest.approx(-np.log(1e-15), rel=1e-6)
    assert one.mcc == 0
    probabilities = np.array([[0.6, 0.3, 0.1]] * 4)
    absent = evaluate_probabilities(probabilities, np.array([0, 0, 1, 0]), labels=LABELS)
    assert np.array(absent.confusion_matrix).shape == (3, 3)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        evaluate_probabilities(np.ones((2, 2)) / 2, np.array([0]), labels=["x", "y"])
    with pytest.raises(ValueError, match="not finite"):
        evaluate_probabilities(np.array([[np.nan, 1]]), np.array([0]), labels=["x", "y"])


def test_an_evaluation_survives_json() -> None:
    import json

    found = evaluate_probabilities(*random_case(4), labels=LABELS)
    assert Evaluation.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_bins_of_reliability_hold_every_example() -> None:
    probabilities, gold = random_case(5)
    bins = reliability(probabilities, gold)
    assert bins.count.sum() == len(gold)
    assert (bins.confidence @ bins.count) == pytest.approx(probabilities.max(axis=1).sum())
