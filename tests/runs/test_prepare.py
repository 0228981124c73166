"""What is trained on, validated on and tested on never meets, and hangs on the seed alone."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from taskfit.data import Example
from taskfit.errors import DataError, SettingsError
from taskfit.runs.prepare import PreparedData, prepare_data
from taskfit.runs.rows import fingerprint
from taskfit.settings_file import settings_from_dict

TASK_FILE = """
name: toy
text: [text]
labels: [{name: bad}, {name: good}]
template: {line: 'Text: {text} Mood:{label}'}
num_demonstrations: 4
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a table of 60 rows, an evaluation set of 20, and a task file."""
    monkeypatch.chdir(tmp_path)
    tiny.write_csv(tmp_path / "train.csv", tiny.toy_examples(60))
    tiny.write_csv(tmp_path / "test.csv", tiny.toy_examples(20, offset=100))
    (tmp_path / "task.yaml").write_text(TASK_FILE)
    return tmp_path


def prepare(seed: int = 0, method: dict[str, Any] | None = None, **data: object) -> PreparedData:
    """Prepare `train.csv` and `test.csv`, or what is given instead."""
    given_data = {
        **{"train": "train.csv", "tests": {"new": "test.csv"}, "validation_fraction": 0.1},
        **data,
    }
    task = {"name": given_data.pop("task", None)}
    return prepare_data(
        settings_from_dict(
            {
                "seed": seed,
                "data": given_data,
                "task": task,
                "method": {"name": "label_words", **(method or {})},
            }
        )
    )


def texts_of(examples: list[Example]) -> set[str]:
    """Texts without the differences of case and white space that make no other text."""
    return {" ".join(e.texts["text"].casefold().split()) for e in examples}


def sides(data: PreparedData) -> dict[str, list[Example]]:
    return {
        "train": data.train,
        "validation": data.validation,
        "demonstrations": data.demonstrations,
        **{f"test {name}": found for name, found in data.evaluations.items()},
    }


def assert_disjoint(data: PreparedData) -> None:
    found = sides(data)
    for first in found:
        for second in found:
            if first != second:
                common = texts_of(found[first]) & texts_of(found[second])
                assert not common, f"{first} and {second} share {common}"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_row_of_the_table_has_one_place(folder: Path, seed: int) -> None:
    data = prepare(seed, validation_fraction=0.25)
    assert_disjoint(data)
    assert len(data.validation) == 15
    assert len(data.demonstrations) == data.task.num_demonstrations == 2
    together = [*data.train, *data.validation, *data.demonstrations]
    assert sorted(e.id for e in together) == sorted(f"train.csv:{i}" for i in range(2, 62))
    assert len(data.evaluations["new"]) == 20
    assert data.overlap is not None
    assert data.overlap.num_dropped == 0


@pytest.mark.parametrize("seed", range(4))
def test_a_text_that_stands_several_times_stays_on_one_side(folder: Path, seed: int) -> None:
    rows = tiny.toy_examples(30)
    louder = [replace(e, texts={"text": e.texts["text"].upper() + "  "}) for e in rows]
    tiny.write_csv(folder / "train.csv", [*rows, *louder, *rows])
    data = prepare(seed, validation_fraction=0.2)
    assert_disjoint(data)
    assert data.validation
    assert {e.label for e in data.train} == {"good", "bad"}
    assert data.overlap is not None
    assert data.overlap.dropped_by_set["validation"] == data.overlap.num_dropped > 0


@pytest.mark.parametrize("seed", range(4))
def test_a_class_of_one_repeated_text_stays_in_training(folder: Path, seed: int) -> None:
    rare = Example("x", {"text": "Of its own kind."}, "rare")
    tiny.write_csv(folder / "train.csv", [*tiny.toy_examples(20), rare, rare, rare])
    data = prepare(seed, method={"num_demonstrations": 0}, validation_fraction=0.5)
    assert_disjoint(data)
    assert {e.label for e in data.train} == {"good", "bad", "rare"}


def test_texts_of_evaluation_sets_leave_training_and_are_counted(folder: Path) -> None:
    tiny.write_csv(folder / "test.csv", tiny.toy_examples(20, offset=50))  # ten of them trained on
    tiny.write_csv(folder / "dev.csv", tiny.toy_examples(5))
    data = prepare(validation="dev.csv")
    assert_disjoint(data)
    assert data.overlap is not None
    assert data.overlap.dropped_by_set == {"new": 10, "validation": 5}
    assert len(data.train) + len(data.demonstrations) == 60 - 15
    assert len(data.validation) == 5


@pytest.mark.parametrize("name", ["validation", "train", "demonstrations"])
def test_an_evaluation_set_may_have_the_name_of_a_part(folder: Path, name: str) -> None:
    tiny.write_csv(folder / "dev.csv", tiny.toy_examples(5))
    tiny.write_csv(folder / "test.csv", tiny.toy_examples(20, offset=50))
    data = prepare(validation="dev.csv", tests={name: "test.csv"})
    assert_disjoint(data)
    assert data.overlap is not None
    assert data.overlap.num_dropped == sum(data.overlap.dropped_by_set.values()) == 15
    # Each of the four sets has its own fingerprint, so a change of any is noticed on resuming.
    for found in sides(data).values():
        assert fingerprint(found) in data.fingerprint.values()


def test_the_same_seed_gives_the_same_parts_and_another_seed_others(folder: Path) -> None:
    first, again, other = prepare(3), prepare(3), prepare(4)
    assert first == again
    assert texts_of(first.validation) != texts_of(other.validation)
    assert texts_of(first.demonstrations) != texts_of(other.demonstrations)
    assert first.evaluations == other.evaluations


@pytest.mark.parametrize("seed", [0, 5])
def test_draws_are_nested_and_the_held_out_part_does_not_depend_on_them(
    folder: Path, seed: int
) -> None:
    none = {"num_demonstrations": 0}
    drawn = [prepare(seed, method=none, num_train=n) for n in (2, 7, 20, 54)]
    for smaller, larger in pairwise(drawn):
        assert texts_of(smaller.train) < texts_of(larger.train)
        assert smaller.validation == larger.validation
    assert [len(data.train) for data in drawn] == [2, 7, 20, 54]
    shots = prepare(seed, method=none, shots_per_class=6)
    assert Counter(e.label for e in shots.train) == {"good": 6, "bad": 6}


@pytest.mark.parametrize("how", ["fixed", "random", "balanced"])
@pytest.mark.parametrize("num", [0, 1, 5])
def test_demonstrations_are_taken_out_of_the_drawn_training_set(
    folder: Path, how: str, num: int
) -> None:
    without = prepare(method={"num_demonstrations": 0}, num_train=12)
    data = prepare(method={"num_demonstrations": num, "demonstrations": how}, num_train=12)
    assert len(data.demonstrations) == num
    assert len(data.train) == 12 - num
    assert texts_of(data.train) | texts_of(data.demonstrations) == texts_of(without.train)


def test_a_copy_of_a_demonstration_is_not_trained_on(folder: Path) -> None:
    rows = tiny.toy_examples(6)
    tiny.write_csv(folder / "train.csv", [*rows, *rows, *rows])
    data = prepare(method={"num_demonstrations": 2}, validation_fraction=0.0)
    assert_disjoint(data)
    assert len(data.train) == 12


def test_fewer_test_examples_are_a_draw_that_no_seed_changes(folder: Path) -> None:
    full, first, other = prepare(), prepare(max_test=8), prepare(9, max_test=8)
    assert len(first.evaluations["new"]) == 8
    assert first.evaluations == other.evaluations
    assert Counter(e.label for e in first.evaluations["new"]) == {"good": 4, "bad": 4}
    assert texts_of(first.evaluations["new"]) < texts_of(full.evaluations["new"])
    assert prepare(max_test=500).evaluations == full.evaluations


def test_a_task_file_with_tests_alone_needs_no_training_data(folder: Path) -> None:
    data = prepare(train=None, task="task.yaml", method={"num_demonstrations": 0})
    assert (data.train, data.validation, data.demonstrations, data.overlap) == ([], [], [], None)
    assert len(data.evaluations["new"]) == 20


def test_every_part_has_a_fingerprint(folder: Path) -> None:
    data = prepare()
    assert data.fingerprint.keys() == {"train", "validation", "demonstrations", "new"}
    assert data.fingerprint["train"] == fingerprint(data.train)
    assert len(set(data.fingerprint.values())) == 4


examples = st.builds(
    Example,
    id=st.text(max_size=6),
    texts=st.dictionaries(st.sampled_from("ab"), st.text(max_size=8), min_size=1),
    label=st.none() | st.text(min_size=1, max_size=4),
)


@given(rows=st.lists(examples, min_size=1, max_size=5), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_fingerprint_changes_with_one_character_and_with_nothing_less(
    rows: list[Example], data: st.DataObject
) -> None:
    before = fingerprint(rows)
    copies = [Example(e.id, dict(e.texts), e.label) for e in rows]
    assert fingerprint(copies) == before
    at = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.sampled_from(sorted(rows[at].texts)))
    text = rows[at].texts[column]
    place = data.draw(st.integers(0, len(text)))
    added = data.draw(st.characters(codec="utf-8"))
    longer = {**rows[at].texts, column: text[:place] + added + text[place:]}
    for changed in (
        replace(rows[at], texts=longer),
        replace(rows[at], label=(rows[at].label or "") + added),
        replace(rows[at], id=rows[at].id + added),
        replace(rows[at], target={"a": 0.75, "b": 0.25}),
    ):
        assert fingerprint([*rows[:at], changed, *rows[at + 1 :]]) != before
    assert fingerprint([*rows, rows[0]]) != before
    half, most = ([replace(rows[at], target={"a": p, "b": 1 - p})] for p in (0.5, 0.75))
    assert fingerprint(half) != fingerprint(most)


def test_a_fingerprint_tells_the_order_of_rows() -> None:
    rows = tiny.toy_examples(3)
    assert fingerprint(rows) != fingerprint(rows[::-1])
    assert fingerprint([]) != fingerprint(rows[:1])


@pytest.mark.parametrize(
    ("data", "kind", "parts"),
    [
        (
            {"num_train": 5, "shots_per_class": 2},
            SettingsError,
            ["data.num_train or data.shots_per_class, not both"],
        ),
        ({"train": None, "tests": {}}, SettingsError, ["No data", "taskfit fit mine.csv", "cola"]),
        ({"train": None}, SettingsError, ["No data", "--task"]),
        (
            {"train": None, "tests": {}, "task": "task.yaml"},
            SettingsError,
            ["No data", "data.train"],
        ),
        (
            {"tests": {"same": "train.csv"}},
            DataError,
            ["Every training example also stands in an evaluation set", "the same files"],
        ),
        (
            {"task": "task.yaml", "text": ["sentence"]},
            SettingsError,
            ["Task toy reads the columns text", "--text names sentence", "Leave out --text"],
        ),
        (
            {"task": "task.yaml", "text": ["sentence"], "train": None},
            SettingsError,
            ["Task toy reads the columns text", "--text names sentence"],
        ),
        ({"num_train": 55}, DataError, ["55 examples are asked for, but there are 54"]),
        (
            {"shots_per_class": 30},
            DataError,
            ["30 examples of each class are asked for", "bad has 27", "good has 27"],
        ),
        (
            {"train": None, "task": "task.yaml"},
            DataError,
            ["4 demonstrations are asked for", "no training data", "num_demonstrations=0"],
        ),
        (
            {"num_train": 3, "task": "task.yaml"},
            DataError,
            ["4 demonstrations are asked for", "only 3 labelled examples"],
        ),
        ({"label": "mood"}, DataError, ["no column 'mood'", "text, label"]),
        ({"text": ["label"]}, DataError, ["Which column holds the labels", "--label"]),
        ({"tests": {"new": "absent.csv"}}, DataError, ["absent.csv"]),
    ],
)
def test_what_cannot_be_prepared_says_what_and_what_to_do(
    folder: Path, data: dict[str, Any], kind: type[Exception], parts: list[str]
) -> None:
    with pytest.raises(kind) as caught:
        prepare(**data)
    for part in parts:
        assert part in str(caught.value)


def test_text_that_agrees_with_the_task_is_welcome(folder: Path) -> None:
    assert prepare(task="task.yaml", text=["text"]) == prepare(task="task.yaml")


def test_labels_that_are_not_the_tasks_name_their_rows_in_every_part(folder: Path) -> None:
    odd = [*tiny.toy_examples(4, offset=200), Example("x", {"text": "So so."}, "meh")]
    tiny.write_csv(folder / "odd.csv", odd)
    for part in ({"train": "odd.csv"}, {"validation": "odd.csv"}, {"tests": {"new": "odd.csv"}}):
        with pytest.raises(DataError, match=r"1 row with an unknown label: 'meh' \(odd.csv:6\)"):
            prepare(task="task.yaml", **part)


def test_a_table_of_one_class_is_refused_before_anything_is_split(folder: Path) -> None:
    tiny.write_csv(folder / "train.csv", [e for e in tiny.toy_examples(20) if e.label == "good"])
    for task in (None, "task.yaml"):
        with pytest.raises(DataError, match="All 10 training examples have the label 'good'"):
            prepare(task=task)
