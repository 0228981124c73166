"""A run that goes on from a finished one: what it takes over, what it keeps apart."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from taskfit.data import Example
from taskfit.errors import SettingsError, TaskfitError
from taskfit.files import read_jsonl
from taskfit.methods.table import METHODS
from taskfit.runs.classifier import Classifier
from taskfit.runs.fit import FittedRun, fit
from taskfit.runs.origin import continued_settings
from taskfit.runs.prepare import PreparedData, prepare_data
from taskfit.runs.seen import read_seen, text_hash
from taskfit.settings import RunSettings
from tiny_screens import Killed, NotingScreen
from tiny_settings import settings_for

OLD = tiny.toy_examples(40)
MORE = tiny.toy_examples(20, offset=100)
TEXTS = tiny.toy_examples(6, offset=300)
# So small a step moves nothing: what is scored then is what training started from.
STANDSTILL = ["training.learning_rate=1e-12", "training.max_steps=1"]
TRAINED = {
    "label_words": ["method.num_demonstrations=2"],
    "head": [],
    "head in full": ["method.name=head", "adapter.weights=full", "training.learning_rate=0.003"],
    "label_text": [],
    "distill": ["method.num_demonstrations=2"],
    "encoder": ["training.learning_rate=0.003"],
}
ANEW = {
    "probe": ["method.prompt=false"],
    "knn": ["method.retriever=model", "method.prompt=false"],
    "tfidf": [],
    "in_context": ["method.num_demonstrations=2"],
}
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, encoder_folder: Path
) -> Make:
    """Return finished runs on the same table, each fitted once."""
    home = tmp_path_factory.mktemp("finished")
    tiny.write_csv(home / "old.csv", OLD)

    def run(name: str) -> Path:
        folder = home / name
        if not folder.is_dir():
            settings = settings_for(
                [
                    f"data.train={home / 'old.csv'}",
                    "data.validation_fraction=0.1",
                    "data.test_fraction=0.2",
                    f"model.name={model_folder}",
                    "model.dtype=float32",
                    f"method.name={name if name in METHODS else 'label_words'}",
                    "method.num_demonstrations=0",
                    f"method.encoder={encoder_folder}",
                    "training.epochs=6",
                    "training.batch_size=8",
                    "training.learning_rate=0.02",
                    "training.keep=last",
                    "training.tensorboard=false",
                ],
                {**TRAINED, **ANEW}[name],
            )
            fit(settings, folder)
        return folder

    return run


def go_on(
    run: Path, table: Path | None, folder: Path, *extra: str, **options: Any
) -> FittedRun[Any]:
    data = {} if table is None else {"data": {"train": str(table)}}
    return fit(continued_settings(run, data, extra), folder, **options)


def new_class(path: Path, count: int = 10) -> Path:
    rows = [
        Example(f"new:{i}", {"text": f"The {tiny.NOUNS[i]} was green."}, "neither")
        for i in range(count)
    ]
    return tiny.write_csv(path, [*rows, *MORE])


@pytest.mark.parametrize("name", list(TRAINED))
def test_before_the_first_step_the_scores_are_those_of_the_finished_run(
    finished: Make, tmp_path: Path, name: str
) -> None:
    more = tiny.write_csv(tmp_path / "more.csv", [*OLD, *MORE])
    before = Classifier.load(finished(name), device="cpu")
    after = go_on(finished(name), more, tmp_path / "run", *STANDSTILL).fitted
    assert after.task == before.task
    assert after.method.context.demonstrations == before.method.context.demonstrations
    np.testing.assert_allclose(
        after.probabilities(TEXTS), before.probabilities(TEXTS), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", ["head", "head in full", "encoder"])
def test_a_new_class_leaves_the_others_as_they_stand_to_each_other(
    finished: Make, tmp_path: Path, name: str
) -> None:
    before = Classifier.load(finished(name), device="cpu").probabilities(TEXTS)
    more = new_class(tmp_path / "more.csv")
    after = go_on(finished(name), more, tmp_path / "run", *STANDSTILL).fitted
    assert after.task.label_names == ["bad", "good", "neither"]
    found = after.probabilities(TEXTS)
    assert (found[:, 2] > 0).all()
    np.testing.assert_allclose(
        found[:, :2] / found[:, :2].sum(axis=1, keepdims=True), before, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("name", ["label_words", "head"])
def test_training_starts_lower_than_anew(finished: Make, tmp_path: Path, name: str) -> None:
    more = tiny.write_csv(tmp_path / "more.csv", MORE)
    go_on(finished(name), more, tmp_path / "run", *STANDSTILL)
    fresh = continued_settings(finished(name), {"data": {"train": str(more)}}, STANDSTILL)
    fit(fresh.model_copy(update={"start": RunSettings().start}), tmp_path / "fresh")
    on, anew = (read_jsonl(tmp_path / folder / "metrics.jsonl") for folder in ("run", "fresh"))
    assert on[0]["loss_before"] < anew[0]["loss_before"]


@pytest.mark.parametrize("name", ["head", "encoder"])
def test_a_new_class_is_learned(finished: Make, tmp_path: Path, name: str) -> None:
    more = new_class(tmp_path / "more.csv")
    # A tiny encoder needs more steps for some splits of its rows.
    epochs = 40 if name == "encoder" else 10
    slowly = [f"training.epochs={epochs}", "training.learning_rate=0.005"]
    run = go_on(finished(name), more, tmp_path / "run", *slowly).fitted
    green = [Example("g", {"text": f"The {noun} was green."}) for noun in tiny.NOUNS[:8]]
    found = run.probabilities(green).argmax(axis=1)
    assert (found == run.task.label_names.index("neither")).mean() > 0.5


@pytest.mark.parametrize("name", list(ANEW))
def test_what_has_no_weights_is_fitted_anew_on_old_and_new_rows(
    finished: Make, tmp_path: Path, name: str
) -> None:
    run = go_on(finished(name), new_class(tmp_path / "more.csv"), tmp_path / "run")
    assert run.fitted.task.label_names == ["bad", "good", "neither"]
    assert run.fitted.probabilities(TEXTS).shape == (len(TEXTS), 3)
    if name != "in_context":
        assert run.result.num_train > len(MORE) + 10


def texts_of(examples: list[Example]) -> set[int]:
    return {text_hash(example) for example in examples}


def prepared(run: Path, table: Path | None, *extra: str) -> PreparedData:
    """Return the data of a run that goes on, without fitting it."""
    from taskfit.runs.origin import take_origin

    data = {} if table is None else {"data": {"train": str(table)}}
    settings = continued_settings(run, data, extra)
    folder = (table or run).with_name("prepared")
    shutil.rmtree(folder, ignore_errors=True)
    origin = take_origin(settings, folder, resume=False)
    return prepare_data(settings, several=True, origin=origin)


@pytest.mark.parametrize("case", ["only new rows", "a larger table", "grown in place", "the same"])
def test_texts_stay_on_their_side_and_old_rows_are_there_once(
    finished: Make, tmp_path: Path, case: str
) -> None:
    run, table = finished("tfidf"), tmp_path / "more.csv"
    if case == "grown in place":
        run = shutil.copytree(run, tmp_path / "old run")
        old = tmp_path / "old.csv"
        settings = (run / "settings.yaml").read_text()
        source = str(finished("tfidf").parent / "old.csv")
        (run / "settings.yaml").write_text(settings.replace(source, str(old)))
        table = old
    rows = {"only new rows": MORE, "the same": OLD}.get(case, [*MORE, *OLD])
    tiny.write_csv(table, rows)
    seen = read_seen(run)
    assert seen is not None
    before = {
        name: {text for text, side in seen.sides.items() if side == name}
        for name in ("train", "validation", "test")
    }
    data = prepared(run, table)
    assert before["train"] <= texts_of(data.train)
    assert before["validation"] <= texts_of(data.validation)
    assert before["test"] <= texts_of(data.evaluations["test"])
    every = [*data.train, *data.validation, *data.evaluations["test"]]
    assert len(every) == len(texts_of(every))
    assert texts_of(every) == texts_of(OLD if case == "the same" else [*OLD, *MORE])
    new = 0 if case == "the same" else len(MORE)
    assert len(data.evaluations["test"]) == len(before["test"]) + round(0.2 * new)
    assert any(f"{new} of the {len(rows)} rows" in note for note in data.notes)


def test_new_rows_alone_are_learned_where_that_is_asked_for(finished: Make, tmp_path: Path) -> None:
    more = tiny.write_csv(tmp_path / "more.csv", MORE)
    data = prepared(finished("tfidf"), more, "start.earlier_rows=false", "data.test_fraction=0.2")
    assert texts_of(data.train) <= texts_of(MORE)
    assert any("are not among these rows" in note for note in data.notes)


def test_old_rows_that_are_gone_are_told(finished: Make, tmp_path: Path) -> None:
    old = finished("tfidf").parent / "old.csv"
    more = tiny.write_csv(tmp_path / "more.csv", [*MORE, *OLD[:5]])
    kept = old.read_text()
    try:
        old.unlink()
        gone = prepared(finished("tfidf"), more)
        tiny.write_csv(old, OLD[:20])
        fewer = prepared(finished("tfidf"), more)
    finally:
        old.write_text(kept)
    assert any("old.csv cannot be read any more" in note for note in gone.notes)
    for data in (gone, fewer):
        assert any("are not found again" in note for note in data.notes)
    assert len(fewer.train) > len(gone.train)


def test_changed_labels_and_absent_and_new_classes_are_told(finished: Make, tmp_path: Path) -> None:
    turned = Example("x", OLD[0].texts, "bad" if OLD[0].label == "good" else "good")
    rows = [turned, Example("y", {"text": "The dog was green."}, "neither")]
    data = prepared(finished("tfidf"), tiny.write_csv(tmp_path / "more.csv", rows))
    told = "\n".join(data.notes)
    assert "1 text has another label" in told
    assert "more.csv:2)" in told
    assert "new class neither" in told
    assert f"and kept: class {OLD[0].label}" in told
    every = [*data.train, *data.validation, *data.evaluations["test"]]
    assert {e.label for e in every if text_hash(e) == text_hash(turned)} == {turned.label}


def test_evaluation_sets_do_not_become_training_rows_and_what_was_learned_is_told_of_tests(
    finished: Make, tmp_path: Path
) -> None:
    test = tiny.write_csv(tmp_path / "test.csv", TEXTS)
    more = tiny.write_csv(tmp_path / "more.csv", MORE)
    go_on(finished("tfidf"), more, tmp_path / "run", f"data.tests.new={test}")
    again = tiny.write_csv(tmp_path / "again.csv", [*TEXTS, *tiny.toy_examples(4, offset=400)])
    data = prepared(tmp_path / "run", again, f"data.tests.new={more}")
    assert not texts_of(data.train) & texts_of(TEXTS)
    assert any("left out 6 rows" in note for note in data.notes)
    assert any("texts of new were training texts" in note for note in data.notes)


@pytest.mark.parametrize(
    ("name", "extra", "named"),
    [
        ("head", ["model.name=other", "adapter.lora_rank=4"], ["model.name", "adapter.lora_rank"]),
        ("head", ["adapter.weights=full", "adapter.layers=1"], ["adapter.weights"]),
        ("head", ["method.name=label_words"], ["method.name is label_words, and was head"]),
        ("head", ["data.text=[body]", "method.prompt=false"], ["method.prompt"]),
        ("encoder", ["method.encoder=other"], ["method.encoder"]),
        ("tfidf", ["method.name=knn"], ["method.name is knn, and was tfidf"]),
    ],
)
def test_settings_under_which_nothing_fits_are_refused_in_one_message(
    finished: Make, tmp_path: Path, name: str, extra: list[str], named: list[str]
) -> None:
    more = tiny.write_csv(tmp_path / "more.csv", MORE)
    with pytest.raises(SettingsError) as refused:
        go_on(finished(name), more, tmp_path / "run", *extra)
    assert all(one in str(refused.value) for one in named)
    assert "fit anew without --from" in str(refused.value)


def test_no_finished_run_and_a_run_without_its_weights_are_refused(
    finished: Make, tmp_path: Path
) -> None:
    more = tiny.write_csv(tmp_path / "more.csv", MORE)
    with pytest.raises(TaskfitError, match="holds no finished run"):
        go_on(tmp_path, more, tmp_path / "run")
    run = shutil.copytree(finished("head"), tmp_path / "old run")
    shutil.rmtree(run / "adapter")
    with pytest.raises(TaskfitError, match="without its weights"):
        go_on(run, more, tmp_path / "run")


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["head", "head in full", "encoder"])
def test_killed_it_ends_bitwise_equal_without_the_finished_run_which_never_changed(
    finished: Make, tmp_path: Path, name: str
) -> None:
    run = shutil.copytree(finished(name), tmp_path / "old run")
    untouched = digests(run)
    more = new_class(tmp_path / "more.csv")
    short = ["training.epochs=2", "training.save_every_steps=2"]
    whole = go_on(run, more, tmp_path / "whole", *short)
    settings = continued_settings(run, {"data": {"train": str(more)}}, short)
    with pytest.raises(Killed):
        fit(settings, tmp_path / "broken", screen=NotingScreen(3))
    assert digests(run) == untouched
    shutil.rmtree(run)
    resumed = fit(settings, tmp_path / "broken", resume=True)
    assert np.array_equal(resumed.fitted.probabilities(TEXTS), whole.fitted.probabilities(TEXTS))
    assert not (tmp_path / "broken" / "start").exists()
    assert resumed.result.details["start"]["run"] == str(run)


def test_chains_keep_the_rows_and_the_sides_of_all_before(finished: Make, tmp_path: Path) -> None:
    more = tiny.write_csv(tmp_path / "more.csv", MORE)
    first = go_on(finished("head"), more, tmp_path / "first", "training.max_steps=1")
    third = tiny.toy_examples(10, offset=200)
    last = tiny.write_csv(tmp_path / "last.csv", third)
    second = go_on(tmp_path / "first", last, tmp_path / "second", "training.max_steps=1")
    assert second.result.num_train > first.result.num_train > len(MORE)
    record = second.result.details["start"]
    assert record["run"] == str(tmp_path / "first")
    assert record["start"]["run"] == str(finished("head"))
    seen = [read_seen(folder) for folder in (finished("head"), tmp_path / "second")]
    assert seen[0] is not None
    assert seen[1] is not None
    for text, side in seen[0].sides.items():
        assert seen[1].sides[text] == side
    assert texts_of([*OLD, *MORE, *third]) == set(seen[1].sides)


def test_without_a_table_it_trains_longer_on_the_rows_of_the_run(
    finished: Make, tmp_path: Path
) -> None:
    before = json.loads((finished("head") / "result.json").read_text())
    run = go_on(finished("head"), None, tmp_path / "run", "training.max_steps=1")
    assert run.result.num_train == before["num_train"]
    assert read_seen(tmp_path / "run").sides == read_seen(finished("head")).sides


def test_a_run_of_before_texts_were_written_down_is_known_by_its_unchanged_data(
    finished: Make, tmp_path: Path
) -> None:
    run = shutil.copytree(finished("tfidf"), tmp_path / "old run")
    (run / "texts.safetensors").unlink()
    more = tiny.write_csv(tmp_path / "more.csv", [*OLD, *MORE])
    screens = [NotingScreen(), NotingScreen()]
    go_on(run, more, tmp_path / "known", screen=screens[0])
    found = read_seen(tmp_path / "known")
    expected = read_seen(finished("tfidf"))
    assert all(found.sides[text] == side for text, side in expected.sides.items())
    changed = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps({**changed, "train": "other"}))
    go_on(run, more, tmp_path / "unknown", screen=screens[1])
    told = ["does not tell which texts" in "\n".join(screen.notes) for screen in screens]
    assert told == [False, True]
