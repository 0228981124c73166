import hashlib
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskfit.data import (
    Example,
    PinnedPackage,
    draw,
    drop_overlap,
    fetch_package,
    load_builtin,
    split_validation,
)
from taskfit.errors import DataError


def examples_of(labels: list[str]) -> list[Example]:
    return [Example(f"x:{i}", {"text": f"text {i}"}, label) for i, label in enumerate(labels)]


label_lists = st.lists(st.sampled_from("aab"), min_size=4, max_size=60).map(
    lambda labels: [*labels, "a", "b"]
)


@given(labels=label_lists, seed=st.integers(0, 5), data=st.data())
def test_draws_are_nested_and_stratified(labels: list[str], seed: int, data: st.DataObject) -> None:
    examples = examples_of(labels)
    large = data.draw(st.integers(1, len(examples)))
    small = data.draw(st.integers(1, large))
    big = draw(examples, num_examples=large, shots_per_class=None, seed=seed)
    assert draw(examples, num_examples=small, shots_per_class=None, seed=seed) == big[:small]
    share = labels.count("a") / len(labels)
    assert abs(sum(e.label == "a" for e in big) - share * large) <= 1.0 + 1e-9


@given(labels=label_lists, seed=st.integers(0, 5))
def test_shots_are_as_many_of_each_class_and_nested(labels: list[str], seed: int) -> None:
    examples = examples_of(labels)
    most = min(Counter(labels).values())
    shots = [
        draw(examples, num_examples=None, shots_per_class=n, seed=seed) for n in range(1, most + 1)
    ]
    for n, chosen in enumerate(shots, start=1):
        assert Counter(e.label for e in chosen) == dict.fromkeys(set(labels), n)
        assert {e.id for e in shots[0]} <= {e.id for e in chosen}
    with pytest.raises(DataError, match=r"has \d+"):
        draw(examples, num_examples=None, shots_per_class=most + 1, seed=seed)


def test_asking_for_more_than_there_is_is_refused() -> None:
    with pytest.raises(DataError, match="5 examples are asked for, but there are 4"):
        draw(examples_of(list("abab")), num_examples=5, shots_per_class=None, seed=0)


@given(labels=label_lists, fraction=st.floats(0, 0.9), seed=st.integers(0, 5))
def test_validation_is_held_out_and_every_class_stays_in_training(
    labels: list[str], fraction: float, seed: int
) -> None:
    examples = examples_of(labels)
    train, held_out = split_validation(examples, fraction=fraction, max_validation=9, seed=seed)
    assert sorted(e.id for e in (*train, *held_out)) == sorted(e.id for e in examples)
    assert [e for e in examples if e in train] == train
    assert {e.label for e in train} == set(labels)
    assert len(held_out) <= 9


def test_texts_of_evaluation_sets_are_dropped_from_training() -> None:
    train = [
        Example("t:1", {"text": "Same  Text"}, "a"),
        Example("t:2", {"text": "twice"}, "a"),
        Example("t:3", {"text": "Twice"}, "b"),
        Example("t:4", {"text": "own"}, "b"),
    ]
    kept, overlap = drop_overlap(train, {"dev": [Example("d:1", {"text": "same text"}, "b")]})
    assert [e.id for e in kept] == ["t:2", "t:3", "t:4"]
    assert (overlap.num_dropped, overlap.dropped_by_set) == (1, {"dev": 1})
    assert (overlap.num_repeated, overlap.num_conflicts) == (1, 1)


CONTENT = b"an archive"
PACKAGE = PinnedPackage("some-thing", "1.0", "some_thing-1.0-py3-none-any.whl", "")
PINNED = PinnedPackage(
    PACKAGE.name, PACKAGE.version, PACKAGE.filename, hashlib.sha256(CONTENT).hexdigest()
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TASKFIT_CACHE", str(tmp_path))
    return tmp_path / "packages" / PACKAGE.filename


def pip_that(monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if content is not None:
            (Path(command[command.index("--dest") + 1]) / PACKAGE.filename).write_bytes(content)
        code = 0 if content is not None else 1
        return subprocess.CompletedProcess(command, code, "", "ERROR: no network")

    monkeypatch.setattr(subprocess, "run", run)


def test_a_package_is_fetched_once_and_checked(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip_that(monkeypatch, CONTENT)
    assert fetch_package(PINNED) == cache
    pip_that(monkeypatch, None)
    assert fetch_package(PINNED).read_bytes() == CONTENT


def test_a_wrong_hash_leaves_nothing_in_the_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip_that(monkeypatch, b"something else")
    with pytest.raises(DataError, match=f"expected {PINNED.sha256}"):
        fetch_package(PINNED)
    assert list(cache.parent.iterdir()) == []


def test_no_network_says_where_to_put_the_file(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip_that(monkeypatch, None)
    with pytest.raises(DataError, match=r"no network.*put the file some_thing"):
        fetch_package(PINNED)
    assert not cache.exists()


def test_real_cola_and_hans_have_their_official_sizes(shared_data: Path) -> None:
    cola = load_builtin("cola", folder=str(shared_data))
    assert len(cola.train) == 8551
    assert {name: len(found) for name, found in cola.evaluations.items()} == {
        "in_domain": 527,
        "out_of_domain": 516,
    }
    hans = load_builtin("hans", folder=str(shared_data))
    assert {e.label for e in hans.train} == {"entailment", "non-entailment"}
    assert Counter(e.label for e in hans.evaluations["hans_regenerated"])["entailment"] == 15000
    kinds = Counter((e.columns or {})["heuristic"] for e in hans.evaluations["hans_regenerated"])
    assert kinds == dict.fromkeys(("lexical_overlap", "subsequence", "constituent"), 10000)


def test_an_unknown_built_in_set_lists_those_there_are() -> None:
    with pytest.raises(DataError, match="there are: cola, mnli, mnli_hans, hans, sentiment"):
        load_builtin("cool", folder=None)
