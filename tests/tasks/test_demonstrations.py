"""Demonstrations hang on the seed alone, larger choices keep the smaller, classes are even."""

from collections import Counter
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskfit.data import Example
from taskfit.errors import DataError
from taskfit.tasks import choose_demonstrations

How = Literal["fixed", "random", "balanced"]
LABELS = ["a", "b", "c"]
HOWS: list[How] = ["fixed", "random", "balanced"]
label_lists = st.lists(st.sampled_from(LABELS), min_size=1, max_size=40)
seeds = st.integers(0, 20)


def examples_of(labels: list[str] | list[str | None]) -> list[Example]:
    return [Example(f"x:{i}", {"text": f"text {i}"}, label) for i, label in enumerate(labels)]


def choose(examples: list[Example], how: How, num: int, seed: int = 0) -> list[Example]:
    return choose_demonstrations(examples, how=how, num=num, labels=LABELS, seed=seed)


def ids(examples: list[Example]) -> set[str]:
    return {example.id for example in examples}


@given(labels=label_lists, how=st.sampled_from(HOWS), seed=seeds, data=st.data())
def test_each_choice_is_seeded_distinct_and_as_many_as_asked(
    labels: list[str], how: How, seed: int, data: st.DataObject
) -> None:
    examples = examples_of(labels)
    num = data.draw(st.integers(0, len(labels)))
    chosen = choose(examples, how, num, seed)
    assert len(ids(chosen)) == len(chosen) == num
    assert all(example in examples for example in chosen)
    assert choose(examples, how, num, seed) == chosen
    with pytest.raises(DataError, match=rf"{len(labels) + 1} demonstrations .* only {len(labels)}"):
        choose(examples, how, len(labels) + 1, seed)


@given(labels=label_lists, how=st.sampled_from(HOWS), seed=seeds, data=st.data())
def test_a_larger_choice_contains_the_smaller(
    labels: list[str], how: How, seed: int, data: st.DataObject
) -> None:
    examples = examples_of(labels)
    large = data.draw(st.integers(0, len(labels)))
    small = data.draw(st.integers(0, large))
    assert ids(choose(examples, how, small, seed)) <= ids(choose(examples, how, large, seed))


@given(labels=label_lists, seed=seeds, data=st.data())
def test_balanced_classes_differ_by_at_most_one_until_one_runs_out(
    labels: list[str], seed: int, data: st.DataObject
) -> None:
    num = data.draw(st.integers(1, len(labels)))
    there = Counter(labels)
    shown = Counter(e.label for e in choose(examples_of(labels), "balanced", num, seed))
    most = max(shown.values())
    for label in LABELS:
        assert shown[label] >= min(most - 1, there[label])


@given(labels=label_lists, num=st.integers(0, 40), seed=seeds)
def test_fixed_ones_are_the_first_in_their_order_whatever_the_seed(
    labels: list[str], num: int, seed: int
) -> None:
    examples = examples_of(labels)
    num = min(num, len(examples))
    assert choose(examples, "fixed", num, seed) == examples[:num]


@pytest.mark.parametrize("how", ["random", "balanced"])
def test_the_seed_changes_choice_and_order(how: How) -> None:
    examples = examples_of(LABELS * 4)
    assert len({frozenset(ids(choose(examples, how, 4, seed))) for seed in range(20)}) > 10
    orders = {tuple(e.label for e in choose(examples, how, 3, seed)) for seed in range(60)}
    if how == "balanced":
        assert len(orders) == 6  # every order of the three classes comes up
    # No place of the prompt belongs to a class.
    last = Counter(e.label for s in range(300) for e in choose(examples, how, 6, s)[-1:])
    assert min(last.values()) > 60


@pytest.mark.parametrize("how", HOWS)
def test_examples_without_one_of_the_labels_are_passed_over(how: How) -> None:
    labels: list[str | None] = ["a", None, "b", "other", "c", None]
    assert sorted(str(e.label) for e in choose(examples_of(labels), how, 3)) == LABELS
    with pytest.raises(DataError, match="4 demonstrations are asked for, but there are only 3"):
        choose(examples_of(labels), how, 4)


def test_every_example_is_as_likely_as_its_classmates() -> None:
    examples = examples_of(["a"] * 3 + ["b"] * 9)
    counts = Counter(e.id for seed in range(600) for e in choose(examples, "balanced", 2, seed))
    # 600 draws of one in 3 and one in 9: 200 and 67, give or take four standard deviations.
    for example in examples:
        low, high = (154, 246) if example.label == "a" else (36, 98)
        assert low < counts[example.id] < high
