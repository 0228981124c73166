"""Which texts to label next: laws of every strategy, and of what is around them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.vq import kmeans2

from taskfit.errors import SettingsError
from taskfit.labels.next_choice import MOST_LOOKED_AT, Choice, choose_next
from taskfit.labels.next_strategies import (
    ONE_QUESTION,
    STRATEGIES,
    Pool,
    badge,
    core_set,
    entropy,
    least_confidence,
    margin,
)
from taskfit.labels.next_table import Known

NAMES = list(STRATEGIES)


def test_a_label_given_below_one_half_is_right_as_often_as_its_probability_says() -> None:
    known = Known(
        np.array([[0.3, 0.9], [0.3, 0.9], [0.2, 0.1]]),
        multi_label=True,
        labels={"": ["a|x", "b"]},
        answers={"": ["b", "a|x|b", ""]},
    )
    found = known.certainty("", np.array([1, 0, 2]))
    np.testing.assert_allclose(found, [0.3 * 0.9, 0.7 * 0.9, 0.8 * 0.9])


def toy_pool(size: int, *, labels: int = 3, seed: int = 0, num_labelled: int = 0) -> Pool:
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(size + num_labelled, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Pool(
        size,
        generator.dirichlet(np.full(labels, 0.5), size),
        vectors[:size],
        vectors[size:] if num_labelled else None,
    )


@pytest.mark.parametrize("name", NAMES)
@given(
    size=st.integers(1, 60),
    count=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    balance=st.booleans(),
    num_labelled=st.integers(0, 5),
    seed=st.integers(0, 5),
)
@settings(max_examples=15, deadline=None)
def test_as_many_different_texts_come_out_as_are_asked_for_and_the_same_each_time(
    name: str, size: int, count: int, share: float, balance: bool, num_labelled: int, seed: int
) -> None:
    pool = toy_pool(size, seed=seed, num_labelled=num_labelled)
    choice = Choice(name, share, balance, near=1, seed=seed)
    found = choose_next(pool, count, choice)
    assert len(set(found.places.tolist())) == len(found.places) == min(size, count)
    assert found.is_random.sum() == choice.num_random(min(size, count))
    again = choose_next(pool, count, choice)
    np.testing.assert_array_equal(found.places, again.places)
    np.testing.assert_array_equal(found.is_random, again.is_random)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "random"])
def test_what_is_drawn_at_random_is_the_same_whatever_the_strategy(name: str) -> None:
    pool = toy_pool(300)
    plain = choose_next(pool, 50, Choice("random", 0.2, seed=3))
    found = choose_next(pool, 50, Choice(name, 0.2, seed=3))
    assert len(found.places[found.is_random]) == 10
    for one, other in ((found, plain), (plain, found)):
        assert set(one.places[one.is_random]) <= set(other.places[other.is_random])


def test_the_random_share_stands_for_the_pool_while_the_rest_does_not() -> None:
    pool = toy_pool(2_000)
    assert pool.probabilities is not None
    score = entropy(pool.probabilities, False)
    drawn, picked = [], []
    for seed in range(40):
        found = choose_next(pool, 50, Choice("entropy", 0.2, seed=seed))
        drawn += score[found.places[found.is_random]].tolist()
        picked += score[found.places[~found.is_random]].tolist()
    error = score.std() / np.sqrt(len(drawn))
    assert abs(np.mean(drawn) - score.mean()) < 4 * error
    assert np.mean(picked) - score.mean() > 20 * error


@given(count=st.integers(2, 60), share=st.sampled_from([0.1, 0.2, 0.4]))
@settings(deadline=None)
def test_whoever_stops_early_has_nearly_the_random_share(count: int, share: float) -> None:
    found = choose_next(toy_pool(200), count, Choice("margin", share))
    expected = np.arange(1, count + 1) * found.is_random.sum() / count
    assert np.abs(np.cumsum(found.is_random) - expected).max() <= 1


@pytest.mark.parametrize("name", [name for name in NAMES if name != "random"])
def test_no_two_chosen_texts_are_near_nor_one_near_to_what_is_labelled(name: str) -> None:
    pool = toy_pool(20, num_labelled=2, seed=1)
    assert pool.vectors is not None
    assert pool.labelled is not None
    # Each text ten times, and the labelled ones too.
    vectors = np.concatenate([np.repeat(pool.vectors, 10, axis=0), pool.labelled])
    assert pool.probabilities is not None
    known = np.concatenate([np.repeat(pool.probabilities, 10, axis=0), np.full((2, 3), 1 / 3)])
    found = choose_next(Pool(202, known, vectors, pool.labelled), 50, Choice(name, 0))
    assert sorted(place // 10 for place in found.places.tolist()) == list(range(20))


def test_rankings_put_the_most_uncertain_text_first() -> None:
    known = np.array([[0.9, 0.1, 0.0], [0.4, 0.35, 0.25], [0.5, 0.5, 0.0], [0.6, 0.2, 0.2]])
    firsts = {}
    for name in ("least_confidence", "margin", "entropy"):
        choice = Choice(name, 0)
        firsts[name] = choose_next(Pool(4, known), 4, choice).places.tolist()
    assert firsts == {
        "least_confidence": [1, 2, 3, 0],
        "margin": [2, 1, 3, 0],
        "entropy": [1, 3, 2, 0],
    }


def test_of_several_labels_each_is_judged_by_itself() -> None:
    known = np.array([[0.99, 0.01], [0.5, 0.99], [0.3, 0.3]])
    assert margin(known, True).argmax() == 1
    assert entropy(known, True).argmax() == 2
    assert least_confidence(known, True).argmax() == 2
    for name in NAMES:
        pool = Pool(3, known, np.eye(3, dtype=np.float32), multi_label=True)
        assert len(choose_next(pool, 3, Choice(name)).places) == 3


def test_several_questions_count_alike() -> None:
    known = np.array([[0.5, 0.5, 1, 0, 0], [0.7, 0.3, 0.4, 0.3, 0.3], [1, 0, 1, 0, 0]])
    questions = {"a": slice(0, 2), "b": slice(2, 5)}
    assert choose_next(Pool(3, known, questions=questions), 3, Choice("margin", 0)).places[0] == 1
    assert list(ONE_QUESTION) == [""]


def test_k_center_covers_the_pool_better_than_chance_and_begins_where_nothing_is_labelled() -> None:
    pool = toy_pool(500, seed=4)
    assert pool.vectors is not None

    def radius(places: np.ndarray) -> float:
        assert pool.vectors is not None
        return float((1 - (pool.vectors @ pool.vectors[places].T).max(axis=1)).max())

    generator = np.random.default_rng(0)
    chance = min(radius(generator.permutation(500)[:30]) for _ in range(20))
    assert radius(core_set(pool, 30, generator)) < chance
    corner = np.eye(3, dtype=np.float32)
    opposite = Pool(3, vectors=corner, labelled=corner[:2])
    assert core_set(opposite, 1, generator).tolist() == [2]


def test_badge_draws_as_kmeans_plus_plus_does_over_the_gradients_written_out() -> None:
    pool = toy_pool(40, seed=2)
    assert pool.probabilities is not None
    assert pool.vectors is not None
    answers = np.eye(3)[pool.probabilities.argmax(axis=1)]
    gradients = ((pool.probabilities - answers)[:, :, None] * pool.vectors[:, None]).reshape(40, -1)
    chosen = badge(pool, 8, np.random.default_rng(7))
    generator, places = np.random.default_rng(7), [int((gradients**2).sum(axis=1).argmax())]
    while len(places) < 8:
        apart = ((gradients[:, None] - gradients[places]) ** 2).sum(axis=2).min(axis=1)
        apart[places] = 0
        places.append(int(generator.choice(40, p=apart / apart.sum())))
    assert chosen.tolist() == places


def test_typiclust_gives_a_typical_text_of_every_cluster() -> None:
    generator = np.random.default_rng(0)
    centres = np.eye(8, dtype=np.float32)
    vectors = np.repeat(centres, 20, axis=0) + 0.05 * generator.normal(size=(160, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    found = choose_next(Pool(160, vectors=vectors), 8, Choice("typiclust", 0, near=1)).places
    assert len({place // 20 for place in found.tolist()}) >= 7
    _, own = kmeans2(vectors.astype(float), 8, seed=0, minit="++")
    assert len(set(own[found])) >= 6


def test_balance_gives_each_predicted_class_the_same() -> None:
    known = np.tile([0.8, 0.15, 0.05], (200, 1))
    known[:10] = [0.2, 0.7, 0.1]
    known[10:14] = [0.2, 0.2, 0.6]
    vectors = toy_pool(200).vectors
    found = choose_next(Pool(200, known, vectors), 24, Choice("margin", 0, balance=True)).places
    counts = np.bincount(known[found].argmax(axis=1), minlength=3)
    assert counts.tolist() == [10, 10, 4]
    assert known[found[:3]].argmax(axis=1).tolist() in ([0, 1, 2], [0, 2, 1]) or len(found) == 24


def test_embeddings_are_asked_for_only_of_what_is_looked_at() -> None:
    pool = toy_pool(5_000)
    vectors, asked = pool.vectors, []
    assert vectors is not None

    def embed(places: np.ndarray) -> np.ndarray:
        asked.extend(places.tolist())
        return vectors[places]

    bare = Pool(5_000, pool.probabilities)
    choose_next(bare, 50, Choice("margin", 0.2), embed=embed)
    assert 50 <= len(asked) <= 1_010
    asked.clear()
    choose_next(bare, 50, Choice("random"), embed=embed)
    assert not asked


def test_a_large_pool_takes_no_quadratic_memory() -> None:
    size = 2 * MOST_LOOKED_AT
    generator = np.random.default_rng(0)
    known = generator.dirichlet(np.ones(2), size)
    most = 0

    def embed(places: np.ndarray) -> np.ndarray:
        nonlocal most
        most = max(most, len(places))
        vectors = np.random.default_rng(int(places[0])).normal(size=(len(places), 4))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    for name in ("k-center", "badge", "cluster-margin"):
        found = choose_next(Pool(size, known), 20, Choice(name, near=1), embed=embed)
        assert len(found.places) == 20
    assert most == 10_000
    choose_next(Pool(size, known), 700, Choice("k-center", near=1), embed=embed)
    assert most == MOST_LOOKED_AT


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"strategy": "margn"}, "margin"),
        ({"random_share": 1.5}, "from 0 to 1"),
        ({"near": 0.0}, "above 0"),
    ],
)
def test_a_choice_that_cannot_be_is_told(given_: dict, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Choice(**given_)


def test_without_a_model_only_some_strategies_choose() -> None:
    Choice("typiclust").check_without_model()
    with pytest.raises(SettingsError, match="k-center"):
        Choice("margin").check_without_model()
    with pytest.raises(SettingsError, match="--balance"):
        Choice("random", balance=True).check_without_model()
