"""What is saved comes back as it was, and `results.csv` says the same as `result.json`."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskfit.errors import CheckpointError
from taskfit.runs.records import (
    RunResult,
    describe_machine,
    library_versions,
    result_rows,
    write_results_csv,
)
from taskfit.stats import Evaluation
from tiny_records import evaluation, run_result

METRICS = ("accuracy", "mcc", "macro_f1")

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
numbers = st.floats(-1, 1)
evaluations = st.builds(
    Evaluation,
    num_examples=st.integers(1, 10**6),
    accuracy=numbers,
    mcc=numbers,
    macro_f1=numbers,
    log_loss=st.floats(0, 40),
    ece=numbers,
    confusion_matrix=st.lists(st.lists(st.integers(0, 99), min_size=2, max_size=2), max_size=2),
    labels=st.lists(words, max_size=3),
    intervals=st.fixed_dictionaries({metric: st.tuples(numbers, numbers) for metric in METRICS}),
)


@given(name=words, found=st.dictionaries(words, evaluations, max_size=3), seconds=numbers)
@settings(max_examples=20, deadline=None)
def test_a_saved_result_comes_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    found: dict[str, Evaluation],
    seconds: float,
) -> None:
    result = replace(run_result(name, **found), training_seconds=seconds)
    folder = tmp_path_factory.getbasetemp() / "round-trip" / "run"
    result.save(folder)
    assert RunResult.load(folder) == result


def test_result_json_holds_every_field_and_plain_values(tmp_path: Path) -> None:
    run_result(new=evaluation()).save(tmp_path)
    data = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert data.keys() == {field.name for field in fields(RunResult)}
    assert data["evaluations"]["new"]["labels"] == ["bad", "good"]
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_saving_again_replaces_the_file(tmp_path: Path) -> None:
    result = run_result(new=evaluation())
    result.save(tmp_path)
    result.evaluations["more"] = evaluation(7, seed=1)
    result.save(tmp_path)
    assert list(RunResult.load(tmp_path).evaluations) == ["new", "more"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "5",
        "null",
        "{}",
        '{"evaluations": null}',
        '{"evaluations": {"new": null}}',
        '{"evaluations": {"new": {}}}',
        '{"evaluations": {}}',
        '{"evaluations": {}, "colour": 1}',
    ],
)
def test_a_damaged_result_is_one_message(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"result\.json cannot be read: \S"):
        RunResult.load(tmp_path)


def test_a_folder_without_a_result_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no finished run.*taskfit fit --resume"):
        RunResult.load(tmp_path)


def test_the_table_has_a_row_for_every_run_and_set_with_the_numbers_of_the_json(
    tmp_path: Path,
) -> None:
    results = [
        run_result("zero, shot\n", new=evaluation(), old=evaluation(9, seed=1)),
        run_result("nothing measured"),
        run_result("tuned", new=evaluation(40, ("a", "b", "c"), seed=2)),
    ]
    write_results_csv(tmp_path / "results.csv", results)
    # As text, since a parser of numbers may be off by the last bit.
    table = pd.read_csv(tmp_path / "results.csv", dtype=str)
    assert table[["name", "evaluation"]].to_numpy().tolist() == [
        ["zero, shot\n", "new"],
        ["zero, shot\n", "old"],
        ["tuned", "new"],
    ]
    for result in results:
        result.save(tmp_path / result.name.strip())
        stored = RunResult.load(tmp_path / result.name.strip())
        for name, measured in stored.evaluations.items():
            (row,) = table[(table["name"] == result.name) & (table["evaluation"] == name)].to_dict(
                "records"
            )
            for metric in ("num_examples", *METRICS, "log_loss", "ece"):
                assert float(row[metric]) == getattr(measured, metric)
            for metric, (low, high) in measured.intervals.items():
                assert (float(row[f"{metric}_low"]), float(row[f"{metric}_high"])) == (low, high)
            for key in ("method", "weights", "model", "task"):
                assert row[key] == getattr(stored, key)
            for key in ("num_train", "num_demonstrations", "seed", "duration_seconds"):
                assert float(row[key]) == getattr(stored, key)
            for key in ("training_seconds", "peak_memory_bytes"):
                assert float(row[key]) == getattr(stored, key)
            assert float(row["samples_per_second"]) == measured.num_examples / 0.5
            assert (row["tokens_unique"], row["tokens_padded"]) == ("1000", "7654")
    assert not table.isna().to_numpy().any()


def test_a_run_without_evaluations_has_no_row_and_no_results_no_file_that_cannot_be_read(
    tmp_path: Path,
) -> None:
    assert result_rows(run_result()) == []
    for results in ([], [run_result()]):
        write_results_csv(tmp_path / "results.csv", results)
        assert pd.read_csv(tmp_path / "results.csv").empty


def test_versions_and_machine_are_texts_of_what_runs_here() -> None:
    assert library_versions()["numpy"] == np.__version__
    assert {"processor", "cores", "system", "python"} <= describe_machine().keys()
    for found in (library_versions(), describe_machine()):
        assert all(isinstance(value, str) and value for value in found.values())
