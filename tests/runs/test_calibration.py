"""Calibration, prediction sets and slices of whole runs, on a noisy table and TF-IDF."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tiny
from taskfit.data import Example
from taskfit.errors import DataError, SettingsError
from taskfit.report.pages import write_page
from taskfit.runs import predict as predict_module
from taskfit.runs.calibration import ENOUGH_TO_SPLIT, hold_out
from taskfit.runs.classifier import Classifier
from taskfit.runs.evaluate import evaluate_file
from taskfit.runs.fit import FittedRun, fit
from taskfit.runs.predict import predict_file
from taskfit.screen import SilentScreen
from taskfit.settings import RunSettings
from taskfit.settings_file import load_settings
from taskfit.stats.conformal import achieved_coverage
from tiny_screens import NotingScreen


def noisy_table(path: Path, count: int, *, seed: int, **more: str) -> Path:
    """Toy sentences of which one in five has the wrong label, with a column to cut by."""
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        good = generator.random() < 0.5
        word = generator.choice(tiny.GOOD if good else tiny.BAD)
        said = good != (generator.random() < 0.2)
        filler = " ".join(generator.choice(list("abcdefghij"), 4))
        rows.append(
            {
                "text": f"{path.stem} {i}: {word} {filler}",
                "label": "good" if said else "bad",
                "place": ("north", "south")[i % 2],
                **more,
            }
        )
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def settings_for(folder: Path, *overrides: str, num_train: int = 700) -> RunSettings:
    train = noisy_table(folder / "train.csv", num_train, seed=0)
    test = noisy_table(folder / "test.csv", 500, seed=1)
    flags = {
        "data": {"train": str(train), "text": ["text"], "tests": {"new": str(test)}},
        "method": {"name": "tfidf"},
    }
    return load_settings(
        flags=flags, overrides=["data.validation_fraction=0.4", "seed=3", *overrides]
    )


BOTH = ("calibration.temperature=true", "calibration.prediction_sets=true")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FittedRun]:
    """A folder with tables and a run that is calibrated in both ways; leave it as it is."""
    folder = tmp_path_factory.mktemp("fitted")
    return folder, fit(settings_for(folder, *BOTH), folder / "run", baselines=False)


@pytest.fixture
def calibrated(fitted: tuple[Path, FittedRun], tmp_path: Path) -> FittedRun:
    """The same, copied to where a test may change it."""
    shutil.copytree(fitted[0], tmp_path, dirs_exist_ok=True)
    return fitted[1]


def test_calibration_comes_back_from_disk_and_the_answers_are_those_without(tmp_path: Path) -> None:
    plain = fit(settings_for(tmp_path), tmp_path / "plain", baselines=False)
    fitted = fit(settings_for(tmp_path, BOTH[0]), tmp_path / "run", baselines=False)
    found = fitted.result.details["calibration"]
    assert found["temperature"] != 1
    assert found["log_loss_after"] < found["log_loss_before"]
    before, after = (run.result.evaluations["new"] for run in (plain, fitted))
    assert before.accuracy == after.accuracy
    assert before.log_loss != after.log_loss
    loaded = Classifier.load(tmp_path / "run", device="cpu")
    examples = tiny.toy_examples(10)
    np.testing.assert_array_equal(
        loaded.probabilities(examples), fitted.fitted.probabilities(examples)
    )
    assert loaded.only.calibration.temperature == found["temperature"]
    assert "calibration" not in plain.result.details


def test_evaluate_predict_and_fit_apply_the_same_temperature(
    calibrated: FittedRun, tmp_path: Path
) -> None:
    stored = pd.read_parquet(tmp_path / "run" / "predictions" / "new.parquet")
    options = {"encoding": "utf-8", "device": "cpu", "screen": SilentScreen()}
    predict_file(tmp_path / "run", str(tmp_path / "test.csv"), tmp_path / "out.parquet", **options)
    predicted = pd.read_parquet(tmp_path / "out.parquet")
    np.testing.assert_allclose(predicted["p_good"], stored["p_good"])
    again = evaluate_file(tmp_path / "run", str(tmp_path / "test.csv"), name="again", **options)
    assert again["again"].log_loss == pytest.approx(calibrated.result.evaluations["new"].log_loss)
    details = json.loads((tmp_path / "run" / "result.json").read_text())["details"]
    assert details["coverage"]["again"] == details["coverage"]["new"]


def test_prediction_sets_keep_their_coverage_on_new_examples_of_the_same_kind(
    calibrated: FittedRun, tmp_path: Path
) -> None:
    details = calibrated.result.details
    assert details["calibration"]["held_out_is_fresh"]
    assert details["calibration"]["num_held_out"] == 140
    for level in details["coverage"]["new"]:
        # The threshold from 140 examples is itself uncertain by about 0.03.
        assert level["achieved"] > level["coverage"] - 0.09
        assert 1 <= level["mean_size"] <= 2
    found = predict_file(
        *(tmp_path / "run", str(tmp_path / "test.csv"), tmp_path / "out.csv"),
        encoding="utf-8",
        device="cpu",
        screen=SilentScreen(),
        coverage=0.9,
    )
    table = pd.read_csv(tmp_path / "out.csv")
    gold = pd.read_csv(tmp_path / "test.csv")["label"]
    sets = [set(value.split("|")) for value in table["prediction_set"]]
    held = np.mean([label in chosen for label, chosen in zip(gold, sets, strict=True)])
    recorded = next(x for x in details["coverage"]["new"] if x["coverage"] == 0.9)
    assert held == pytest.approx(recorded["achieved"])
    assert [len(chosen) for chosen in sets] == table["prediction_set_size"].tolist()
    assert (
        sum(found.set_sizes["prediction_set_size"].values())
        == found.num_rows
        == sum(found.counts["predicted"].values())
        == 500
    )


def test_per_class_sets_hold_for_each_label(calibrated: FittedRun, tmp_path: Path) -> None:
    classifier = calibrated.fitted
    table = pd.read_csv(tmp_path / "test.csv")
    examples = [Example("", {"text": t}, y) for t, y in zip(table.text, table.label, strict=True)]
    sets = classifier.only.prediction_sets(classifier.probabilities(examples), 0.8, per_class=True)
    gold = classifier.only.gold(examples)
    for label in (0, 1):
        found = achieved_coverage(sets[gold == label], gold[gold == label], coverage=0.8)
        assert found.achieved > 0.68


def test_large_validation_sets_are_cut_in_two_and_small_ones_are_not() -> None:
    settings = load_settings(overrides=[BOTH[1]])
    examples = tiny.toy_examples(ENOUGH_TO_SPLIT)
    cut = hold_out(examples, settings)
    assert cut.is_fresh
    ids = [{e.id for e in part} for part in (cut.validation, cut.for_sets)]
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == {e.id for e in examples}
    small = hold_out(examples[1:], settings)
    assert (small.is_fresh, small.validation, small.for_sets) == (False, examples[1:], examples[1:])
    off = hold_out(examples, load_settings())
    assert (off.is_fresh, off.validation) == (False, examples)


def test_too_few_validation_examples_are_said_once_and_change_nothing(tmp_path: Path) -> None:
    notes = NotingScreen()
    settings = settings_for(tmp_path, *BOTH, "data.max_validation=12")
    fitted = fit(settings, tmp_path / "run", baselines=False, screen=notes)
    assert fitted.fitted.only.calibration.temperature == 1
    assert len([said for said in notes.notes if "temperature stays 1" in said]) == 1
    assert len([said for said in notes.notes if "also chose weights" in said]) == 1
    with pytest.raises(SettingsError, match=r"at least 19 held-out examples; there are 12"):
        fitted.fitted.only.set_limit(0.95)
    none = settings_for(tmp_path, *BOTH, "data.validation_fraction=0")
    bare = fit(none, tmp_path / "bare", baselines=False, screen=notes)
    assert len([said for said in notes.notes if "no validation set" in said]) == 1
    assert "calibration" not in bare.result.details


def test_prediction_sets_are_refused_where_there_can_be_none(tmp_path: Path) -> None:
    plain = fit(settings_for(tmp_path, BOTH[0]), tmp_path / "run", baselines=False)
    with pytest.raises(SettingsError, match=r"calibration\.prediction_sets=true"):
        plain.fitted.only.set_limit(0.9)


def test_a_killed_prediction_goes_on_and_ends_as_if_it_had_not_been_killed(
    calibrated: FittedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_module, "CHUNK", 60)
    original, asked = Classifier.probabilities, []

    def predict(name: str, *, until: int = 99, **more: object) -> NotingScreen:
        asked.clear()

        def counted(self: Classifier, examples: list[Example], **options: object) -> np.ndarray:
            if len(asked) == until:
                raise KeyboardInterrupt
            asked.append(len(examples))
            return original(self, examples, **options)

        monkeypatch.setattr(Classifier, "probabilities", counted)
        notes, source, out = NotingScreen(), str(tmp_path / "test.csv"), tmp_path / name
        options = {"encoding": "utf-8", "device": "cpu", "screen": notes, **more}
        predict_file(tmp_path / "run", source, out, **options)
        return notes

    predict("whole.csv")
    assert asked == [60] * 8 + [20]
    with pytest.raises(KeyboardInterrupt):
        predict("out.csv", until=5)
    assert not (tmp_path / "out.csv").exists()
    notes = predict("out.csv")
    assert asked == [60] * 3 + [20]
    assert "5 of 9 parts are finished" in notes.notes[0]
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not (tmp_path / "out.csv.partial").exists()

    with pytest.raises(KeyboardInterrupt):
        predict("out.csv", until=5)
    notes = predict("out.csv", coverage=0.9)
    assert len(asked) == 9
    assert "options" in notes.notes[0]
    assert "prediction_set" in pd.read_csv(tmp_path / "out.csv")

    with pytest.raises(KeyboardInterrupt):
        predict("out.csv", until=5)
    noisy_table(tmp_path / "test.csv", 500, seed=9)
    assert "source" in predict("out.csv").notes[0]
    assert len(asked) == 9


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_chunks_are_joined_to_one_table_in_every_format(
    calibrated: FittedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    out = {size: tmp_path / f"out{size}{ending}" for size in (150, 5000)}
    for size, path in out.items():
        monkeypatch.setattr(predict_module, "CHUNK", size)
        source = str(tmp_path / "test.csv")
        predict_file(
            tmp_path / "run", source, path, encoding="utf-8", device="cpu", screen=SilentScreen()
        )
    if ending == ".parquet":
        pd.testing.assert_frame_equal(pd.read_parquet(out[150]), pd.read_parquet(out[5000]))
    else:
        assert out[150].read_bytes() == out[5000].read_bytes()


def test_a_folder_of_something_else_is_never_thrown_away(
    calibrated: FittedRun, tmp_path: Path
) -> None:
    (tmp_path / "out.csv.partial").mkdir()
    (tmp_path / "out.csv.partial" / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="holds something else"):
        predict_file(
            *(tmp_path / "run", str(tmp_path / "test.csv"), tmp_path / "out.csv"),
            encoding="utf-8",
            device="cpu",
            screen=SilentScreen(),
        )
    assert (tmp_path / "out.csv.partial" / "mine.txt").read_text() == "keep"


def test_slices_of_a_fit_and_of_an_evaluation_agree(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "data.slices=[place, gold]")
    fit(settings, tmp_path / "run", report=write_page)
    stored = pd.read_parquet(tmp_path / "run" / "predictions" / "new.parquet")
    evaluate_file(
        *(tmp_path / "run", str(tmp_path / "test.csv")),
        name="again",
        encoding="utf-8",
        device="cpu",
        screen=SilentScreen(),
        by=["place", "gold"],
    )
    slices = pd.read_csv(tmp_path / "run" / "slices.csv")
    new, again = (
        slices[slices.evaluation == name].drop(columns="evaluation").reset_index(drop=True)
        for name in ("new", "again")
    )
    pd.testing.assert_frame_equal(new, again)
    by_place = new[new.by == "place"].set_index("value")
    right = stored["gold"] == stored["predicted"]
    for place, rows in right.groupby(stored["place"]):
        assert by_place.loc[place, "accuracy"] == pytest.approx(rows.mean())
    assert set(new.by) == {"place", "gold", "place x gold"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "north x good" in page


def test_columns_that_are_not_there_or_cut_too_finely_are_refused_before_training(
    tmp_path: Path,
) -> None:
    with pytest.raises(DataError, match=r"no evaluation set has a column 'plaice'.*Did you mean"):
        fit(settings_for(tmp_path, "data.slices=[plaice]"), tmp_path / "a")
    settings = settings_for(tmp_path, "data.slices=[row]")
    many = pd.concat([pd.read_csv(tmp_path / "test.csv")] * 2).assign(row=range(1000))
    many.to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(DataError, match="gives 1,000 slices"):
        fit(settings, tmp_path / "b")


def test_text_columns_called_like_ours_lose_nothing(tmp_path: Path) -> None:
    train = noisy_table(tmp_path / "train.csv", 80, seed=0, text_gold="mine")
    names = {"text": "gold", "place": "id"}
    for path in (train, noisy_table(tmp_path / "test.csv", 20, seed=1, text_gold="mine")):
        pd.read_csv(path).rename(columns=names).to_csv(path, index=False)
    flags = {
        "data": {
            **{"train": str(train), "text": ["gold", "text_gold"]},
            **{"tests": {"new": str(tmp_path / "test.csv")}, "slices": ["id"]},
        },
        "method": {"name": "tfidf"},
    }
    notes = NotingScreen()
    fit(load_settings(flags=flags), tmp_path / "run", screen=notes, baselines=False)
    table = pd.read_parquet(tmp_path / "run" / "predictions" / "new.parquet")
    source = pd.read_csv(tmp_path / "test.csv")
    assert table["text_text_gold"].tolist() == source["gold"].tolist()
    assert table["text_gold"].tolist() == source["text_gold"].tolist()
    assert table["text_id"].tolist() == source["id"].tolist()
    assert table["gold"].tolist() == source["label"].tolist()
    assert any("gold is called text_text_gold" in said for said in notes.notes)


@pytest.mark.parametrize("name", ["a/b", "a\\b", ".hidden", ""])
def test_a_set_that_no_file_can_be_called_after_is_refused_early(tmp_path: Path, name: str) -> None:
    flags = {"data": {"train": "absent.csv", "tests": {name: "absent.csv"}}}
    with pytest.raises(SettingsError, match="cannot be called"):
        load_settings(flags=flags)
    with pytest.raises(SettingsError, match="cannot be called"):
        evaluate_file(
            *(tmp_path, "absent.csv"),
            name=name,
            encoding="utf-8",
            device="cpu",
            screen=SilentScreen(),
        )
