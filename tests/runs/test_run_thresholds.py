"""Thresholds per label of whole runs: chosen, kept, and the same for every reader."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from taskfit.data import Example
from taskfit.errors import SettingsError
from taskfit.estimator import TextClassifier
from taskfit.report.pages import write_page
from taskfit.runs.classifier import FILE, Classifier
from taskfit.runs.cross_validation import folds_of
from taskfit.runs.evaluate import evaluate_file
from taskfit.runs.fit import FittedRun, fit
from taskfit.runs.predict import predict_file
from taskfit.screen import SilentScreen
from taskfit.serve.engine import load_engine
from taskfit.serve.work import TextsRequest
from taskfit.settings import RunSettings
from taskfit.settings_file import load_settings
from taskfit.stats.thresholds import fit_thresholds
from tiny_screens import NotingScreen

WORDS = {"rare": "ruby", "seldom": "slate", "usual": "umber"}
SHARES = (0.08, 0.2, 0.4)
QUIET = {"encoding": "utf-8", "device": "cpu", "screen": SilentScreen()}


def several_table(path: Path, count: int, *, seed: int) -> Path:
    """Texts whose labels hang on a word each; one word in eight is missing, one is there alone."""
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        holds = generator.random(3) < SHARES
        said = holds != (generator.random(3) < 0.12)
        words = [word for word, there in zip(WORDS.values(), said, strict=True) if there]
        filler = generator.choice(list("abcdefghij"), 4)
        label = "|".join(name for name, there in zip(WORDS, holds, strict=True) if there)
        rows.append({"text": f"{path.stem} {i} {' '.join([*words, *filler])}", "label": label})
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def settings_of(folder: Path, *overrides: str, rows: int = 400, tested: bool = True) -> RunSettings:
    test = str(several_table(folder / "test.csv", 150, seed=1))
    flags = {
        "data": {
            "train": str(several_table(folder / "train.csv", rows, seed=0)),
            "text": ["text"],
            "tests": {"new": test} if tested else {},
        },
        "task": {"multi_label": True},
        "method": {"name": "tfidf"},
    }
    return load_settings(flags=flags, overrides=["seed=3", *overrides])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FittedRun]:
    """A folder with tables and a run with a temperature and thresholds for F1; leave it alone."""
    folder = tmp_path_factory.mktemp("fitted")
    given = settings_of(
        folder,
        "calibration.temperature=true",
        "calibration.thresholds=f1",
        "data.validation_fraction=0.3",
    )
    return folder, fit(given, folder / "run", report=write_page)


@pytest.fixture
def folder(fitted: tuple[Path, FittedRun], tmp_path: Path) -> Path:
    """The same, copied to where a test may change it."""
    shutil.copytree(fitted[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def answers(table: pd.DataFrame) -> list[str]:
    return table["predicted"].fillna("").tolist()


def test_all_readers_of_a_run_give_the_same_labels(
    fitted: tuple[Path, FittedRun], folder: Path
) -> None:
    run, result = folder / "run", fitted[1].result
    values = fitted[1].fitted.only.thresholds
    assert (values != 0.5).all()
    stored = pd.read_parquet(run / "predictions" / "new.parquet")
    names = fitted[1].fitted.task.label_names
    probabilities = stored[[f"p_{name}" for name in names]].to_numpy()
    by_hand = [
        "|".join(sorted(n for n, p, t in zip(names, row, values, strict=True) if p >= t))
        for row in probabilities
    ]
    assert answers(stored) == by_hand
    from_half = [
        "|".join(sorted(n for n, p in zip(names, row, strict=True) if p >= 0.5))
        for row in probabilities
    ]
    assert by_hand != from_half

    predict_file(run, str(folder / "test.csv"), folder / "out.csv", **QUIET)
    assert answers(pd.read_csv(folder / "out.csv")) == by_hand
    again = evaluate_file(run, str(folder / "test.csv"), name="again", **QUIET)["again"]
    assert again == result.evaluations["new"]
    right = stored["gold"] == stored["predicted"]
    assert again.accuracy == pytest.approx(right.mean())

    texts = pd.read_csv(folder / "test.csv")["text"].tolist()
    told = TextClassifier.load(run).predict(texts)
    classes = TextClassifier.load(run).classes_
    assert ["|".join(sorted(classes[row == 1])) for row in told] == by_hand

    engine = load_engine({"mine": run}, base=None, device="cpu")
    (card,) = engine.models()
    (served,) = engine.score([engine.encode(TextsRequest("mine", texts))])
    assert ["|".join(card.given(row["label"])) for row in served.probabilities] == by_hand


def test_a_record_and_a_page_hold_thresholds_and_what_they_change(
    fitted: tuple[Path, FittedRun], folder: Path
) -> None:
    result = json.loads((folder / "run" / "result.json").read_text())
    found = result["details"]["thresholds"]
    assert (found["goal"], found["num_examples"]) == ("f1", 120)
    assert list(found["by_label"].values()) == fitted[1].fitted.only.thresholds.tolist()
    new = found["sets"]["new"]
    assert new["with"]["macro_f1"] == pytest.approx(result["evaluations"]["new"]["macro_f1"])
    assert new["with"]["macro_f1"] > new["without"]["macro_f1"]
    rows = {row["name"]: row for row in result["details"]["baselines"]["new"]}
    assert rows["this run, labels from 0.5"]["macro_f1"] == pytest.approx(
        new["without"]["macro_f1"]
    )
    # What it is held against gives labels from one half on: the same method on more labels.
    assert rows["tfidf"]["macro_f1"] < new["with"]["macro_f1"]
    page = " ".join((folder / "run" / "report.html").read_text().split())
    assert "chosen for F1 on 120 validation texts" in page
    for value in found["by_label"].values():
        assert f"{value:.3f}" in page


def test_the_temperature_comes_first(fitted: tuple[Path, FittedRun], folder: Path) -> None:
    classifier = Classifier.load(folder / "run", device="cpu")
    assert classifier.only.calibration.temperature != 1
    plain = fit(
        settings_of(folder, "calibration.thresholds=f1", "data.validation_fraction=0.3"),
        folder / "plain",
        baselines=False,
    ).fitted
    examples = [Example("", {"text": text}) for text in pd.read_csv(folder / "test.csv")["text"]]
    raw, scaled = (c.probabilities(examples) for c in (plain, classifier))
    assert not np.allclose(raw, scaled)
    assert not np.allclose(plain.only.thresholds, classifier.only.thresholds)


@pytest.mark.parametrize("goal", ["precision", "recall"])
def test_a_wanted_precision_or_recall_is_kept_or_said_not_to_be(tmp_path: Path, goal: str) -> None:
    notes = NotingScreen()
    given = (f"calibration.thresholds={goal}", "calibration.target=0.96")
    settings = settings_of(tmp_path, *given, "data.validation_fraction=0.4", rows=500)
    found = fit(settings, tmp_path / "run", baselines=False, screen=notes).result
    record = found.details["thresholds"]
    assert record["target"] == 0.96
    # To show so much takes 24 texts that have a label.
    assert {n for n, count in record["num_present"].items() if count < 24} <= set(
        record["not_reached"]
    )
    assert "rare" in record["not_reached"]
    said = next(n for n in notes.notes if "to keep a" in n)
    for name in record["by_label"]:
        assert (name in said) == (name in record["not_reached"])
    for name in record["not_reached"]:
        value = record["by_label"][name]
        assert value >= 0.5 if goal == "precision" else value <= 0.5
    new = record["sets"]["new"]
    assert new["with"][goal] >= new["without"][goal]


def test_a_small_table_chooses_thresholds_on_what_cross_validation_predicts(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "calibration.thresholds=f1", rows=150, tested=False)
    fitted = fit(settings, tmp_path / "run")
    assert fitted.result.num_train == 150  # nothing is held out for them
    record = fitted.result.details["thresholds"]
    assert (record["num_examples"], list(record["sets"])) == (150, ["cross-validation"])
    table = pd.read_parquet(tmp_path / "run" / "predictions" / "cross-validation.parquet")
    names = fitted.fitted.task.label_names
    found = table[[f"p_{name}" for name in names]].to_numpy()
    gold = np.array([[name in row.split("|") for name in names] for row in table["gold"]])
    own = fit_thresholds(found, gold, goal="f1").values
    np.testing.assert_allclose(fitted.fitted.only.thresholds, own)
    # Each text is measured by thresholds that the other folds chose.
    examples = [Example("", {"text": t}, y) for t, y in zip(table.text, table.gold, strict=True)]
    folds = folds_of(examples, seed=3)
    for fold in np.unique(folds):
        others = fit_thresholds(found[folds != fold], gold[folds != fold], goal="f1").values
        given = ["|".join(sorted(np.array(names)[row])) for row in found[folds == fold] >= others]
        assert table["predicted"][folds == fold].tolist() == given
    accuracy = fitted.result.evaluations["cross-validation"].accuracy
    assert accuracy == pytest.approx((table["gold"] == table["predicted"]).mean())


def test_a_validation_set_that_is_also_measured_is_measured_by_other_parts_of_it(
    tmp_path: Path,
) -> None:
    fractions = ("data.test_fraction=0", "data.validation_fraction=0.4")
    settings = settings_of(tmp_path, "calibration.thresholds=f1", *fractions, tested=False)
    run = fit(settings, tmp_path / "run", baselines=False)
    table = pd.read_parquet(tmp_path / "run" / "predictions" / "validation.parquet")
    names = run.fitted.task.label_names
    found = table[[f"p_{name}" for name in names]].to_numpy()
    gold = np.array([[name in row.split("|") for name in names] for row in table["gold"]])
    best = fit_thresholds(found, gold, goal="f1").values
    np.testing.assert_allclose(run.fitted.only.thresholds, best)
    own = ["|".join(sorted(np.array(names)[row])) for row in found >= best]
    assert own != table["predicted"].tolist()


def test_thresholds_that_are_asked_for_hold_a_validation_set_out_and_the_default_does_not(
    tmp_path: Path,
) -> None:
    plain = fit(settings_of(tmp_path), tmp_path / "plain", baselines=False)
    assert "thresholds" not in plain.result.details
    assert plain.result.num_train == 400
    asked = settings_of(tmp_path, "calibration.thresholds=f1")
    found = fit(asked, tmp_path / "asked", baselines=False).result
    assert found.num_train == 360
    assert found.details["thresholds"]["num_examples"] == 40
    large = settings_of(tmp_path, rows=600)
    found = fit(large, tmp_path / "large", baselines=False).result
    assert found.details["thresholds"]["goal"] == "f1"
    assert found.details["thresholds"]["num_examples"] == 60
    off = settings_of(tmp_path, "calibration.thresholds=none", rows=600)
    assert "thresholds" not in fit(off, tmp_path / "off", baselines=False).result.details
    always = settings_of(tmp_path, "method.name=majority", rows=600)
    assert "thresholds" not in fit(always, tmp_path / "always", baselines=False).result.details


def test_no_validation_set_is_said_and_changes_nothing(tmp_path: Path) -> None:
    notes = NotingScreen()
    settings = settings_of(tmp_path, "calibration.thresholds=f1", "data.validation_fraction=0")
    found = fit(settings, tmp_path / "run", baselines=False, screen=notes)
    assert found.fitted.only.calibration.thresholds is None
    assert sum("no validation set to choose them on" in note for note in notes.notes) == 1


def test_a_run_without_thresholds_is_read_as_one_half(folder: Path) -> None:
    file = folder / "run" / FILE
    saved = json.loads(file.read_text())
    assert list(saved["calibration"].pop("thresholds")) == list(WORDS)
    file.write_text(json.dumps(saved))
    classifier = Classifier.load(folder / "run", device="cpu")
    assert classifier.only.thresholds.tolist() == [0.5] * 3
    predict_file(folder / "run", str(folder / "test.csv"), folder / "out.csv", **QUIET)
    table = pd.read_csv(folder / "out.csv")
    for name in WORDS:
        said = np.array([name in answer.split("|") for answer in answers(table)])
        assert (said == (table[f"p_{name}"] >= 0.5)).all()


def test_a_user_gives_other_thresholds_for_all_labels_or_one(
    fitted: tuple[Path, FittedRun], folder: Path
) -> None:
    def predict(**given: float) -> dict[str, list[bool]]:
        thresholds = {name.removeprefix("all"): value for name, value in given.items()}
        out, source = folder / "out.csv", str(folder / "test.csv")
        out.unlink(missing_ok=True)
        predict_file(folder / "run", source, out, thresholds=thresholds, **QUIET)
        rows = answers(pd.read_csv(out))
        return {name: [name in row.split("|") for row in rows] for name in WORDS}

    table = pd.read_parquet(folder / "run" / "predictions" / "new.parquet")
    own = dict(zip(WORDS, fitted[1].fitted.only.thresholds, strict=True))
    cases = (({"all": 0.3}, dict.fromkeys(WORDS, 0.3)), ({"rare": 0.02}, own | {"rare": 0.02}))
    cases = (*cases, ({"rare": 0.9, "all": 0.4}, dict.fromkeys(WORDS, 0.4) | {"rare": 0.9}))
    for given, wanted in cases:
        found = predict(**given)
        for name, value in wanted.items():
            assert found[name] == (table[f"p_{name}"] >= value).tolist()
    with pytest.raises(SettingsError, match=r"no label 'rar'.*Did you mean"):
        predict(rar=0.3)
    with pytest.raises(SettingsError, match=r"--threshold rare=30: give a probability"):
        predict(rare=30)


def test_thresholds_are_refused_where_a_text_has_one_label(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    table = pd.read_csv(tmp_path / "train.csv").assign(label=["a", "b"] * 200)
    table.to_csv(tmp_path / "train.csv", index=False)
    one = settings.model_copy(
        update={
            "task": settings.task.model_copy(update={"multi_label": False}),
            "data": settings.data.model_copy(update={"tests": {}}),
        }
    )
    fit(one, tmp_path / "run", baselines=False)
    with pytest.raises(SettingsError, match="--threshold is for runs in which a text may have"):
        predict_file(
            *(tmp_path / "run", str(tmp_path / "test.csv"), tmp_path / "out.csv"),
            thresholds={"": 0.3},
            **QUIET,
        )
    wanted = one.calibration.model_copy(update={"thresholds": "recall"})
    with pytest.raises(SettingsError, match=r"calibration\.thresholds=recall is for tasks"):
        fit(one.model_copy(update={"calibration": wanted}), tmp_path / "refused")
