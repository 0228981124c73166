"""Predictions of tables of any size: no row lost, doubled or held, whatever happens meanwhile."""

import contextlib
import gzip
import itertools
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from taskfit.data import read_table
from taskfit.errors import DataError, ModelError, SettingsError
from taskfit.runs import partial as partial_module
from taskfit.runs import predict as predict_module
from taskfit.runs import predictor as predictor_module
from taskfit.runs.classifier import Classifier
from taskfit.runs.fit import fit
from taskfit.runs.predict import PredictedFile, predict_file
from taskfit.settings_file import load_settings
from tiny_screens import Killed, NotingScreen

TEXTS = [example.texts["text"] for example in tiny.toy_examples(23, offset=100)]
ENDINGS = [".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".jsonl.gz"]
WRITTEN = [".csv", ".tsv", ".jsonl", ".parquet"]
LAW = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    data = {"train": str(tiny.write_csv(folder / "train.csv", tiny.toy_examples(40)))}
    fit(load_settings(flags={"method": {"name": "tfidf"}, "data": data}), folder / "run")
    return folder / "run"


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_module, "CHUNK", 5)


def predict(run: Path, source: Path, target: Path, **more: Any) -> PredictedFile:
    options = {"encoding": "utf-8", "device": "cpu", "screen": NotingScreen(), **more}
    return predict_file(run, str(source), target, **options)


def write(path: Path, *, ticket: str = "T") -> Path:
    """Write texts with a column beside them, three of them blank."""
    texts = [*TEXTS[:7], "", *TEXTS[7:], " ", ""]
    table = pd.DataFrame({"ticket": [f"{ticket}{i}" for i in range(len(texts))], "text": texts})
    packed = path.suffix == ".gz"
    plain = path.with_suffix("") if packed else path
    if plain.suffix == ".jsonl":
        table.to_json(plain, orient="records", lines=True)
    elif plain.suffix == ".parquet":
        table.to_parquet(plain, row_group_size=7)
    else:
        table.to_csv(plain, index=False, sep="\t" if plain.suffix == ".tsv" else ",")
    if packed:
        path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


PLACES = [
    (Classifier, "probabilities"),
    (predictor_module, "prediction_table"),
    (partial_module.pq, "write_table"),
    (os, "replace"),
    (partial_module, "write_text_table"),
    (partial_module.pq, "ParquetWriter"),
    (Path, "unlink"),
    (shutil, "rmtree"),
]


@settings(LAW, max_examples=12)
@given(
    ending=st.sampled_from(ENDINGS),
    asked=st.sampled_from(WRITTEN),
    place=st.sampled_from(PLACES),
    calls=st.lists(st.integers(0, 8), min_size=1, max_size=3),
)
def test_a_prediction_that_is_killed_anywhere_ends_as_if_it_had_not_been(
    run: Path, tmp_path: Path, ending: str, asked: str, place: tuple[Any, str], calls: list[int]
) -> None:
    (tmp_path / ending).mkdir(exist_ok=True)
    source, folder = tmp_path / ending / f"in{ending}", tmp_path / "out"
    if not source.exists():
        write(source)
    shutil.rmtree(folder, ignore_errors=True)
    whole = tmp_path / ending / f"whole{asked}"
    if not whole.exists():
        predict(run, source, whole)
    original = getattr(*place)
    for call in calls:
        counted = itertools.count()

        def killing(*arguments: Any, at: int = call, so_far: Any = counted, **options: Any) -> Any:
            if next(so_far) == at:
                raise Killed
            return original(*arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*place, killing)
            with contextlib.suppress(Killed):
                predict(run, source, folder / f"out{asked}")
    predict(run, source, folder / f"out{asked}")
    target = folder / f"out{asked}"
    if asked == ".parquet":
        assert pq.read_table(target).equals(pq.read_table(whole))
    else:
        assert target.read_bytes() == whole.read_bytes()
    assert read_table(str(target))["ticket"].tolist() == [f"T{i}" for i in range(26)]
    assert [path.name for path in folder.iterdir()] == [target.name]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_parts_made_from_another_table_or_of_another_threshold_are_not_taken(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    source, target = tmp_path / f"in{ending}", tmp_path / "out.csv"
    more: dict[str, Any] = {}
    for ticket, more, changed in (("A", {}, "source"), ("B", {"abstain_below": 0.9}, "options")):
        write(source, ticket="T")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(partial_module.PartialPredictions, "join", kill)
            with pytest.raises(Killed):
                predict(run, source, target)
        write(source, ticket=ticket if not more else "T")
        screen = NotingScreen()
        predict(run, source, target, screen=screen, **more)
        assert any(f"made from something else ({changed})" in note for note in screen.notes)
        first = "T0" if more else f"{ticket}0"
        assert read_table(str(target))["ticket"].tolist()[0] == first


def kill(*_: Any, **__: Any) -> None:
    raise Killed


def test_a_table_that_changes_while_it_is_read_is_refused_and_begun_anew(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = write(tmp_path / "in.csv"), tmp_path / "out.csv"
    original, counted = Classifier.probabilities, itertools.count()

    def changing(self: Classifier, *arguments: Any, **options: Any) -> Any:
        if next(counted) == 2:
            write(source, ticket="changed")
        return original(self, *arguments, **options)

    monkeypatch.setattr(Classifier, "probabilities", changing)
    with pytest.raises(DataError, match="has changed while it was read"):
        predict(run, source, target)
    assert not target.exists()
    screen = NotingScreen()
    predict(run, source, target, screen=screen)
    assert any("started anew" in note for note in screen.notes)
    tickets = read_table(str(target))["ticket"].tolist()
    assert tickets == [f"changed{i}" for i in range(len(tickets))]


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_a_row_that_cannot_be_read_is_written_with_its_error(
    run: Path, tmp_path: Path, ending: str
) -> None:
    source, target = write(tmp_path / f"in{ending}"), tmp_path / "out.jsonl"
    predict(run, source, tmp_path / "sound.jsonl")
    lines = source.read_text().splitlines(keepends=True)
    bad = {".csv": "T,a text, of more fields\n", ".jsonl": '{"text": \n'}[ending]
    start = int(ending == ".csv")
    for place in (start + 3, start + 17, start + 17):
        lines.insert(place, bad)
    source.write_text("".join(lines))
    found = predict(run, source, target)
    assert (found.num_rows, found.num_errors, found.shortfalls.num_failed) == (29, 6, 3)
    assert f"in{ending}:{start + 4} " in str(found.shortfalls.first_failure)
    table, sound = (read_table(str(tmp_path / f"{n}.jsonl")) for n in ("out", "sound"))
    is_bad = table.index.isin([4, 18, 19])
    assert table["error"][is_bad].str.contains(str(tmp_path)).all()
    assert (table.loc[is_bad, ["ticket", "text", "predicted", "p_good"]] == "").all(axis=None)
    rest = table[~is_bad].drop(columns="id").reset_index(drop=True)
    assert rest.equals(sound.drop(columns="id").reset_index(drop=True))


def failing(condition: Callable[[str], bool]) -> Callable[..., Any]:
    """Return what scores texts, unless there is one among them that it does not like."""
    original = Classifier.probabilities

    def score(self: Classifier, examples: list[Any], **options: Any) -> Any:
        if any(condition(example.texts["text"]) for example in examples):
            raise ModelError("The scores are not finite.")
        return original(self, examples, **options)

    return score


@LAW
@given(bad=st.sets(st.sampled_from(TEXTS), max_size=len(TEXTS) - 1))
def test_a_text_that_cannot_be_scored_costs_only_itself(
    run: Path, tmp_path: Path, bad: set[str]
) -> None:
    source = tmp_path / "in.csv"
    if not source.exists():
        write(source)
        predict(run, source, tmp_path / "sound.csv")
    shutil.rmtree(tmp_path / "out.csv.partial", ignore_errors=True)
    sound = pd.read_csv(tmp_path / "sound.csv")
    first = [text for text in sound["text"][:5] if text in bad]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "probabilities", failing(bad.__contains__))
        if len(first) == 5:  # of the first window nothing: that may be for the run
            with pytest.raises(ModelError):
                predict(run, source, tmp_path / "out.csv")
            return
        found = predict(run, source, tmp_path / "out.csv")
    assert found.shortfalls.num_failed == len(bad)
    table = pd.read_csv(tmp_path / "out.csv")
    is_bad = sound["text"].isin(bad)
    assert (table["error"] == "The scores are not finite.").equals(is_bad)
    assert table["p_good"].isna().equals(is_bad | sound["p_good"].isna())
    np.testing.assert_allclose(table["p_good"][~is_bad], sound["p_good"][~is_bad], atol=1e-9)
    assert table["text"].equals(sound["text"])


def test_where_no_text_can_be_scored_it_is_for_the_run_and_told_after_a_few(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, tried = write(tmp_path / "in.csv"), []
    monkeypatch.setattr(predict_module, "CHUNK", 5000)
    score = failing(lambda _: True)

    def counting(self: Classifier, examples: list[Any], **options: Any) -> Any:
        tried.append(len(examples))
        return score(self, examples, **options)

    monkeypatch.setattr(Classifier, "probabilities", counting)
    with pytest.raises(ModelError, match="not finite"):
        predict(run, source, tmp_path / "out.csv")
    assert len(tried) < 20


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.7, 1.0])
def test_an_answer_is_given_exactly_where_its_probability_reaches_the_threshold(
    run: Path, tmp_path: Path, quantile: float
) -> None:
    source = write(tmp_path / "in.csv")
    table = pd.read_csv(source, keep_default_na=False)
    table["text"] += [" ".join(TEXTS[: i % 7]) * bool(t.strip()) for i, t in enumerate(table.text)]
    table.to_csv(source, index=False)
    predict(run, source, tmp_path / "all.csv")
    every = pd.read_csv(tmp_path / "all.csv")
    best = every[["p_bad", "p_good"]].max(axis=1)
    assert best.nunique() > 5
    threshold = float(best.quantile(quantile, interpolation="lower"))
    found = predict(run, source, tmp_path / "sure.csv", abstain_below=threshold)
    sure = pd.read_csv(tmp_path / "sure.csv")
    assert (sure["abstained"] == True).equals(best < threshold)  # noqa: E712 - NaN is neither
    assert sure["abstained"].isna().equals(every["error"].notna())
    assert sure["predicted"].equals(every["predicted"].where(best >= threshold))
    kept = [name for name in every if name != "predicted"]
    assert list(sure.drop(columns="abstained")) == list(every)
    assert sure[kept].equals(every[kept])
    assert found.num_abstained == {"abstained": int((best < threshold).sum())}


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(
    run: Path, tmp_path: Path, threshold: float
) -> None:
    with pytest.raises(SettingsError, match="above 0, at most 1"):
        predict(run, write(tmp_path / "in.csv"), tmp_path / "o.csv", abstain_below=threshold)


def test_a_bad_table_is_told_before_a_model_is_loaded(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(predictor_module, "load_classifier", never)
    for content, message in (
        ("text\na\n\xe9".encode("latin-1"), "is not utf-8"),
        (b"body\na\n", "no column 'text'"),
        (b"text\n", "no row below its header"),
        (b'text\na\n"b\nc\n', "closed nowhere"),
    ):
        (tmp_path / "in.csv").write_bytes(content)
        with pytest.raises(DataError, match=message):
            predict(run, tmp_path / "in.csv", tmp_path / "out.csv")
    (tmp_path / "in.jsonl").write_text('{"text": ["a"]}\n')
    with pytest.raises(DataError, match="holds a list"):
        predict(run, tmp_path / "in.jsonl", tmp_path / "out.csv")


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_memory_does_not_grow_with_the_table(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(predict_module, "CHUNK", 50)

    def peak(num_rows: int) -> float:
        source = tmp_path / f"{num_rows}{ending}"
        table = pd.DataFrame({"text": [f"{i} {TEXTS[i % 20]} " * 20 for i in range(num_rows)]})
        if ending == ".parquet":
            table.to_parquet(source, row_group_size=50)
        elif ending == ".jsonl":
            table.to_json(source, orient="records", lines=True)
        else:
            table.to_csv(source, index=False, sep="\t" if ending == ".tsv" else ",")
        del table
        tracemalloc.start()
        try:
            predict(run, source, tmp_path / f"out{num_rows}.csv")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(50)  # what is loaded once
    small, large = peak(150), peak(700)
    assert large < 1.3 * small
