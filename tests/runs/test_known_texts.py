"""What was trained on, measured before, or lost on the way is told, each in one line."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tiny
from taskfit.data import Example
from taskfit.runs.data_notes import joined_note, lost_classes_note, unseparated_note
from taskfit.runs.evaluate import evaluate_file
from taskfit.runs.file_names import TEXTS_FILE
from taskfit.runs.fit import fit
from taskfit.runs.known_texts import seen_note
from taskfit.runs.prepare import prepare_data
from taskfit.runs.records import RunResult
from taskfit.settings import DataSettings
from taskfit.settings_file import settings_from_dict
from taskfit.tasks import task_from_columns
from tiny_screens import NotingScreen


def tfidf(folder: Path, **sections: Any) -> Path:
    data = {"train": str(folder / "train.csv"), **sections.pop("data", {})}
    settings = settings_from_dict({"data": data, "method": {"name": "tfidf"}, **sections})
    fit(settings, folder / "run")
    return folder / "run"


def evaluated(run: Path, file: Path, name: str) -> tuple[list[str], list[str]]:
    """The sets that an evaluation measured, and what it told."""
    screen = NotingScreen()
    found = evaluate_file(run, str(file), name=name, encoding="utf-8", device="cpu", screen=screen)
    return list(found), screen.notes


def test_texts_that_were_trained_on_are_counted_whatever_their_case(tmp_path: Path) -> None:
    examples = tiny.toy_examples(40)
    tiny.write_csv(tmp_path / "train.csv", examples)
    held_out = tiny.write_csv(tmp_path / "held.csv", tiny.toy_examples(8, offset=50))
    run = tfidf(tmp_path, data={"validation": str(held_out)})
    loud = [Example(e.id, {"text": f" {e.texts['text'].upper()} "}, e.label) for e in examples[:5]]
    mixed = tiny.write_csv(tmp_path / "mixed.csv", [*loud, *tiny.toy_examples(7, offset=90)])
    assert evaluated(run, mixed, "mixed")[1] == [
        "5 of 12 texts of mixed were trained on: what is measured on them says little about new "
        "texts"
    ]
    _, (note,) = evaluated(run, held_out, "held")
    assert note.startswith("0 of 8 texts of held were trained on, 8 chose or calibrated the model")
    new = tiny.write_csv(tmp_path / "new.csv", tiny.toy_examples(6, offset=70))
    assert evaluated(run, new, "new")[1] == []
    (run / TEXTS_FILE).unlink()  # as of runs of earlier versions
    assert seen_note(run, examples, name="x") is None


def test_another_set_of_the_same_name_gets_a_name_of_its_own(tmp_path: Path) -> None:
    tiny.write_csv(tmp_path / "train.csv", tiny.toy_examples(40))
    sets = [
        tiny.write_csv(tmp_path / f"{i}.csv", tiny.toy_examples(6 + i, offset=60 + i))
        for i in range(3)
    ]
    run = tfidf(tmp_path, data={"tests": {"test": str(sets[0])}})
    names = [evaluated(run, file, "test")[0][0] for file in (*sets, sets[1], sets[0])]
    assert names == ["test", "test-2", "test-3", "test-2", "test"]
    result = RunResult.load(run)
    counts = {name: e.num_examples for name, e in result.evaluations.items()}
    assert counts == {"test": 6, "test-2": 7, "test-3": 8}
    assert len(pd.read_parquet(run / "predictions" / "test-2.parquet")) == 7
    assert evaluated(run, sets[2], "test")[1] == [
        "another set was evaluated as test; this one is called test-3 (--name gives it another "
        "name)"
    ]


def test_a_run_is_evaluated_with_its_own_separator_of_labels(tmp_path: Path) -> None:
    table = "text,label\n" + "".join(
        f"word{i % 3} text {i},{('a;b', 'b', 'a')[i % 3]}\n" for i in range(30)
    )
    (tmp_path / "train.csv").write_text(table)
    run = tfidf(tmp_path, data={"label_separator": ";"}, task={"multi_label": True})
    found, _ = evaluated(run, tmp_path / "train.csv", "again")
    assert found == ["again"]


def test_a_separator_that_stands_nowhere_is_told_with_the_one_that_does(tmp_path: Path) -> None:
    rows = [Example(str(i), {"text": "t"}, name, {name: 1.0}) for i, name in enumerate("ab")]
    both = Example("2", {"text": "t"}, "a,b", {"a,b": 1.0})
    kinds = {"text": ["text"], "label_column": "label", "labels": ["a", "b", "a,b"]}
    task = task_from_columns(name="x", **kinds)  # type: ignore[arg-type]
    assert list(unseparated_note(task, [*rows, both], DataSettings())) == []
    several = task_from_columns(name="x", **kinds)  # type: ignore[arg-type]
    object.__setattr__(several, "multi_label", True)
    (note,) = unseparated_note(several, [*rows, both], DataSettings())
    assert "'|' stands in no label" in note
    assert "',' stands in 1 of 3 labels" in note
    split = Example("3", {"text": "t"}, "a|b", {"a": 1.0, "b": 1.0})
    assert list(unseparated_note(several, [*rows, split], DataSettings())) == []


@pytest.mark.parametrize("num_train", [2, 8])
def test_classes_that_a_draw_leaves_out_are_named(tmp_path: Path, num_train: int) -> None:
    rows = [Example(f"{i}", {"text": f"text {i}"}, "abcdefgh"[i % 8]) for i in range(40)]
    tiny.write_csv(tmp_path / "train.csv", rows)
    data = {"train": str(tmp_path / "train.csv"), "num_train": num_train}
    settings = settings_from_dict({"data": data, "method": {"name": "tfidf"}})
    notes = "\n".join(prepare_data(settings).notes)
    assert ("the draw of 2 of 40 texts leaves none of" in notes) == (num_train == 2)
    assert ("and 1 more: nothing is learned about them" in notes) == (num_train == 2)
    assert list(lost_classes_note(rows, rows)) == []


def test_classes_that_are_several_labels_joined_are_told() -> None:
    found = [Example(str(i), {"text": "t"}, label) for i, label in enumerate(("a", "b", "a; b"))]
    assert "'a; b' is several labels" in str(joined_note(found))
    assert joined_note(found[:2]) is None
