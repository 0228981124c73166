"""`data.test_fraction`: an evaluation set held out once and for all, before anything is drawn."""

from pathlib import Path
from typing import Any

import pytest

import tiny
from taskfit.data.examples import Example
from taskfit.errors import DataError, SettingsError
from taskfit.runs.prepare import prepare_data
from taskfit.settings_base import merge_settings
from taskfit.settings_file import settings_from_dict


def held_out(path: Path, **changes: Any) -> dict[str, set[str]]:
    settings = {"data": {"train": str(path), "test_fraction": 0.3}, "method": {"name": "tfidf"}}
    merge_settings(settings, changes)
    found = prepare_data(settings_from_dict(settings))
    sets = {"train": found.train, "validation": found.validation, **found.evaluations}
    return {name: {e.texts["text"] for e in examples} for name, examples in sets.items()}


def test_a_held_out_test_set_is_stratified_and_the_same_for_every_seed_and_size(
    tmp_path: Path,
) -> None:
    path = tiny.write_csv(tmp_path / "train.csv", tiny.toy_examples(100))
    first = held_out(path)
    assert len(first["test"]) == 30
    good = sum(any(word in text for word in tiny.GOOD) for text in first["test"])
    assert good == 15
    for changes in ({"seed": 7}, {"data": {"num_train": 8}}, {"data": {"validation_fraction": 0}}):
        assert held_out(path, **changes)["test"] == first["test"]
    halves = [held_out(path, seed=s, data={"validation_fraction": 0.5}) for s in (0, 7)]
    assert halves[0]["validation"] != halves[1]["validation"]
    assert not first["test"] & (first["train"] | first["validation"])
    assert len(set.union(*first.values())) == 100


def test_all_copies_of_a_text_stand_on_one_side_of_the_held_out_test_set(tmp_path: Path) -> None:
    examples = tiny.toy_examples(40)
    copies = [Example(f"copy:{e.id}", e.texts, e.label) for e in examples[:20]]
    settings = settings_from_dict(
        {
            "data": {
                "train": str(tiny.write_csv(tmp_path / "train.csv", examples + copies)),
                "test_fraction": 0.3,
            }
        }
    )
    found = prepare_data(settings)
    assert found.overlap is not None
    assert "test" not in found.overlap.dropped_by_set


def test_a_held_out_test_set_that_cannot_be_is_refused(tmp_path: Path) -> None:
    path = tiny.write_csv(tmp_path / "train.csv", tiny.toy_examples(20))
    with pytest.raises(SettingsError, match="there is one of this name already"):
        held_out(path, data={"tests": {"test": str(path)}})
    few = tiny.write_csv(tmp_path / "few.csv", tiny.toy_examples(2))
    with pytest.raises(DataError, match="leaves no example for the evaluation set"):
        held_out(few)
