"""Evaluation sets with coarser labels than the task, and texts that a draw leaves unlabelled."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import tiny
from taskfit.data import Example
from taskfit.errors import DataError, PromptError, SettingsError
from taskfit.runs.evaluate import evaluate_file
from taskfit.runs.fit import fit
from taskfit.runs.prepare import prepare_data
from taskfit.runs.records import RunResult
from taskfit.screen import SilentScreen
from taskfit.settings_file import settings_from_dict
from taskfit.tasks import load_task
from taskfit.tasks.files import task_from_dict, task_to_dict

FINE = ("calm", "glad", "sad")
COARSE = {"quiet": "calm", "glad": "stirred", "sad": "stirred"}


def rows(num: int) -> list[Example]:
    return [Example(e.id, e.texts, FINE[i % 3]) for i, e in enumerate(tiny.toy_examples(num))]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("task") / "moods.yaml"
    data = {
        "name": "moods",
        "text": "text",
        "labels": [{"name": name} for name in FINE],
        "coarse": {"stirred": ["glad", "sad"]},
        "template": {"line": "{text}:{label}"},
    }
    path.write_text(yaml.safe_dump(data))
    return path


def write(path: Path, examples: list[Example], coarse: bool) -> Path:
    made = {"glad": "stirred", "sad": "stirred"} if coarse else {}
    named = [Example(e.id, e.texts, made.get(str(e.label), e.label)) for e in examples]
    return tiny.write_csv(path, named)


@pytest.fixture(scope="module")
def folder(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coarse")
    test = rows(60)[30:]
    sets = {
        "fine": str(write(folder / "fine.csv", test, coarse=False)),
        "coarse": str(write(folder / "coarse.csv", test, coarse=True)),
    }
    train = write(folder / "train.csv", rows(60)[:30], coarse=False)
    settings = {
        "data": {"train": str(train), "tests": sets, "slices": ["gold"]},
        "task": {"name": str(task)},
        "method": {"name": "tfidf"},
        "training": {"tensorboard": False},
    }
    fit(settings_from_dict(settings), folder / "run")
    return folder


def predictions(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / "run" / "predictions" / f"{name}.parquet")


def test_coarse_probabilities_are_sums_of_those_of_the_labels_they_are_made_of(
    folder: Path,
) -> None:
    fine, coarse = predictions(folder, "fine"), predictions(folder, "coarse")
    assert list(coarse["text"]) == list(fine["text"])
    np.testing.assert_allclose(coarse["p_stirred"], fine["p_glad"] + fine["p_sad"], atol=1e-12)
    np.testing.assert_allclose(coarse["p_calm"], fine["p_calm"], atol=1e-12)
    assert not {"p_glad", "p_sad"} & set(coarse.columns)
    stirred = coarse["p_stirred"] > coarse["p_calm"]
    assert list(coarse["predicted"]) == ["stirred" if s else "calm" for s in stirred]


def test_metrics_of_a_set_with_coarse_labels_are_those_of_its_predictions(folder: Path) -> None:
    found = RunResult.load(folder / "run").evaluations
    table = predictions(folder, "coarse")
    assert found["coarse"].labels == ["calm", "stirred"]
    assert found["fine"].labels == list(FINE)
    assert found["coarse"].accuracy == pytest.approx((table["gold"] == table["predicted"]).mean())
    slices = pd.read_csv(folder / "run" / "slices.csv")
    assert set(slices[slices["evaluation"] == "coarse"]["value"]) == {"calm", "stirred"}


def test_a_finished_run_is_evaluated_on_coarse_labels_as_it_was_when_it_was_fitted(
    folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "again.csv"
    copy.write_bytes((folder / "coarse.csv").read_bytes())
    again = evaluate_file(
        folder / "run",
        str(copy),
        name="again",
        encoding="utf-8",
        device="cpu",
        screen=SilentScreen(),
    )
    first = RunResult.load(folder / "run").evaluations["coarse"]
    assert again["again"].accuracy == first.accuracy
    assert again["again"].log_loss == pytest.approx(first.log_loss)


def test_a_fine_label_in_a_set_with_coarse_ones_counts_as_the_coarse_one(
    folder: Path, tmp_path: Path
) -> None:
    mixed = [
        Example(e.id, e.texts, "stirred" if e.label == "sad" else e.label) for e in rows(60)[30:]
    ]
    path = tiny.write_csv(tmp_path / "mixed.csv", mixed)
    found = evaluate_file(
        folder / "run",
        str(path),
        name="mixed",
        encoding="utf-8",
        device="cpu",
        screen=SilentScreen(),
    )
    assert found["mixed"].accuracy == RunResult.load(folder / "run").evaluations["coarse"].accuracy


def test_coarse_labels_may_not_stand_in_training(task: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", rows(30), coarse=True)
    settings = {"data": {"train": str(path)}, "task": {"name": str(task)}}
    with pytest.raises(DataError, match="unknown label"):
        prepare_data(settings_from_dict({**settings, "method": {"name": "tfidf"}}))


def test_a_task_file_with_coarse_labels_survives_writing_and_bad_ones_are_told_together(
    task: Path,
) -> None:
    found = load_task(str(task))
    assert task_from_dict(task_to_dict(found)) == found
    bad = {**task_to_dict(found), "coarse": {"glad": ["calm"], "x": ["calm", "angry"]}}
    with pytest.raises(PromptError) as raised:
        task_from_dict(bad)
    for part in ("'glad' is one of the labels", "'angry', which is no label", "several coarse"):
        assert part in str(raised.value)


def test_the_rest_of_a_draw_are_its_other_texts_without_labels(tmp_path: Path) -> None:
    examples = tiny.toy_examples(40)
    path = tiny.write_csv(tmp_path / "train.csv", examples)
    data = {"train": str(path), "num_train": 8, "unlabeled": "rest", "validation_fraction": 0.1}
    method = {"name": "distill", "num_demonstrations": 4}
    found = prepare_data(settings_from_dict({"data": data, "method": method}))
    held_out = [*found.validation, *(e for es in found.evaluations.values() for e in es)]
    learned = {e.texts["text"] for e in [*found.train, *found.demonstrations, *held_out]}
    rest = {e.texts["text"] for e in found.unlabeled}
    assert len(found.demonstrations) + len(found.train) == 8
    assert rest == {e.texts["text"] for e in examples} - learned
    assert all(e.label is None and e.target is None for e in found.unlabeled)
    with pytest.raises(SettingsError, match="leaves nothing"):
        prepare_data(settings_from_dict({"data": {**data, "num_train": 36}, "method": method}))
